"""Which rows and columns a picture has room for: those in which losses pull against each other most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .checks import Array


def most_opposed(lowest: Array, room: int) -> NDArray[np.int64]:
    """The places of the lowest cosines, at most ``room`` of them, in their own order; unknown ones come last.

    Example:
        >>> most_opposed(np.array([0.5, -0.9, np.nan, -0.1]), 2).tolist()
        [1, 3]
    """
    order = np.argsort(np.where(np.isnan(lowest), np.inf, lowest), kind="stable")
    return np.sort(order[:room])


def lowest_known(values: Array, axis: int) -> Array:
    """The lowest value along an axis; NaN where none is known."""
    lowest: Array = np.fmin.reduce(values, axis)
    return lowest


def mean_known(values: Array, axis: int) -> Array:
    """The mean along an axis of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    times = known.sum(axis)
    total: Array = np.where(known, values, 0.0).sum(axis)
    means: Array = np.divide(total, times, out=np.full(total.shape, np.nan), where=times > 0)
    return means


def upper_pairs(matrices: Array) -> Array:
    """The pairs (i, j), i < j, of matrices ``(..., K, K)``, as ``(..., K (K - 1) / 2)``."""
    first, second = np.triu_indices(matrices.shape[-1], 1)
    pairs: Array = matrices[..., first, second]
    return pairs
