"""One number for several seeds: the median."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from ..training.evaluation import Evaluation


@dataclass(frozen=True)
class MedianEvaluation(Evaluation):
    """Medians over the evaluations of several seeds, column by column and of the means over the columns.

    Args:
        seeds: The evaluations, at least one; all of the same columns.

    Example:
        >>> seeds = [Evaluation({"x": error}, {"x": 0.0}) for error in (0.3, 0.1, float("nan"))]
        >>> MedianEvaluation.of(seeds).errors
        {'x': 0.2}
    """

    seeds: tuple[Evaluation, ...]

    @classmethod
    def of(cls, seeds: Sequence[Evaluation]) -> MedianEvaluation:
        """The medians of some evaluations; those that are NaN do not count."""
        errors = {name: _median(own.errors[name] for own in seeds) for name in seeds[0].errors}
        likelihoods = {name: _median(own.log_likelihoods[name] for own in seeds) for name in seeds[0].log_likelihoods}
        return cls(errors, likelihoods, tuple(seeds))

    @property
    def error(self) -> float:
        """Median of the seeds' mean errors."""
        return _median(own.error for own in self.seeds)

    @property
    def log_likelihood(self) -> float:
        """Median of the seeds' mean log-likelihoods."""
        return _median(own.log_likelihood for own in self.seeds)


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan
