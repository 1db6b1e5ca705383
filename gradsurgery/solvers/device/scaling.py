"""Brings a Gramian to unit diagonal: see ``solvers/scaling.py``."""

from typing import NamedTuple

import torch
from torch import Tensor


class UnitGramian(NamedTuple):
    """As in ``solvers/scaling.py``."""

    cosines: Tensor  # (B, K, K)
    norms: Tensor  # (B, K)
    nonzero: Tensor  # (B, K), bool


def unit_gramian(gramian: Tensor) -> UnitGramian:
    """Scales ``(B, K, K)`` Gramians to unit diagonal; the norms may be anything whose square is a float."""
    squared = gramian.diagonal(dim1=-2, dim2=-1)
    nonzero = squared > 0
    norms = torch.where(nonzero, squared, 1.0).sqrt()
    cosines = gramian / (norms.unsqueeze(-1) * norms.unsqueeze(-2))
    cosines = torch.where(nonzero.unsqueeze(-1) & nonzero.unsqueeze(-2), cosines, 0.0)
    cosines.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return UnitGramian(cosines, norms, nonzero)
