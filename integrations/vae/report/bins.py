"""Where the bins of a histogram of one column end."""

from __future__ import annotations

import math

import numpy as np

from ..tables.cells import Floats
from ..tables.column import Column

BINS = 24
SKEWED = 50  # the largest by the smallest amount from which on bins grow with the amounts


def bin_edges(column: Column, data: Floats) -> Floats:
    """The edges of at most ``BINS`` bins over 99% of the data; what lies beyond belongs to the outermost ones.

    Bins are equally wide, but those of amounts that differ by more than ``SKEWED`` times grow by equal factors; zeros
    join the first of these.

    Args:
        column: A column of numbers.
        data: Its observed cells, possibly none.

    Example:
        >>> bin_edges(Column("visits", "count"), np.array([0.0, 1.0, 3.0])).tolist()
        [-0.5, 0.5, 1.5, 2.5, 3.5]
        >>> grows(bin_edges(Column("income", "positive"), np.array([1.0, 1000.0])))
        True
    """
    low, high = np.quantile(data, [0.005, 0.995]) if len(data) else (0.0, 0.0)
    if column.kind == "count":
        # A bin holds the same number of whole numbers as its neighbour, or its height means nothing.
        low, high = math.floor(low), math.ceil(high)
        step = math.ceil((high - low + 1) / BINS)
        return np.arange(low, high + step + 1, step) - 0.5
    if low == high:
        spread = abs(low) / 2 or 0.5
        low, high = low - spread, high + spread
    if column.kind == "positive" and (data > 0).any():
        smallest = float(np.quantile(data[data > 0], 0.005))  # zeros, if any, join the first bin
        if high > SKEWED * smallest:
            return np.geomspace(smallest, high, BINS + 1)
    return np.linspace(low, high, BINS + 1)


def grows(edges: Floats) -> bool:
    """Whether the last bin is wider than the first by more than rounding."""
    return bool(edges[-1] - edges[-2] > 1.5 * (edges[1] - edges[0]))
