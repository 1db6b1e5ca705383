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
        errors = {name: median_of_known(own.errors[name] for own in seeds) for name in seeds[0].errors}
        likelihoods = {
            name: median_of_known(own.log_likelihoods[name] for own in seeds) for name in seeds[0].log_likelihoods
        }
        return cls(errors, likelihoods, tuple(seeds))

    @property
    def error(self) -> float:
        """Median of the seeds' mean errors."""
        return median_of_known(own.error for own in self.seeds)

    @property
    def log_likelihood(self) -> float:
        """Median of the seeds' mean log-likelihoods."""
        return median_of_known(own.log_likelihood for own in self.seeds)


def median_of_known(values: Iterable[float]) -> float:
    """Of the seeds in which there was something to measure; an infinite error counts as one."""
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan
