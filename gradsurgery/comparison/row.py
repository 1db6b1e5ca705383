"""One line of the table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One that takes part, over all seeds.

    Args:
        label: Its name.
        learning_rates: The one that was chosen; for single-task networks, one a loss.
        weights: Of the losses, where they were tuned.
        means: Each metric, averaged over the seeds that came to an end.
        deviations: Over the seeds; NaN for one.
        finished: How many seeds came to an end with finite metrics.
        delta: Mean change of the metrics against the reference in percent; negative is better.
        delta_deviation: Over the seeds.
        rank: Mean rank over the metrics, of the means; NaN for single-task networks.
        rank_deviation: Over the seeds, of each seed's own ranks.
        cost: Seconds a step, in those of the plain sum; of single-task networks all together.
        error: What a training raised.
    """

    label: str
    learning_rates: tuple[float, ...]
    weights: tuple[float, ...] | None
    means: dict[str, float]
    deviations: dict[str, float]
    finished: int
    delta: float
    delta_deviation: float
    rank: float
    rank_deviation: float
    cost: float
    error: str | None


__all__ = ["Row"]
