"""Ranks, changes in percent and the choice among candidates, against hand calculation and SciPy."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import Tensor

from gradsurgery.comparison.arms import weightings
from gradsurgery.comparison.fingerprint import fingerprint
from gradsurgery.comparison.standings import best_candidate, changes, directions, mean_ranks, spread


def float64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOWER = torch.tensor([False, False])


@given(st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=7), st.integers(0, 7))
def test_ranks_are_averaged_over_ties_as_by_scipy(table: list[list[int]], mask: int) -> None:
    values = float64(table)
    higher = torch.tensor([bool(mask >> column & 1) for column in range(3)])
    signed = torch.where(higher, -values, values).numpy()
    expected = torch.from_numpy(rankdata(signed, axis=0)).mean(-1)
    torch.testing.assert_close(mean_ranks(values, higher), expected)


def test_ranks_keep_leading_dimensions_apart() -> None:
    one, two = float64([[1.0, 1.0], [2.0, 0.0]]), float64([[5.0, 5.0], [4.0, 4.0]])
    assert mean_ranks(torch.stack([one, two]), LOWER).tolist() == [[1.5, 1.5], [2.0, 1.0]]


@pytest.mark.parametrize("higher", [False, True])
def test_what_is_no_number_ranks_last_whichever_way_is_better(higher: bool) -> None:
    values = float64([[math.nan], [1e300], [-1e300], [math.nan]])
    ranks = mean_ranks(values, torch.tensor([higher]))
    assert ranks.tolist() == [3.5, 1.0 if higher else 2.0, 2.0 if higher else 1.0, 3.5]


def test_an_infinite_metric_ranks_with_what_is_no_number() -> None:
    assert mean_ranks(float64([[math.inf], [math.nan], [3.0]]), LOWER[:1]).tolist() == [2.5, 2.5, 1.0]


def test_changes_by_hand() -> None:
    values, baseline = float64([[0.5, 0.75, -1.5]]), float64([0.25, 1.0, -1.0])
    higher = torch.tensor([False, True, True])
    # Twice the error; a quarter of the accuracy lost; a log-likelihood half as low again.
    assert changes(values, baseline, higher).tolist() == [[100.0, 25.0, 50.0]]


@pytest.mark.parametrize("baseline", [0.0, math.nan, math.inf])
def test_changes_without_a_baseline_are_nan(baseline: float) -> None:
    assert changes(float64([[1.0]]), float64([baseline]), LOWER[:1]).isnan().all()


def test_the_best_candidate_is_best_in_relative_terms() -> None:
    # The second loses 10% on the first metric and gains half on the second one, which is much smaller.
    assert best_candidate(float64([[100.0, 0.02], [110.0, 0.01]]), LOWER) == 1
    assert best_candidate(float64([[100.0, 0.02], [110.0, 0.01]]), torch.tensor([False, True])) == 0


def test_a_candidate_that_went_wild_does_not_make_the_others_alike() -> None:
    # Of the first two, the first is a hundred times better on the first metric, and 2% worse on the second one.
    assert best_candidate(float64([[0.1, 0.50], [10.0, 0.49], [1e10, 0.9]]), LOWER) == 0


def test_candidates_without_all_numbers_are_never_best() -> None:
    values = float64([[math.nan, 0.0], [5.0, 5.0], [math.inf, 0.0]])
    assert best_candidate(values, LOWER) == 1
    assert best_candidate(values[[0, 2]], LOWER) is None


def test_the_best_of_metrics_that_are_zero_everywhere_is_the_first() -> None:
    assert best_candidate(torch.zeros(3, 2, dtype=torch.float64), LOWER) == 0


@dataclass(frozen=True)
class Batch:
    inputs: torch.Tensor
    tags: frozenset[str] = frozenset({"b", "a"})


def test_fingerprints_tell_apart_what_holds_other_numbers() -> None:
    held = [
        {"x": torch.ones(2)}, {"x": torch.zeros(2)}, {"y": torch.ones(2)}, Batch(torch.ones(2)),
        Batch(torch.zeros(2)), Batch(torch.ones(2), frozenset({"a"})), [np.ones(2)], [np.zeros(2)], {"x": None},
        {"x": 0}, {"x": "0"},
    ]  # fmt: skip
    assert len({fingerprint(own) for own in held}) == len(held)
    assert fingerprint(Batch(torch.ones(2))) == fingerprint(Batch(torch.ones(2), frozenset({"a", "b"})))


def test_spread_is_that_of_a_sample() -> None:
    assert spread(float64([[1.0], [3.0]])).item() == pytest.approx(math.sqrt(2))
    assert spread(float64([[1.0]])).isnan().all()


def test_directions() -> None:
    assert directions(["a", "b"], ["b"]).tolist() == [False, True]


@given(st.integers(1, 6), st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=6))
def test_weightings_add_up_to_the_number_of_losses(count: int, values: list[float]) -> None:
    names = [f"loss {number}" for number in range(count)]
    sets = weightings(names, dict(zip(names, values[:count], strict=True)))
    assert sets[0] == (1.0,) * count
    used = values[:count]
    differ = max(used) > 1.5 * min(used)
    assert len(sets) == 1 + differ + count * (2 if count <= 3 else 1)
    for weights in sets:
        assert sum(weights) == pytest.approx(count)
    if differ:  # one over the losses: all weigh the same
        products = [weight * value for weight, value in zip(sets[1], used, strict=True)]
        assert products == pytest.approx([products[0]] * count, rel=0.02)  # the losses are rounded


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_no_weighting_is_one_over_a_loss_that_is_not_positive(value: float) -> None:
    assert len(weightings(["a", "b"], {"a": 1.0, "b": value})) == 5
