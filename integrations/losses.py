"""What a training step hands over: several losses, and their plain sum where nothing is trained."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Losses: TypeAlias = Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor
Counts: TypeAlias = float | Mapping[str, float] | Sequence[float]


def total(losses: Losses, extra_loss: Tensor | None = None) -> Tensor:
    """The sum of the losses that are present, a scalar in float32 at least."""
    if isinstance(losses, Tensor):
        terms = [losses.sum()]
    else:
        values = losses.values() if isinstance(losses, Mapping) else losses
        terms = [loss.reshape(()) for loss in (*values, extra_loss) if loss is not None]
    dtype = torch.promote_types(terms[0].dtype, torch.float32) if terms else torch.float32
    return torch.stack([term.to(dtype) for term in terms]).sum() if terms else torch.zeros((), dtype=dtype)
