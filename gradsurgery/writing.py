"""The last step before the optimizer: gradients into ``.grad``, as autograd itself would put them there."""

from collections.abc import Iterable

import torch
from torch import Tensor

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
        else:
            targets.append(current)
            sources.append(gradient)
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


def all_finite(gradients: Iterable[Tensor]) -> bool:
    """Whether every entry of every gradient is finite."""
    return all(is_finite(gradient._values() if gradient.is_sparse else gradient) for gradient in gradients)
