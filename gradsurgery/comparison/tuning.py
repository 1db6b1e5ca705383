"""Which of several candidates is trained on all seeds."""

import math
from collections.abc import Sequence

import torch

from .standings import best_candidate, directions
from .trial import Trial


def best_trial(trials: Sequence[Trial], metrics: Sequence[str], higher_is_better: Sequence[str]) -> Trial | None:
    """The best of several trainings by their last validation; None where none came to an end.

    Args:
        trials: Of the same seed.
        metrics: Those that count.
        higher_is_better: Which of them are better when higher.
    """
    points = [trial.curve[-1] if trial.curve and trial.error is None else {} for trial in trials]
    if not points:
        return None
    table = [[point.get(metric, math.nan) for metric in metrics] for point in points]
    values = torch.tensor(table, dtype=torch.float64)
    best = best_candidate(values, directions(metrics, higher_is_better))
    return None if best is None else trials[best]


__all__ = ["best_trial"]
