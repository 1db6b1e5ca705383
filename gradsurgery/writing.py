"""The last step before the optimizer: gradients into ``.grad``, as autograd itself would put them there."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .distributed import is_sharded
from .engines.per_loss import added
from .kernels import is_finite


def add_gradients(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Adds gradients to ``.grad``, in place where there is one already.

    Args:
        pairs: Parameters, and gradients whose memory may be kept.
    """
    fresh: dict[Tensor, Tensor] = {}
    targets, sources, rest = [], [], []
    seen: set[Tensor] = set()
    for parameter, gradient in pairs:
        current = parameter.grad
        if parameter in seen:  # apart: a fused kernel must not write one tensor twice
            rest.append((parameter, gradient))
        elif current is None:
            fresh[parameter] = _laid_out(gradient, parameter)
        elif current.is_sparse or gradient.is_sparse:
            rest.append((parameter, gradient))
        elif is_sharded(current) and not _lie_alike(current, gradient):
            fresh[parameter] = _brought_to(gradient, current) + gradient
        else:
            targets.append(_held_here(current))
            sources.append(_held_here(gradient))
        seen.add(parameter)
    if targets:  # first, because it is what can fail: a user's .grad may not be writable
        torch._foreach_add_(targets, sources)
    for parameter, gradient in fresh.items():
        parameter.grad = gradient
    for parameter, gradient in rest:
        if parameter.grad is not None:
            parameter.grad = added(parameter.grad, gradient)


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Gives a gradient the parameter's strides, on which fused optimizers rely."""
    if gradient.is_sparse or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _lie_alike(first: Any, second: Any) -> bool:
    return bool(first.placements == second.placements)


def _brought_to(target: Any, moving: Any) -> Tensor:
    """A tensor distributed as another one is."""
    moved: Tensor = moving.redistribute(target.device_mesh, target.placements)
    return moved


def _held_here(tensor: Any) -> Tensor:
    """The tensor itself, or this rank's part of it."""
    with torch.no_grad():
        return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[no-any-return]


def all_finite(gradients: Iterable[Tensor]) -> bool:
    """Whether every entry of every gradient is finite, of those that are here."""
    return all(
        is_finite(gradient._values() if gradient.is_sparse else _held_here(gradient)) for gradient in gradients
    )
