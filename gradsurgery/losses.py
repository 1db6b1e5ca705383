"""What a user hands over as losses, checked once: names, scalars, and which objectives are present."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

LossValues: TypeAlias = "Mapping[str, Tensor | None] | Sequence[Tensor | None]"
Losses: TypeAlias = "LossValues | Callable[[], LossValues]"


class NamedLosses(NamedTuple):
    """The losses that are present in this step."""

    names: tuple[str, ...]
    scalars: tuple[Tensor, ...]


def is_several(result: object) -> bool:
    """Whether a closure returned losses to differentiate, not the one value of a pass it has done itself."""
    return isinstance(result, Mapping | list | tuple)


def named_losses(losses: object, caller: str = "MultiObjectiveOptimizer") -> NamedLosses:
    """Checks losses and drops those that are None.

    Args:
        losses: A dict or sequence of scalars; None stands for a loss that is absent in this step.
        caller: Named in the errors.

    Returns:
        Names (keys, or positions as text) and scalars, in the order given.

    Raises:
        TypeError: The container or a loss is of the wrong kind.
        ValueError: A loss is not a scalar, or none is present.
    """
    if isinstance(losses, Mapping):
        items = [(str(name), loss) for name, loss in losses.items()]
    elif isinstance(losses, Sequence) and not isinstance(losses, str):
        items = [(str(position), loss) for position, loss in enumerate(losses)]
    else:
        got = f"a tensor of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(
            f"{caller}: `losses` must be a sequence or dict of scalar tensors, or a callable returning one, "
            f"got {got}. Hand over the losses themselves, not their sum."
        )
    present = [(name, _check_scalar(name, loss, caller)) for name, loss in items if loss is not None]
    if not present:
        got = "an empty one" if not items else f"{len(items)} that are all None"
        raise ValueError(
            f"{caller}: `losses` must contain at least one loss, got {got}. Skip the step when there is nothing "
            f"to train on."
        )
    if not any(loss.requires_grad for _, loss in present):
        raise ValueError(
            f"{caller}: `losses` must contain at least one that requires a gradient, got none among "
            f"{[name for name, _ in present]}. Was the forward pass run under torch.no_grad()?"
        )
    return NamedLosses(tuple(name for name, _ in present), tuple(loss for _, loss in present))


def check_extra_loss(extra_loss: object, caller: str = "MultiObjectiveOptimizer") -> None:
    """Raises unless ``extra_loss`` is None or a scalar tensor."""
    if extra_loss is None:
        return
    if not isinstance(extra_loss, Tensor) or extra_loss.numel() != 1:
        got = tuple(extra_loss.shape) if isinstance(extra_loss, Tensor) else type(extra_loss).__name__
        raise TypeError(f"{caller}: `extra_loss` must be a scalar tensor or None, got {got}.")


def _check_scalar(name: str, loss: object, caller: str) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"{caller}: loss {name!r} must be a scalar tensor, got {type(loss).__name__}. "
            f"Hand over None for a loss that is absent in this step."
        )
    if loss.numel() != 1 or not loss.is_floating_point():
        raise ValueError(
            f"{caller}: loss {name!r} must be a floating point scalar, got shape {tuple(loss.shape)} and "
            f"{loss.dtype}. Reduce it first: loss.mean() or loss.sum()."
        )
    return loss.reshape(()) if loss.ndim else loss


def values_of(losses: Sequence[Tensor]) -> Tensor:
    """The loss values as one float64 tensor ``(K,)``, detached, on the first loss's device."""
    first = losses[0]
    return torch.stack([loss.detach().to(device=first.device, dtype=torch.float64) for loss in losses])
