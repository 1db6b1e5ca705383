"""Krum and the trimmed mean: against their definitions, and against gradients that someone has corrupted."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean
from support import DIFFICULT, assert_near, assert_same_bits, gaussian, with_cosine
from torch import Tensor

from gradsurgery.aggregators import Krum, TrimmedMean
from gradsurgery.aggregators.trimmedmean import _WORTH_AN_OPERATION

# --- Krum --------------------------------------------------------------------------------------------------------


def literal_krum(jacobian: Tensor, corrupt: int, selected: int) -> Tensor:
    """Section 4 of Blanchard et al. on the vectors; equal scores share."""
    rows = jacobian.numpy()
    scores = []
    for i, row in enumerate(rows):
        distances = sorted(float(((row - other) ** 2).sum()) for j, other in enumerate(rows) if j != i)
        scores.append(sum(distances[: len(rows) - corrupt - 2]))
    weights, left = np.zeros(len(rows)), selected
    for bound in sorted(scores):
        equal = [i for i, score in enumerate(scores) if weights[i] == 0 and abs(score - bound) <= 1e-9 * bound]
        if left > 0 and equal:
            weights[equal] = min(1.0, left / len(equal))
            left -= min(left, len(equal))
    return torch.from_numpy(weights @ rows / selected)


@pytest.mark.parametrize("selected", [1, 2, 4])
@pytest.mark.parametrize(("count", "corrupt"), [(4, 0), (4, 1), (5, 1), (7, 2), (20, 3), (33, 15)])
def test_krum_is_its_definition(count: int, corrupt: int, selected: int) -> None:
    for seed in range(4):
        scale = torch.logspace(0, 2 * seed, count).double().unsqueeze(1)  # norms up to a million apart
        jacobian = (scale * gaussian(count, 12, seed=seed))[torch.randperm(count, generator=torch.manual_seed(seed))]
        found = Krum(corrupt, n_selected=selected)(jacobian)
        assert_near(found, literal_krum(jacobian, corrupt, selected), 1e-12)


def test_krum_takes_as_many_to_be_corrupt_as_it_can() -> None:
    for count, corrupt in ((3, 0), (4, 0), (5, 1), (8, 2), (9, 3)):
        jacobian = gaussian(count, 6, seed=count)
        assert_near(Krum()(jacobian), literal_krum(jacobian, corrupt, 1), 1e-12)


@pytest.mark.parametrize("lie", [1e3, -1e8])
def test_krum_ignores_corrupt_gradients(lie: float) -> None:
    honest = 1.0 + 0.1 * gaussian(7, 10)
    corrupt = lie * gaussian(3, 10, seed=1)
    method = Krum(3, n_selected=4)
    mixed = torch.cat([corrupt[:1], honest[:4], corrupt[1:], honest[4:]])
    weights = method.weights(mixed @ mixed.mT)
    assert weights[[0, 5, 6]].tolist() == [0.0] * 3
    assert sorted(weights[[1, 2, 3, 4, 7, 8, 9]].tolist()) == [0.0] * 3 + [0.25] * 4


def test_krum_of_rows_that_are_alike_shares() -> None:
    for count in (3, 4, 8):
        identity = torch.eye(count, dtype=torch.float64)
        assert_near(Krum().weights(identity), identity.mean(0), 1e-14)
    camps = with_cosine(5, -0.9)  # three rows that lie alike, two that lie alike
    assert_near(Krum(0).weights(camps @ camps.mT), torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]).double() / 3, 1e-15)
    assert_near(Krum(0, n_selected=4).weights(camps @ camps.mT), torch.tensor([0.25, 0.125] * 2 + [0.25]), 1e-15)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_krum_sees_that_duplicates_are_duplicates(scale: float) -> None:
    """The difference of two large numbers is not zero by itself, and may be negative."""
    row = scale * gaussian(1, 1000) * math.pi
    near = row + 1e-5 * scale * gaussian(3, 1000, seed=1)
    jacobian = torch.cat([near[:1], row, near[1:], row, row])
    gramian = jacobian @ jacobian.mT
    for corrupt in (0, 1, 3):
        weights = Krum(corrupt).weights(gramian * (1 + 1e-16 * gaussian(6, 6, seed=corrupt)))
        assert float(weights[[1, 4, 5]].sum()) == pytest.approx(1.0)
        assert float(weights.min()) >= 0.0


def test_krum_of_all_is_the_mean() -> None:
    jacobian = gaussian(6, 4)
    assert_near(Krum(1, n_selected=6)(jacobian), jacobian.mean(0), 1e-14)
    for count in (1, 2):
        assert_near(Krum()(jacobian[:count]), jacobian[:count].mean(0), 1e-14)


def test_krum_of_nothing() -> None:
    assert_same_bits(Krum()(torch.zeros(5, 3)), torch.zeros(3))


def test_krum_needs_neighbours() -> None:
    with pytest.raises(ValueError, match=r"^Krum: `n_byzantine` must be at most K - 3 = 1 for 4 losses, got 2\. Use"):
        Krum(2)(torch.eye(4))
    with pytest.raises(ValueError, match=r"^Krum: `n_selected` must be at most the number of losses, 4, got 5\."):
        Krum(n_selected=5)(torch.eye(4))
    for wrong in (-1, 0.5, math.nan, "1"):
        with pytest.raises(
            ValueError, match=rf"^Krum: `n_byzantine` must be None or an integer >= 0, got {wrong!r}\."
        ):
            Krum(wrong)
    for wrong in (0, 1.5, None):
        with pytest.raises(ValueError, match=rf"^Krum: `n_selected` must be an integer >= 1, got {wrong}\."):
            Krum(n_selected=wrong)


# --- TrimmedMean -------------------------------------------------------------------------------------------------

FEW, MANY = 3, 40 * _WORTH_AN_OPERATION  # coordinates: the entries are sorted, and compared row by row


@pytest.mark.parametrize("columns", [FEW, MANY])
@pytest.mark.parametrize(("count", "trimmed"), [(1, 0), (3, 1), (4, 0), (4, 1), (7, 2), (7, 3), (16, 5)])
def test_trimmed_mean_is_its_definition(count: int, trimmed: int, columns: int) -> None:
    jacobian = gaussian(count, columns, seed=count).round(decimals=1)  # with ties
    expected = trim_mean(jacobian.numpy(), trimmed / count + 1e-9, axis=0)
    assert_near(TrimmedMean(trimmed)(jacobian), torch.from_numpy(expected), 1e-14)
    assert_near(TrimmedMean()(jacobian), torch.from_numpy(np.median(jacobian.numpy(), axis=0)), 1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_trimmed_mean_of_blocks_in_low_precision(dtype: torch.dtype) -> None:
    blocks = [
        gaussian(5, 4).to(dtype),
        gaussian(5, MANY, seed=1).view(5, -1, 4).to(dtype),
        gaussian(5, 1)[:, 0].to(dtype),
    ]
    for found, block in zip(TrimmedMean(1)(blocks), blocks, strict=True):
        expected = trim_mean(block.double().numpy(), 0.2, axis=0)
        assert found.dtype == dtype
        assert found.shape == block.shape[1:]
        assert_near(found, expected, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("columns", [FEW, MANY])
def test_trimmed_mean_ignores_corrupt_gradients(columns: int) -> None:
    honest = gaussian(6, columns).float()
    corrupt = torch.stack([torch.full((columns,), 1e30), torch.full((columns,), -1e30)])
    mixed = torch.cat([honest[:2], corrupt, honest[2:]])
    assert_near(TrimmedMean(2)(mixed), TrimmedMean(1)(honest), 1e-6)


@pytest.mark.parametrize("columns", [FEW, MANY])
@pytest.mark.parametrize(
    "name", ["five", "zero rows first and last", "all zero", "duplicates", "opposed, and others"]
)
def test_trimmed_mean_leaves_the_gradients_alone(name: str, columns: int) -> None:
    jacobian = DIFFICULT[name].repeat(1, columns)
    before = jacobian.clone()
    TrimmedMean(1)(jacobian)
    assert_same_bits(jacobian, before)


def test_trimmed_mean_needs_something_to_be_left() -> None:
    message = r"^TrimmedMean: `trim_number` must be less than half the number of losses, 4, got 2\. Use None"
    with pytest.raises(ValueError, match=message):
        TrimmedMean(2)(torch.eye(4))
    for wrong in (-1, 0.5, math.nan):
        with pytest.raises(
            ValueError, match=rf"^TrimmedMean: `trim_number` must be None or an int.* >= 0, got {wrong}\."
        ):
            TrimmedMean(wrong)
