"""Records of many steps, averaged into as many bins as can be told apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checks import Array
from .selection import mean_known

BINS = 300


@dataclass(frozen=True)
class Bins:
    """Records that are drawn as one: where each bin of them begins, and the last ends."""

    starts: NDArray[np.int64]
    count: int

    @property
    def size(self) -> int:
        """How many records the largest bin holds."""
        return int(np.diff(np.append(self.starts, self.count)).max())

    def means(self, values: Array) -> Array:
        """The mean over each bin of what is known, ``(T, ...)`` to ``(bins, ...)``."""
        parts = np.split(values, self.starts[1:])
        return np.stack([mean_known(part, 0) for part in parts])

    def ranges(self, values: Array) -> tuple[Array, Array]:
        """The smallest and the largest value of each bin, NaN where one is unknown."""
        return np.minimum.reduceat(values, self.starts), np.maximum.reduceat(values, self.starts)

    def edges(self, steps: Array) -> Array:
        """Where on the axis of steps each bin begins and the last one ends: halfway to the neighbours."""
        inner = (steps[self.starts[1:]] + steps[self.starts[1:] - 1]) / 2
        first, last = float(steps[0]), float(steps[-1])
        half = (last - first) / max(1, len(steps) - 1) / 2 or 0.5
        return np.concatenate([[first - half], inner, [last + half]])


def bins_of(count: int) -> Bins:
    """At most ``BINS`` bins of equally many records, but for one.

    Example:
        >>> bins_of(1000).starts[:3].tolist(), bins_of(1000).size
        ([0, 3, 6], 4)
    """
    bins = min(count, BINS)
    return Bins(np.arange(bins, dtype=np.int64) * count // bins, count)


def averaged(bins: Bins, what: str) -> str:
    """What is to be said of bins that hold more than one record."""
    return f"{what} the mean of up to {bins.size:,} of the {bins.count:,} records." if bins.size > 1 else ""
