r"""From metrics to one number for each that takes part: mean ranks and mean changes in percent.

Everything takes metrics ``(..., A, M)`` of A that take part, in float64, and ``higher (M,)``, which of the metrics
are better when higher.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_ranks(values: Tensor, higher: Tensor) -> Tensor:
    """The rank of each averaged over the metrics, ``(..., A)``: 1 is best in all of them.

    Those that are level share the average of their ranks. What is not a number ranks last.

    Example:
        >>> mean_ranks(torch.tensor([[0.1, 5.0], [0.2, 7.0], [0.2, 6.0]]), torch.tensor([False, True]))
        tensor([2.0000, 1.7500, 2.2500])
    """
    worse = torch.where(higher, -values, values)
    worse = torch.where(worse.isnan(), torch.inf, worse)
    own, other = worse.unsqueeze(-2), worse.unsqueeze(-3)  # (..., A, 1, M), (..., 1, A, M)
    before = (other < own).sum(-2)
    level = (other == own).sum(-2)
    return (before + (level + 1) / 2).to(values.dtype).mean(-1)


def changes(values: Tensor, baseline: Tensor, higher: Tensor) -> Tensor:
    r"""The change of each metric against the baseline's ``(M,)`` in percent, ``(..., A, M)``; negative is better.

    .. math:: 100 \, s_m \, (M_m - B_m) / |B_m|, \quad s_m = -1 \text{ where higher is better, else } 1

    NaN where the baseline is zero or not finite.

    Example:
        >>> changes(torch.tensor([[0.3, 6.0]]), torch.tensor([0.2, 8.0]), torch.tensor([False, True]))
        tensor([[50.0000, 25.0000]])
    """
    usable = torch.where(baseline.isfinite() & (baseline != 0), baseline, torch.nan)
    relative = 100 * (values - usable) / usable.abs()
    return torch.where(higher, -relative, relative)


def best_candidate(values: Tensor, higher: Tensor) -> int | None:
    """Which of A candidates is best: by the mean over the metrics, each divided by its median size over all.

    None where no candidate has a number for every metric.

    Example:
        >>> best_candidate(torch.tensor([[0.1, 0.7], [0.2, 0.9]]), torch.tensor([False, True]))
        0
    """
    complete = values.isfinite().all(-1)
    if not bool(complete.any()):
        return None
    sizes = values[complete].abs()
    typical = sizes.median(0).values  # a candidate that went wild must not make the others look alike
    typical = torch.where(typical > 0, typical, sizes.mean(0))
    relative = values / torch.where(typical > 0, typical, 1.0)
    score = torch.where(higher, -relative, relative).mean(-1)
    return int(torch.where(complete, score, torch.inf).argmin())


def spread(values: Tensor) -> Tensor:
    """The standard deviation over the first dimension, of a sample; NaN for a single value."""
    if len(values) < 2:
        return torch.full_like(values[0], torch.nan)
    return values.std(0)


def directions(metrics: Sequence[str], higher_is_better: Sequence[str]) -> Tensor:
    """Which of the metrics are better when higher, ``(M,)``."""
    return torch.tensor([metric in higher_is_better for metric in metrics], dtype=torch.bool)


__all__ = ["best_candidate", "changes", "directions", "mean_ranks", "spread"]
