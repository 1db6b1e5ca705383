"""What a user hands over as losses, checked once: names, scalars, and which objectives are present."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

LossValues: TypeAlias = "Mapping[str, Tensor | None] | Sequence[Tensor | None]"
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


def named_losses(losses: object, *, differentiable: bool = True) -> NamedLosses:
    """Checks losses and drops those that are None.

    Args:
        losses: A dict or sequence of scalars; None stands for a loss that is absent in this step.
        differentiable: Whether at least one must require a gradient.

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
        raise TypeError(
            f"MultiObjectiveOptimizer: `losses` must be a sequence or dict of scalar tensors, or for backward() a "
            f"callable returning one, got {_kind(losses)}. Hand over a dict or list of the losses, not their sum."
        )
    names = [name for name, _ in items]
    if len(set(names)) < len(names):
        raise ValueError(f"MultiObjectiveOptimizer: `losses` must have different names, got {names}.")
    with torch.enable_grad():
        present = [(name, _check_scalar(name, loss)) for name, loss in items if loss is not None]
    if not present:
        got = "an empty one" if not items else f"{len(items)} that are all None"
        raise ValueError(
            f"MultiObjectiveOptimizer: `losses` must contain at least one loss, got {got}. Skip the step when there "
            f"is nothing to train on."
        )
    if differentiable and not any(loss.requires_grad for _, loss in present):
        raise ValueError(
            f"MultiObjectiveOptimizer: `losses` must contain at least one that requires a gradient, got none among "
            f"{[name for name, _ in present]}. Was the forward pass run under torch.no_grad()?"
        )
    return NamedLosses(tuple(name for name, _ in present), tuple(loss for _, loss in present), tuple(names))


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
    return loss.reshape(()) if loss.ndim else loss


def values_of(losses: Sequence[Tensor]) -> Tensor:
    """The loss values as one float64 tensor ``(K,)``, detached, on the first loss's device."""
    first = losses[0]
    return torch.stack([loss.detach().to(device=first.device, dtype=torch.float64) for loss in losses])
