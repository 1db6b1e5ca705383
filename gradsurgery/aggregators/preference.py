"""What methods share whose losses may matter to different degrees."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from torch import Tensor

from ..solvers.nnls import Array
from .base import GramianAggregator


class Preferring(GramianAggregator):
    """A method in whose average some losses count more than others.

    Args:
        preference: An importance >= 0 for each loss. ``None``: ``1 / K`` each.

    Raises:
        ValueError: ``preference`` is empty, negative or not finite; when called, shorter than the losses.
    """

    def __init__(self, preference: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        chosen = None if preference is None else tuple(float(entry) for entry in preference)
        if chosen is not None and not (chosen and all(math.isfinite(entry) and entry >= 0 for entry in chosen)):
            raise ValueError(
                f"{type(self).__name__}: `preference` must be finite numbers >= 0, one a loss, got {list(chosen)}."
            )
        self.preference = chosen

    def preferences(self, count: int) -> Array:
        """Returns the importance of the ``count`` rows of this call."""
        if self.preference is None:
            return _equal(count)
        rows, known = self.current_rows(count), len(self.preference)
        if max(rows) >= known:
            name = type(self).__name__
            raise ValueError(f"{name}: `preference` must have one entry a loss, got {known} for loss {max(rows)}.")
        return np.array([self.preference[row] for row in rows])


@cache
def _equal(count: int) -> Array:
    return np.full(count, 1.0 / count)
