"""The comparisons that the other tests rely on accept what is right and fail on what is not."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import find, settings
from references import (
    exact_dual_cone_projections,
    exact_equal_projections,
    exact_gramian,
    exact_min_norm,
    exact_rows,
    exact_upgrad,
)
from support import (
    DIFFICULT,
    assert_harms_none,
    assert_near,
    assert_no_host_sync,
    assert_parallel,
    assert_same_bits,
    condition_of,
    gaussian,
    jacobians,
    losses_of,
    norms_of,
    of_rank,
    share_draws,
    state_of,
    with_cosine,
)
from torch import Tensor

import gradsurgery as gs

TWO = torch.tensor([1.0, 2.0])

# --- comparisons -------------------------------------------------------------------------------------------------


def test_assert_near_accepts() -> None:
    assert_near(TWO * (1 + 1e-7), TWO, 1e-6)
    assert_near(TWO + 1e-7, TWO, 0.0, absolute=1e-6)
    assert_near(np.ones(3), torch.ones(3), 0.0)


@pytest.mark.parametrize(
    ("actual", "expected", "absolute"),
    [
        (TWO * (1 + 1e-5), TWO, 0.0),
        (-TWO, TWO, 0.0),
        (TWO.flip(0), TWO, 0.0),
        (TWO * torch.nan, TWO, 1.0),
        (TWO * torch.inf, TWO, 1.0),
        (TWO, TWO * torch.nan, 1.0),
        (TWO * torch.inf, TWO * torch.inf, 1.0),
        (TWO[:1], TWO, 1e9),
        (TWO.unsqueeze(0), TWO, 1e9),
        (TWO * 1e-9, TWO * 0.0, 1e-10),
    ],
)
def test_assert_near_fails(actual: Tensor, expected: Tensor, absolute: float) -> None:
    with pytest.raises(AssertionError):
        assert_near(actual, expected, 1e-6, absolute)


def test_assert_near_counts_small_entries_against_the_whole() -> None:
    assert_near(torch.tensor([1.0, 1e-9]), torch.tensor([1.0, 0.0]), 1e-8)


def test_assert_parallel() -> None:
    assert_parallel(3 * TWO, TWO, 1e-12)
    for wrong in (-TWO, TWO.flip(0), 0 * TWO, TWO * torch.nan):
        with pytest.raises(AssertionError):
            assert_parallel(wrong, TWO, 1e-6)
    with pytest.raises(AssertionError, match="the expected direction is zero"):
        assert_parallel(TWO, 0 * TWO, 1e-6)


def test_assert_same_bits_accepts() -> None:
    assert_same_bits(TWO * torch.nan, TWO * torch.nan)
    assert_same_bits({"a": [TWO, 3]}, {"a": [TWO.clone(), 3]})
    assert_same_bits(TWO.expand(3, 2), TWO.repeat(3, 1))
    assert_same_bits(torch.tensor(1.0), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.nextafter(TWO, 2 * TWO), TWO),
        (torch.tensor(-0.0), torch.tensor(0.0)),
        (TWO.double(), TWO),
        (TWO.unsqueeze(0), TWO),
        (TWO * torch.nan, TWO),
        (TWO.tolist(), TWO),
        ({"a": TWO}, {"a": TWO, "b": TWO}),
        ({"a": TWO}, {"a": TWO + 1}),
        ([TWO], [TWO, TWO]),
        ([TWO, TWO + 1], [TWO, TWO]),
        (1, 2),
    ],
)
def test_assert_same_bits_fails(actual: object, expected: object) -> None:
    with pytest.raises(AssertionError):
        assert_same_bits(actual, expected)


def test_assert_harms_none() -> None:
    jacobian = DIFFICULT["two in conflict"]
    good = torch.tensor([-0.2, 0.6], dtype=torch.float64)  # what MGDA finds
    assert_harms_none(jacobian, good, 1e-12)
    assert_harms_none(jacobian, 0 * good, 0.0)
    along_the_edge = torch.tensor([1e-7, 1.0], dtype=torch.float64)  # the second loss gets worse by 2e-7
    assert_harms_none(jacobian, along_the_edge, 1e-6)
    for wrong in (jacobian.mean(0), -good, good * torch.nan, along_the_edge):
        with pytest.raises(AssertionError):
            assert_harms_none(jacobian, wrong, 1e-8)


def test_assert_harms_none_sees_small_rows() -> None:
    jacobian = torch.tensor([[1e6, 0.0], [0.0, 1e-6]], dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_harms_none(jacobian, torch.tensor([1.0, -1e-4], dtype=torch.float64), 1e-6)


# --- no_host_sync ------------------------------------------------------------------------------------------------


def test_assert_no_host_sync_accepts_arithmetic() -> None:
    matrix = torch.ones(3, 3, device="meta")
    with assert_no_host_sync():
        torch.where(matrix > 0, 1.0 / matrix, 0.0).sum(-1).mul_(2.0)
        torch.linalg.solve_ex(matrix, matrix[:, :1])


@pytest.mark.parametrize(
    "read",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: float(tensor.sum()),
        lambda tensor: bool((tensor > 0).all()),
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor.cpu(),
        lambda tensor: tensor.to("cpu"),
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.nonzero(),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: torch.ones(3).to(tensor.device),
        lambda tensor: tensor.copy_(torch.ones(3)),
    ],
)
def test_assert_no_host_sync_fails(read: object) -> None:
    with pytest.raises(AssertionError, match="host"), assert_no_host_sync():
        read(torch.ones(3, device="meta"))


# --- Jacobians ---------------------------------------------------------------------------------------------------


def test_difficult_jacobians_are_what_they_are_called() -> None:
    assert all(matrix.dtype == torch.float64 and matrix.isfinite().all() for matrix in DIFFICULT.values())
    assert max(len(matrix) for matrix in DIFFICULT.values()) == 6
    for name, cosine in (("cosine -.99", -0.99), ("six at cosine -.9999", -0.9999)):
        gramian = DIFFICULT[name] @ DIFFICULT[name].mT
        assert_near(gramian.diagonal(), torch.ones(len(gramian)), 1e-12)
        assert float(gramian[0, 1]) == pytest.approx(cosine, abs=1e-12)
    apart = norms_of(DIFFICULT["norms a million apart, cosine -.9999"])
    assert float(apart.max() / apart.min()) == pytest.approx(1e6)
    assert int((norms_of(DIFFICULT["zero rows first and last"]) == 0).sum()) == 2
    opposed = DIFFICULT["exactly opposed"]
    assert_same_bits(opposed[0], -opposed[1])


def test_condition() -> None:
    assert condition_of(torch.diag(torch.tensor([1.0, 1e-3]))) == pytest.approx(1.0)
    assert condition_of(with_cosine(2, -0.99)) == pytest.approx(1.99 / 0.01)
    assert condition_of(of_rank(2, 4, 6)) > 1e14
    assert condition_of(gaussian(4, 3)) == math.inf
    assert condition_of(DIFFICULT["zero row"]) == math.inf


def _norms_apart(jacobian: Tensor) -> bool:
    norms = norms_of(jacobian)
    return len(norms) == 8 and bool((norms == 0).any()) and float(norms.max()) > 1e5 * float(norms.min())


@pytest.mark.parametrize(
    "wanted",
    [
        lambda jacobian: len(jacobian) == 8 and jacobian.shape[1] > 30,
        lambda jacobian: jacobian.dtype == torch.float32,
        lambda jacobian: bool((jacobian == 0).all()),
        lambda jacobian: len(jacobian) > 2 and torch.equal(jacobian[0], -jacobian[1]) and bool(jacobian.any()),
        lambda jacobian: float(jacobian.abs().max()) > 1e6,
        lambda jacobian: 0 < float(jacobian.abs().max()) < 1e-6,
        lambda jacobian: len(jacobian) > 4 and int(torch.linalg.matrix_rank(jacobian)) == 2,
        _norms_apart,
    ],
    ids=["large", "float32", "zero", "opposed", "huge", "tiny", "rank", "norms"],
)
def test_hypothesis_finds_each_difficulty(wanted: object) -> None:
    found = find(jacobians(), wanted, settings=settings(max_examples=3000, derandomize=True, database=None))
    assert bool(found.isfinite().all())


def test_losses_are_positive_and_different() -> None:
    losses = losses_of(torch.zeros(4, 2))
    assert losses.shape == (4,)
    assert len(set(losses.tolist())) == 4
    assert float(losses.min()) > 0


# --- state -------------------------------------------------------------------------------------------------------


def test_state_is_a_copy() -> None:
    method = gs.GradNorm(alpha=0.0)
    method(DIFFICULT["two in conflict"])
    before = state_of(method)
    method(DIFFICULT["two in conflict"])
    with pytest.raises(AssertionError):
        assert_same_bits(state_of(method), before)


def test_shared_draws() -> None:
    one, other = gs.PCGrad(), gs.PCGrad()
    assert one.generator is not other.generator
    share_draws([one, other])
    assert one.generator is other.generator


# --- references --------------------------------------------------------------------------------------------------


def test_exact_solutions_by_hand() -> None:
    conflict = np.array([[4.0, 2.0], [-2.0, 0.0]])
    assert_near(exact_min_norm(conflict), torch.tensor([-0.2, 0.6], dtype=torch.float64), 1e-15)
    assert_near(exact_upgrad(conflict), torch.tensor([-0.2, 1.4], dtype=torch.float64), 1e-15)
    assert_near(exact_equal_projections(np.diag([4.0, 1.0])), torch.tensor([0.8, 0.8]).double(), 1e-7)
    assert exact_min_norm(np.array([[1.0], [-3.0]])).tolist() == [0.0]
    assert exact_min_norm(np.zeros((2, 2))).tolist() == [0.0, 0.0]
    harmless = exact_dual_cone_projections(np.eye(2), np.array([[1.0, 2.0]]))
    assert harmless.tolist() == [[1.0, 2.0]]


def test_exact_arithmetic_is_exact() -> None:
    tiny = exact_rows(np.array([[1.0, 2.0**-200]]))
    assert exact_gramian(tiny) == [[1 + Fraction(1, 2**400)]]


def test_exact_solutions_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match="linearly dependent"):
        exact_equal_projections(np.ones((2, 3)))
