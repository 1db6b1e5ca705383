"""What a user hands over as losses, checked once: names, scalars, and which objectives are present."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .distributed import is_sharded

LossValues: TypeAlias = "Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor"
"""Scalars, or one tensor with a loss, or several, for each sample."""
Losses: TypeAlias = "LossValues | Callable[[], LossValues]"


class NamedLosses(NamedTuple):
    """The losses that are present in this step, and the names of all."""

    names: tuple[str, ...]
    scalars: tuple[Tensor, ...]
    all_names: tuple[str, ...]

    def by_name(self) -> dict[str, Tensor | None]:
        """The losses under their names, None for those that are absent."""
        return {**dict.fromkeys(self.all_names), **dict(zip(self.names, self.scalars, strict=True))}


def is_several(result: object) -> bool:
    """Whether a closure returned losses to differentiate, not the one value of a pass it has done itself.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(result, Mapping | list | tuple):
        return True
    if result is None or isinstance(result, int | float) or (isinstance(result, Tensor) and result.numel() == 1):
        return False
    raise TypeError(
        f"MultiObjectiveOptimizer: `closure` must return a dict, list or tuple of losses, or None or the scalar of a "
        f"backward pass it has done itself, got {_kind(result)}."
    )


def named_losses(losses: object, *, differentiable: bool = True, may_be_absent: bool = False) -> NamedLosses:
    """Checks losses and drops those that are None.

    Args:
        losses: A dict or sequence of scalars; None stands for a loss that is absent in this step.
        differentiable: Whether at least one must require a gradient.
        may_be_absent: Whether all may be None, as another rank may have some.

    Returns:
        Names (keys, or positions as text) and scalars, in the order given.

    Raises:
        TypeError: The container or a loss is of the wrong kind.
        ValueError: A loss is not a scalar, two have the same name, or none is present.
    """
    if isinstance(losses, Mapping):
        items = [(str(name), loss) for name, loss in losses.items()]
    elif isinstance(losses, Sequence) and not isinstance(losses, str):
        items = [(str(position), loss) for position, loss in enumerate(losses)]
    else:
        hint = "Hand over a dict or list of the losses, not their sum."
        if isinstance(losses, Tensor) and losses.ndim:
            hint = "A tensor of one loss a sample is for backward() and scalarize(), and not for engine='func'."
        raise TypeError(
            f"MultiObjectiveOptimizer: `losses` must be a sequence or dict of scalar tensors, or for backward() a "
            f"callable returning one, got {_kind(losses)}. {hint}"
        )
    names = [name for name, _ in items]
    if len(set(names)) < len(names):
        raise ValueError(f"MultiObjectiveOptimizer: `losses` must have different names, got {names}.")
    with torch.enable_grad():
        present = [(name, _check_scalar(name, loss)) for name, loss in items if loss is not None]
    if not present and not (items and may_be_absent):
        got = "an empty one" if not items else f"{len(items)} that are all None"
        raise ValueError(
            f"MultiObjectiveOptimizer: `losses` must contain at least one loss, got {got}. Skip the step when there "
            f"is nothing to train on."
        )
    if differentiable and present and not any(loss.requires_grad for _, loss in present):
        raise ValueError(
            f"MultiObjectiveOptimizer: `losses` must contain at least one that requires a gradient, got none among "
            f"{[name for name, _ in present]}. Was the forward pass run under torch.no_grad()?"
        )
    return NamedLosses(tuple(name for name, _ in present), tuple(loss for _, loss in present), tuple(names))


def check_instances(losses: Tensor) -> None:
    """Raises unless a tensor holds one loss for each sample ``(N,)``, or several ``(N, K)``.

    Raises:
        TypeError: It is a scalar, or not real.
        ValueError: It has other dimensions, is empty, or does not require a gradient.
    """
    if losses.ndim == 0:
        named_losses(losses)  # raises, as for anything that is neither
    shape = tuple(losses.shape)
    if not losses.is_floating_point():
        raise TypeError(
            f"MultiObjectiveOptimizer: `losses` must be floating point, got a tensor of {losses.dtype}. Hand over "
            f"one real number a sample, as the forward pass returned it."
        )
    if losses.ndim > 2 or not losses.numel():
        raise ValueError(
            f"MultiObjectiveOptimizer: `losses` must be of shape (N,) or (N, K) when they are one tensor, at least "
            f"one loss for each of at least one sample, got {shape}. Reduce each sample's: loss.flatten(1).mean(1)."
        )
    if not losses.requires_grad:
        raise ValueError(
            f"MultiObjectiveOptimizer: `losses` must require a gradient, got a tensor of shape {shape} that does "
            f"not. Was the forward pass run under torch.no_grad()?"
        )


def instance_names(losses: Tensor) -> tuple[str, ...]:
    """The positions of per-sample losses as text, such as ``"3"``, or ``"3, 1"`` for the second loss of a sample."""
    if losses.ndim == 1:
        return tuple(map(str, range(len(losses))))
    return tuple(f"{sample}, {loss}" for sample in range(len(losses)) for loss in range(losses.shape[1]))


def split_instances(losses: Tensor) -> dict[str, Tensor]:
    """Per-sample losses one by one."""
    with torch.enable_grad():
        return dict(zip(instance_names(losses), losses.reshape(-1).unbind(), strict=True))


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_extra_loss(extra_loss: object) -> None:
    """Raises unless ``extra_loss`` is None or a scalar tensor."""
    if extra_loss is None:
        return
    if not isinstance(extra_loss, Tensor) or extra_loss.numel() != 1:
        raise TypeError(
            f"MultiObjectiveOptimizer: `extra_loss` must be a scalar tensor or None, got {_kind(extra_loss)}."
        )
    if is_sharded(extra_loss):
        raise TypeError(
            "MultiObjectiveOptimizer: `extra_loss` must be an ordinary tensor, got a DTensor. Hand over "
            "extra_loss.full_tensor()."
        )


def _check_scalar(name: str, loss: object) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"MultiObjectiveOptimizer: loss {name!r} must be a scalar tensor, got {type(loss).__name__}. "
            f"Hand over None for a loss that is absent in this step."
        )
    if loss.numel() != 1 or not loss.is_floating_point():
        raise ValueError(
            f"MultiObjectiveOptimizer: loss {name!r} must be a floating point scalar, got shape {tuple(loss.shape)} "
            f"and {loss.dtype}. Reduce it first: loss.mean() or loss.sum()."
        )
    whole: Tensor = loss.full_tensor() if is_sharded(loss) else loss  # type: ignore[attr-defined]
    return whole.reshape(()) if whole.ndim else whole


def values_of(losses: Sequence[Tensor]) -> Tensor:
    """The loss values as one float64 tensor ``(K,)``, detached, on the first loss's device."""
    if not losses:
        return torch.empty(0, dtype=torch.float64)
    first = losses[0]
    if all(loss.dtype == first.dtype and loss.device == first.device for loss in losses):
        return torch.stack([loss.detach() for loss in losses]).double()
    return torch.stack([loss.detach().to(device=first.device, dtype=torch.float64) for loss in losses])
