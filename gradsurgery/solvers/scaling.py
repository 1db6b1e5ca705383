"""Brings a Gramian to unit diagonal, so that no solver's result depends on the scale of the losses."""

from typing import NamedTuple

import numpy as np

from .arrays import Array, Mask

RIDGE = 1e-13
"""Added to the unit diagonal: above the rounding of a float64 Gramian, far below any angle that matters."""

NULL = 1e-12
"""Eigenvalues of a unit-diagonal Gramian below it are rounding."""


class UnitGramian(NamedTuple):
    """A Gramian in unit-diagonal form, :math:`C = D^{-1} G D^{-1}`.

    Rows that are zero have norm 1 and are orthogonal to all others, and are False in ``nonzero``.
    """

    cosines: Array  # (B, K, K)
    norms: Array  # (B, K)
    nonzero: Mask  # (B, K)


def unit_gramian(gramian: Array) -> UnitGramian:
    """Scales ``(B, K, K)`` Gramians to unit diagonal; the norms may be anything whose square is a float."""
    squared = gramian.diagonal(0, 1, 2).copy()
    nonzero = squared > 0
    every = b"\0" not in nonzero.tobytes()  # all(), at a quarter of its overhead
    norms = np.sqrt(squared if every else np.where(nonzero, squared, 1.0))
    cosines = gramian / (norms[:, :, None] * norms[:, None, :])
    if not every:
        cosines = np.where(nonzero[:, :, None] & nonzero[:, None, :], cosines, 0.0)
    size = gramian.shape[-1]
    cosines.reshape(-1, size * size)[:, :: size + 1] = 1.0
    return UnitGramian(cosines, norms, nonzero)
