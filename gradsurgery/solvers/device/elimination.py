"""Elimination without pivots in symmetric matrices, all of a batch at once, in two launches a row."""

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    r"""Of symmetric matrices: :math:`A = L \Delta L^\top`, of those that are not positive definite anything."""

    inverse: Tensor  # L^-1, (..., K, K)
    scaled: Tensor  # Delta^-1 L^-1, (..., K, K)
    definite: Tensor  # whether A is, (...)

    def solve(self, right: Tensor) -> Tensor:
        """The solutions for the right-hand sides ``(..., M, K)``.

        By the two triangular factors: the product of their inverses alone would leave errors of the size of the
        condition, which refinement could not take out where A is singular but for a ridge.
        """
        return right @ self.inverse.mT @ self.scaled


def factorize(matrices: Tensor) -> Factors:
    """Factorizes symmetric ``(..., K, K)`` matrices, in 2K launches."""
    table = torch.cat([matrices, identity(matrices).expand_as(matrices)], dim=-1)
    pivots = _eliminate(table)
    inverse = table[..., matrices.shape[-1] :]
    return Factors(inverse, inverse / pivots.unsqueeze(-1), (pivots > 0).all(-1))


def is_definite(matrices: Tensor) -> Tensor:
    """Tells which of the symmetric ``(..., K, K)`` matrices are positive definite: ``(...)``."""
    return (_eliminate(matrices.clone()) > 0).all(-1)


def identity(like: Tensor) -> Tensor:
    """The identity of the size of the last dimension."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _eliminate(table: Tensor) -> Tensor:
    """Makes ``(..., K, K)``, or with the identity beside it ``(..., K, 2K)``, upper triangular, in place.

    Shape:
        - output: ``(..., K)``, the pivots.
    """
    size, width = table.shape[-2:]
    for k in range(size - 1):
        last = min(width, size + k + 1)  # further right the row is still zero
        factors = table[..., k + 1 :, k] / table[..., k, k, None]
        table[..., k + 1 :, k:last].addcmul_(factors.unsqueeze(-1), table[..., k, None, k:last], value=-1.0)
    return table.diagonal(dim1=-2, dim2=-1)
