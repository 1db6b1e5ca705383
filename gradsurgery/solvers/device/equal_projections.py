"""The combination of unit vectors that has the same inner product with each: see ``solvers/equal_projections.py``."""

import torch
from torch import Tensor

from ..scaling import NULL
from .elimination import factorize
from .graded import graded_factor

_PART = 1e-6  # as on the host


def equal_projections(cosines: Tensor, ones: Tensor, *, approximate: bool) -> tuple[Tensor, Tensor]:
    r"""Solves :math:`C \beta = 1`, and bounds the smallest eigenvalue of C that is not zero.

    With :math:`C = L L^\top`, L having as many columns as C has rank, the shortest least-squares solution is
    :math:`\beta = L (L^\top L)^{-2} L^\top 1`.

    Args:
        cosines: C, unit-diagonal Gramians.
        ones: 1 for the rows that count; 0 for those that are zero, which must be orthogonal to the others.
        approximate: Where there is no solution, whether to return the shortest least-squares solution or zero.

    Shape:
        - cosines: ``(B, K, K)``.
        - ones: ``(B, K)``.
        - output: ``(B, K)`` and ``(B, 1)``, a lower bound that is off by at most the root of K.

    Cost:
        ``14K + 40`` launches.
    """
    factor = graded_factor(cosines, torch.ones_like(ones), NULL)
    squares = factor.mT @ factor
    present = squares.diagonal(dim1=-2, dim2=-1) > 0
    factors = factorize(squares + torch.diag_embed((~present).to(squares.dtype)))
    shares = factors.solve(ones.unsqueeze(-2) @ factor)
    reached = (shares @ factor.mT).squeeze(-2)
    solution = (factors.solve(shares) @ factor.mT).squeeze(-2)
    shortest = _PART * ones.norm(dim=-1, keepdim=True)
    solved = reached.norm(dim=-1, keepdim=True) > shortest
    if not approximate:
        solved &= (ones - reached).norm(dim=-1, keepdim=True) <= shortest
    inverse = factors.solve(torch.diag_embed(present.to(squares.dtype)))
    return torch.where(solved, ones * solution, 0.0), 1.0 / inverse.flatten(1).norm(dim=1, keepdim=True)
