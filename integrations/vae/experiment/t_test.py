"""Whether one method errs less than another on the same random splits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, variance
from typing import NamedTuple


class TTest(NamedTuple):
    """A paired comparison: mean difference, t statistic, two-sided p-value."""

    difference: float
    statistic: float
    p_value: float


def corrected_t_test(errors: Sequence[float], baseline: Sequence[float], *, test_rows: int, train_rows: int) -> TTest:
    r"""Student's paired test with the variance that random splits of one table call for.

    .. math:: t = \frac{\bar d}{\sqrt{(\frac1n + \frac{n_\text{test}}{n_\text{train}}) s^2}}

    with n - 1 degrees of freedom, where :math:`d` are the n differences and :math:`s^2` their variance (over n - 1).
    The splits share most of their training rows, so their differences are alike; without the second term, too many
    would be called significant.

    Args:
        errors: Of one method, one a split; at least two.
        baseline: Of another one, on the same splits.
        test_rows: Rows of a split that were tested on, >= 0; 0 gives Student's own test.
        train_rows: Rows of a split that were trained on, >= 1.

    Raises:
        ValueError: there are fewer than two splits, not as many of both, or an error is not finite.
        ImportError: SciPy is not installed.

    References:
        Nadeau and Bengio, Inference for the generalization error, Machine Learning 52 (2003).

    Example:
        >>> test = corrected_t_test([0.0, 0.5], [0.5, 1.5], test_rows=0, train_rows=7)
        >>> test.difference, test.statistic, round(test.p_value, 4)
        (-0.75, -3.0, 0.2048)
    """
    if len(errors) < 2 or len(errors) != len(baseline):
        raise ValueError(
            f"corrected_t_test: `errors` must be at least two, as many as `baseline`, got {len(errors)} and "
            f"{len(baseline)}. Compare the same seeds of both."
        )
    if not all(map(math.isfinite, (*errors, *baseline))):
        raise ValueError("corrected_t_test: `errors` must be finite, got one that is not. Leave the column out.")
    differences = [own - other for own, other in zip(errors, baseline, strict=True)]
    difference = mean(differences)
    scale = math.sqrt((1 / len(differences) + test_rows / train_rows) * variance(differences))
    if scale == 0:
        certain = difference != 0
        return TTest(difference, math.copysign(math.inf, difference) if certain else 0.0, 0.0 if certain else 1.0)
    statistic = difference / scale
    return TTest(difference, statistic, 2 * _lower_tail(len(differences) - 1, -abs(statistic)))


def _lower_tail(degrees: int, statistic: float) -> float:
    """The share of Student's distribution below ``statistic``."""
    try:
        from scipy.special import stdtr
    except ImportError as error:
        raise ImportError(
            "corrected_t_test: scipy must be installed, got no module of that name. "
            'Run: pip install "gradsurgery[vae]"'
        ) from error
    return float(stdtr(degrees, statistic))
