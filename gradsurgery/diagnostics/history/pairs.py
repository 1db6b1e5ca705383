"""How pairs of losses stood to each other, where that can be said: both there, neither zero, neither overflown."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..similarity import cosines, magnitude_ratios, magnitude_similarities, norms


class Pairs(NamedTuple):
    """All ``(..., K, K)``, NaN where a loss was absent, its gradient zero or not finite.

    Args:
        cosines: Between the gradients.
        ratios: How many times as long as gradient j gradient i is.
        similarities: Of the lengths, 0 to 1.
        conflicts: 1 where they point against each other, else 0.
    """

    cosines: Tensor
    ratios: Tensor
    similarities: Tensor
    conflicts: Tensor


def comparable(gramians: Tensor) -> Tensor:
    """Which pairs have finite inner products, ``(..., K, K)``; NaN stands for a loss that was absent.

    Example:
        >>> comparable(torch.tensor([[1.0, torch.nan], [torch.nan, torch.inf]]))
        tensor([[ True, False],
                [False, False]])
    """
    squares = gramians.diagonal(dim1=-2, dim2=-1).isfinite()
    return gramians.isfinite() & squares.unsqueeze(-1) & squares.unsqueeze(-2)


def compared(gramians: Tensor) -> Pairs:
    """Compares all pairs of gradients by their inner products ``(..., K, K)``.

    Example:
        >>> compared(torch.tensor([[4.0, -1.0], [-1.0, 1.0]])).cosines
        tensor([[ 1.0000, -0.5000],
                [-0.5000,  1.0000]])
    """
    there = norms(gramians) > 0
    valid = comparable(gramians) & there.unsqueeze(-1) & there.unsqueeze(-2)
    conflicts = (gramians < 0).to(gramians.dtype)
    found = (cosines(gramians), magnitude_ratios(gramians), magnitude_similarities(gramians), conflicts)
    return Pairs(*(torch.where(valid, each, torch.nan) for each in found))


def share_of(conflicts: Tensor) -> Tensor:
    """The share of conflicting pairs ``(...)`` among those that could be compared; NaN where none could.

    Args:
        conflicts: ``(..., K, K)``, as :func:`compared` gives them.

    Example:
        >>> share_of(compared(torch.tensor([[4.0, -1.0], [-1.0, 1.0]])).conflicts)
        tensor(1.)
    """
    count = conflicts.shape[-1]
    first, second = torch.triu_indices(count, count, offset=1, device=conflicts.device)
    return conflicts[..., first, second].nanmean(-1)


__all__ = ["Pairs", "comparable", "compared", "share_of"]
