"""What methods share whose losses may matter to different degrees."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..solvers.arrays import Array
from .base import GramianAggregator


class Preferring(GramianAggregator):
    """A method in whose average some losses count more than others.

    Args:
        preference: An importance >= 0 for each loss, not all zero; of losses that are absent, it is not used.
            ``None``: ``1 / K`` each.

    Raises:
        TypeError: ``preference`` holds no numbers.
        ValueError: ``preference`` is no vector, negative, not finite or all zero; in a call, shorter than the losses.
    """

    def __init__(self, preference: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        self.preference = None
        if preference is not None:
            rule = "finite numbers >= 0, not all zero, one a loss"
            self.preference = numbers_of(preference, f"{type(self).__name__}: `preference` must be {rule}")
            if min(self.preference) < 0 or max(self.preference) == 0:
                raise ValueError(f"{type(self).__name__}: `preference` must be {rule}, got {list(self.preference)}.")

    def preferences(self, count: int) -> Array:
        """Returns the importance of the ``count`` rows of this call."""
        if self.preference is None:
            return _equal(count)
        rows, known = self.current_rows(count), len(self.preference)
        if max(rows) >= known:
            name = type(self).__name__
            raise ValueError(f"{name}: `preference` must have one entry a loss, got {known} for loss {max(rows)}.")
        return np.array([self.preference[row] for row in rows])


def numbers_of(values: Sequence[float] | Tensor, rule: str) -> tuple[float, ...]:
    """Returns a vector of finite numbers, at least one; the error otherwise starts with ``rule``."""
    try:
        numbers = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{rule}, got {values!r}.") from None
    if numbers.ndim != 1 or len(numbers) == 0 or not bool(numbers.isfinite().all()):
        raise ValueError(f"{rule}, got {numbers.tolist()}.")
    return tuple(numbers.tolist())


@cache
def _equal(count: int) -> Array:
    equal = np.full(count, 1.0 / count)
    equal.setflags(write=False)
    return equal
