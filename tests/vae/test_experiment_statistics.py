"""The corrected test against SciPy's, and what is made of it."""

import math
import random
from statistics import mean, variance
from typing import Any

import pytest
from scipy import stats

from gradsurgery.integrations.vae.experiment import corrected_t_test
from gradsurgery.integrations.vae.experiment.comparison import compare


def draws(seed: int, count: int, shift: float = 0.0) -> list[float]:
    generator = random.Random(seed)
    return [0.3 + shift + 0.05 * generator.gauss(0, 1) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 5, 40])
@pytest.mark.parametrize("shift", [-0.2, 0.01, 0.5])
def test_without_correction_it_is_students(count: int, shift: float) -> None:
    errors, baseline = draws(1, count, shift), draws(2, count)
    test = corrected_t_test(errors, baseline, test_rows=0, train_rows=9)
    reference = stats.ttest_rel(errors, baseline)
    assert test.statistic == pytest.approx(reference.statistic, rel=1e-9)
    assert test.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    assert test.difference == pytest.approx(mean(errors) - mean(baseline), rel=1e-12)


def test_the_variance_is_corrected() -> None:
    errors, baseline = draws(3, 5, 0.05), draws(4, 5)
    differences = [one - other for one, other in zip(errors, baseline, strict=True)]
    statistic = mean(differences) / math.sqrt((1 / 5 + 20 / 70) * variance(differences))
    test = corrected_t_test(errors, baseline, test_rows=20, train_rows=70)
    assert test.statistic == pytest.approx(statistic, rel=1e-12)
    assert test.p_value == pytest.approx(2 * stats.t.sf(abs(statistic), 4), rel=1e-9)
    assert test.p_value > corrected_t_test(errors, baseline, test_rows=0, train_rows=70).p_value


def test_differences_that_never_vary() -> None:
    same = corrected_t_test([0.5, 0.25], [0.5, 0.25], test_rows=2, train_rows=7)
    assert (same.statistic, same.p_value) == (0.0, 1.0)
    apart = corrected_t_test([0.5, 0.25], [0.75, 0.5], test_rows=2, train_rows=7)
    assert (apart.statistic, apart.p_value) == (-math.inf, 0.0)


@pytest.mark.parametrize("errors", [[0.1], [0.1, 0.2, 0.3], [0.1, math.nan]])
def test_what_cannot_be_compared(errors: list[float]) -> None:
    with pytest.raises(ValueError, match="corrected_t_test: `errors` must be"):
        corrected_t_test(errors, [0.2] * min(2, len(errors)), test_rows=2, train_rows=7)


def record(errors: list[float], x: list[float | None]) -> dict[str, Any]:
    rows = {"train": 70, "validation": 10, "test": 20}
    seeds = [{"error": e, "errors": {"x": cell}, "rows": rows} for e, cell in zip(errors, x, strict=True)]
    return {"seeds": seeds, "errors": {"x": x[0]}}


def test_verdicts() -> None:
    low, high = [0.10, 0.11, 0.12], [0.20, 0.22, 0.21]
    assert compare(record(low, [0.1, 0.1, 0.1]), record(high, [0.2, 0.2, 0.2]))["verdict"] == "better"
    worse = compare(record(high, [0.1, 0.5, 0.1]), record(low, [0.2, 0.2, 0.2]))
    assert worse["verdict"] == "worse"
    assert worse["difference"] == pytest.approx(0.1)
    assert worse["columns"]["x"]["verdict"] == "alike"
    assert compare(record(high, [0.1, None, 0.1]), record(low, [0.2, 0.2, 0.2]))["columns"]["x"] == {}
    certain = compare(record([0.25, 0.5], [0.25, 0.5]), record([0.5, 0.75], [0.25, 0.5]))
    assert (certain["statistic"], certain["p_value"], certain["columns"]["x"]["verdict"]) == (None, 0.0, "alike")
