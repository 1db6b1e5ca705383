"""UPGrad, DualProj, MGDA and CAGrad for many losses, as exact as for few, and what else they share."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from certificates import certified_conflict_averse, certified_min_norm, certified_projection
from hypothesis import given, settings, strategies
from numpy.typing import NDArray
from precise import well_posed
from references import exact_min_norm
from scipy.optimize import nnls
from support import DIFFICULT, assert_near, gaussian, jacobians, norms_of, of_rank, with_cosine
from torch import Tensor

from gradsurgery.aggregators import MGDA, CAGrad, DualProj, GramianAggregator, UPGrad
from gradsurgery.solvers import min_norm_weights, optimality_gap, project_on_dual_cone
from gradsurgery.solvers import nnls as nnls_module

Array = NDArray[np.float64]

COUNTS = [2, 3, 5, 8, 16, 31, 32, 64]


def dualproj(rows: Array) -> Array:
    start = np.full(len(rows), 1 / len(rows))
    return certified_projection(rows, start, project_on_dual_cone((rows @ rows.T)[None], start[None, None])[0, 0])


def upgrad(rows: Array) -> Array:
    starts = np.eye(len(rows))
    weights = project_on_dual_cone((rows @ rows.T)[None], starts[None])[0]
    each = [certified_projection(rows, start, found) for start, found in zip(starts, weights, strict=True)]
    mean: Array = np.mean(each, axis=0)
    return mean


def mgda(rows: Array) -> Array:
    return certified_min_norm(rows, min_norm_weights((rows @ rows.T)[None])[0])


def cagrad(rows: Array) -> Array:
    weights = CAGrad().weights(torch.from_numpy(rows @ rows.T)).numpy()
    return certified_conflict_averse(rows, 0.4, weights)


CERTIFIED: dict[Callable[[], GramianAggregator], Callable[[Array], Array]] = {
    UPGrad: upgrad,
    DualProj: dualproj,
    MGDA: mgda,
    CAGrad: cagrad,
}


# --- exact directions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", well_posed(2))
@pytest.mark.parametrize("method", CERTIFIED)
def test_direction_is_exact(method: Callable[[], GramianAggregator], kind: str, count: int) -> None:
    jacobian = torch.from_numpy(well_posed(count)[kind])
    assert_near(method()(jacobian), CERTIFIED[method](jacobian.numpy()), 1e-8)


@pytest.mark.parametrize("count", [2, 8, 32])
@pytest.mark.parametrize("kind", well_posed(2))
@pytest.mark.parametrize("method", CERTIFIED)
def test_direction_from_float32(method: Callable[[], GramianAggregator], kind: str, count: int) -> None:
    single = torch.from_numpy(well_posed(count)[kind]).float()
    assert_near(method()(single), CERTIFIED[method](single.double().numpy()), 1e-5)


@pytest.mark.parametrize("change", ["one active row too few", "one too many"])
@pytest.mark.parametrize("method", [DualProj, MGDA, CAGrad])
def test_certificates_can_fail(method: Callable[[], GramianAggregator], change: str) -> None:
    rows = gaussian(8, 10, seed=1).numpy()
    least = {DualProj: 1 / 8, MGDA: 0.0, CAGrad: 1 / 8}[method]
    certify: Callable[[Array], Array] = {
        DualProj: lambda weights: certified_projection(rows, np.full(8, 1 / 8), weights),
        MGDA: lambda weights: certified_min_norm(rows, weights),
        CAGrad: lambda weights: certified_conflict_averse(rows, 0.4, weights),
    }[method]
    weights = method().weights(torch.from_numpy(rows @ rows.T)).numpy()
    certify(weights)
    too_many = change == "one too many"
    changed = np.flatnonzero((weights == least) == too_many)[0]
    weights[changed] = least + 0.1 * too_many
    with pytest.raises(AssertionError):
        certify(weights)


@pytest.mark.parametrize("count", [2, 7, 16, 40])
@pytest.mark.parametrize("columns", [5, 60])
def test_dualproj_against_scipy(count: int, columns: int) -> None:
    matrix = gaussian(count, columns, seed=count).numpy() * np.geomspace(1.0, 30.0, count)[:, None]
    mean = matrix.mean(0)
    expected = mean + nnls(matrix.T, -mean)[0] @ matrix
    assert_near(DualProj()(torch.from_numpy(matrix)), expected, 1e-8, 1e-10 * float(np.linalg.norm(mean)))


# --- rows that depend on each other ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 64])
@pytest.mark.parametrize("kind", ["fewer columns", "duplicates", "opposed", "repeated with either sign", "closed"])
def test_many_dependent_rows(kind: str, count: int) -> None:
    base = gaussian(count // 2, 2 * count, seed=count)
    source = np.random.default_rng(count)
    jacobian = {
        "fewer columns": gaussian(count, 5 * count // 8, seed=count),
        "duplicates": torch.cat([base, base]),
        "opposed": torch.cat([base, -0.5 * base]),
        "repeated with either sign": base[source.integers(0, 7, count)]
        * torch.from_numpy(source.choice([-1.0, 1.0], (count, 1))),
        "closed": torch.cat([gaussian(count - 1, count), -gaussian(count - 1, count).sum(0, keepdim=True)]),
    }[kind]
    matrix, mean = jacobian.numpy(), jacobian.mean(0).numpy()
    longest = float(norms_of(jacobian).max())
    each = [row + nnls(matrix.T, -row)[0] @ matrix for row in [*matrix, mean]]
    assert_near(UPGrad()(jacobian), np.mean(each[:-1], axis=0), 1e-8, 1e-11 * longest)
    assert_near(DualProj()(jacobian), each[-1], 1e-8, 1e-11 * longest)
    gramian = (matrix @ matrix.T)[None]
    assert float(optimality_gap(gramian, min_norm_weights(gramian))[0]) < 1e-12


@pytest.mark.parametrize("count", [3, 16, 40])
@pytest.mark.parametrize("method", [UPGrad, DualProj, MGDA, CAGrad])
def test_gramians_of_low_precision(method: Callable[[], GramianAggregator], count: int) -> None:
    """Rounded to float32, the Gramian of dependent rows is indefinite."""
    for jacobian in (of_rank(count // 2, count, 50), torch.cat([gaussian(count, 9), -gaussian(count, 9)])):
        exact = jacobian @ jacobian.mT
        direction = method().weights(exact.float().double()) @ jacobian
        assert_near(direction, method().weights(exact) @ jacobian, 0.0, 1e-3 * float(norms_of(jacobian).max()))


# --- MGDA --------------------------------------------------------------------------------------------------------


@given(jacobian=jacobians(max_rows=20, dtypes=(torch.float64,)))
@settings(max_examples=150)
def test_gap_of_mgda(jacobian: Tensor) -> None:
    gramian = (jacobian @ jacobian.mT).numpy()[None]
    assert float(optimality_gap(gramian, MGDA().weights(torch.from_numpy(gramian)).numpy())[0]) <= 1e-9


@given(jacobian=jacobians(max_rows=5, dtypes=(torch.float64,)), seed=strategies.integers(0, 1000))
@settings(max_examples=60)
def test_gap_bounds_the_distance(jacobian: Tensor, seed: int) -> None:
    rows = jacobian.numpy()[norms_of(jacobian).numpy() > 0]
    if len(rows) == 0:
        return
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(rows)))
    gap = float(optimality_gap((rows @ rows.T)[None], weights[None])[0])
    longest = float(norms_of(jacobian).max())
    distance = float(np.linalg.norm(weights @ rows - exact_min_norm(rows)))
    assert distance**2 <= (gap + 1e-12) * longest**2 * (1 + 1e-9)


def test_gap_of_equal_weights_is_seen() -> None:
    jacobian = DIFFICULT["two in conflict"].numpy()
    gap = optimality_gap((jacobian @ jacobian.T)[None], np.array([[0.5, 0.5]]))
    assert gap.tolist() == pytest.approx([4.0 / (2.0 * np.sqrt(20.0))])


# --- preferences -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFICULT)
def test_preferences(name: str) -> None:
    jacobian = DIFFICULT[name]
    count, longest = len(jacobian), float(norms_of(jacobian).max())
    preference = torch.linspace(2.0, 0.0, count).double()
    gramian = (jacobian @ jacobian.mT).numpy()[None]
    rows = torch.from_numpy(project_on_dual_cone(gramian, np.eye(count)[None])[0]) @ jacobian
    assert_near(UPGrad(preference)(jacobian), preference @ rows, 1e-9, 1e-11 * longest)
    start = project_on_dual_cone(gramian, preference.numpy()[None, None])[0, 0]
    assert_near(DualProj(preference)(jacobian), torch.from_numpy(start) @ jacobian, 1e-9, 1e-11 * longest)


@pytest.mark.parametrize("method", [UPGrad, DualProj])
def test_preference_of_equal_parts_is_the_default(method: Callable[..., GramianAggregator]) -> None:
    jacobian = DIFFICULT["five"]
    assert_near(method([0.2] * 5)(jacobian), method()(jacobian), 1e-14)
    assert_near(method([0.0, 0.0, 1.0, 0.0, 0.0])(jacobian), method([0.0, 0.0, 3.0, 0.0, 0.0])(jacobian) / 3, 1e-12)


@pytest.mark.parametrize("method", [UPGrad, DualProj])
def test_preferences_belong_to_objectives(method: Callable[..., GramianAggregator]) -> None:
    jacobian = DIFFICULT["five"]
    preferring = method([1.0, 2.0, 3.0, 4.0, 5.0])
    found = preferring(jacobian[[3, 0]], rows=[3, 0])
    assert_near(found, method([4.0, 1.0])(jacobian[[3, 0]]), 1e-14)
    name = method.__name__  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=rf"{name}: `preference` must have one entry a loss, got 5 for loss 5\."):
        preferring(jacobian[:2], rows=[0, 5])


@pytest.mark.parametrize("method", [UPGrad, DualProj])
@pytest.mark.parametrize("preference", [[], [1.0, -1.0], [float("nan")], [float("inf"), 1.0]])
def test_invalid_preferences(method: Callable[..., GramianAggregator], preference: list[float]) -> None:
    name = method.__name__  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=rf"{name}: `preference` must be finite numbers >= 0, not all zero, one"):
        method(preference)


# --- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 500, 2**22])
@pytest.mark.parametrize("count", [3, 9, 33])
@pytest.mark.parametrize("method", [UPGrad, DualProj, MGDA, CAGrad])
def test_batch_in_blocks(
    method: Callable[[], GramianAggregator], count: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = torch.stack([gaussian(count, 50, seed) for seed in range(3)] + [with_cosine(count, -0.9, columns=50)] * 2)
    gramians = batch @ batch.mT
    expected = torch.stack([method().weights(gramian) for gramian in gramians])
    monkeypatch.setattr(nnls_module, "_LARGEST_BLOCK", block)
    assert_near(method().weights(gramians), expected, 1e-11)
