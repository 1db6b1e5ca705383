"""Brings a Gramian to unit diagonal, so that no solver's result depends on the scale of the losses."""

from typing import NamedTuple

import numpy as np

from .nnls import Array, Mask

RIDGE = 1e-13
"""Added to the unit diagonal: above the rounding of a float64 Gramian, far below any angle that matters."""


class UnitGramian(NamedTuple):
    """A Gramian in unit-diagonal form, :math:`C = D^{-1} G D^{-1}`.

    Rows that are zero have norm 1 and are orthogonal to all others, and are False in ``nonzero``.
    """

    cosines: Array  # (B, K, K)
    norms: Array  # (B, K)
    nonzero: Mask  # (B, K)


def unit_gramian(gramian: Array) -> UnitGramian:
    """Scales ``(B, K, K)`` Gramians to unit diagonal, in steps that neither overflow nor underflow."""
    squared = np.einsum("bii->bi", gramian)
    nonzero = squared > 0
    norms = np.sqrt(np.where(nonzero, squared, 1.0))
    cosines = gramian / norms[:, :, None] / norms[:, None, :]
    size = gramian.shape[-1]
    both = nonzero[:, :, None] & nonzero[:, None, :]
    diagonal = np.eye(size, dtype=bool)
    cosines = np.where(diagonal, 1.0, np.where(both, cosines, 0.0))
    return UnitGramian(cosines, norms, nonzero)
