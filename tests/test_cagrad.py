"""CAGrad against exact arithmetic, the closed form for two losses, SciPy on the paper's own problem, and its laws."""

import numpy as np
import pytest
import torch
from references import exact_cagrad, exact_dualproj
from scipy.optimize import minimize, minimize_scalar
from support import DIFFICULT, assert_near, condition_of, gaussian, norms_of, of_rank, with_cosine
from torch import Tensor

from gradsurgery.aggregators import CAGrad, DualProj
from gradsurgery.solvers import conflict_averse, conflict_averse_weights

OPPOSED = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0]]).double()  # no direction helps the first two


def paper_value(jacobian: np.ndarray, c: float, weights: np.ndarray) -> float:
    """What the paper minimises over the simplex: an upper bound on the progress of the loss that progresses least."""
    mean, combination = jacobian.mean(0), weights @ jacobian
    return float(combination @ mean + c * np.linalg.norm(mean) * np.linalg.norm(combination))


def paper_direction(jacobian: np.ndarray, c: float, weights: np.ndarray) -> np.ndarray:
    mean, combination = jacobian.mean(0), weights @ jacobian
    direction: np.ndarray = mean + c * np.linalg.norm(mean) * combination / np.linalg.norm(combination)
    return direction


# --- exact directions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFICULT)
@pytest.mark.parametrize("c", [0.1, 0.4, 0.9, 2.0])
def test_direction_is_exact(name: str, c: float) -> None:
    jacobian = DIFFICULT[name]
    if c > 1 and condition_of(jacobian) > 1e12:
        pytest.skip("depends on the last bits: on whether a direction helps every loss")
    absolute = 1e-11 * float(norms_of(jacobian).max())
    assert_near(CAGrad(c)(jacobian), exact_cagrad(jacobian.numpy(), c), 1e-8, absolute)


@pytest.mark.parametrize("cosine", [0.5, -0.5, -0.99, -0.9999])
@pytest.mark.parametrize("ratio", [1.0, 3.0, 1e3])
@pytest.mark.parametrize("c", [0.2, 0.8])
def test_two_losses_against_a_minimisation_over_one_number(cosine: float, ratio: float, c: float) -> None:
    rows = np.array([[1.0, 0.0], [ratio * cosine, ratio * np.sqrt(1.0 - cosine**2)]])
    found = minimize_scalar(
        lambda w: paper_value(rows, c, np.array([w, 1.0 - w])),
        bounds=(0.0, 1.0),
        method="bounded",
        options={"xatol": 1e-14, "maxiter": 1000},
    )
    weights = np.array([found.x, 1.0 - found.x])
    corners = min(np.eye(2), key=lambda corner: paper_value(rows, c, corner))
    if paper_value(rows, c, corners) <= found.fun:
        weights = corners
    assert_near(CAGrad(c)(torch.from_numpy(rows)), paper_direction(rows, c, weights), 1e-6)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("kind", ["gaussian", "conflict", "norms a thousand apart"])
def test_against_scipy(size: int, kind: str) -> None:
    jacobian = {
        "gaussian": gaussian(size, 3 * size),
        "conflict": with_cosine(size, -0.9, columns=2 * size),
        "norms a thousand apart": gaussian(size, 3 * size) * torch.logspace(0, 3, size).double().unsqueeze(1),
    }[kind].numpy()
    mean = np.linalg.norm(jacobian.mean(0)) ** 2
    found = minimize(
        lambda w: paper_value(jacobian, 0.4, w) / mean,
        np.full(size, 1.0 / size),
        bounds=[(0.0, None)] * size,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    direction = CAGrad()(torch.from_numpy(jacobian)).numpy()
    worst = (jacobian @ direction).min()
    assert worst <= found.fun * mean * (1 + 1e-9 * np.sign(found.fun))  # no direction beats any weights
    assert_near(direction, paper_direction(jacobian, 0.4, found.x), 1e-3)  # as exact as SLSQP is


# --- how the answer is found does not matter ---------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize("c", [0.4, 1.5])
def test_both_methods_agree(rounds: int, c: float, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [*DIFFICULT.values(), gaussian(30, 70), with_cosine(40, -0.99, columns=50), of_rank(9, 14, 20)]
    expected = [CAGrad(c)(jacobian) for jacobian in problems]
    monkeypatch.setattr(conflict_averse, "_ROUNDS_OF_PIVOTING", rounds)
    for jacobian, direction in zip(problems, expected, strict=True):
        assert_near(CAGrad(c)(jacobian), direction, 1e-8, 1e-11 * float(norms_of(jacobian).max()))


@pytest.mark.parametrize("ridge", [1e-14, 1e-12, 1e-11])
@pytest.mark.parametrize("name", DIFFICULT)
def test_ridge_does_not_matter(name: str, ridge: float) -> None:
    jacobian = DIFFICULT[name].numpy()
    weights = conflict_averse_weights((jacobian @ jacobian.T)[None], 0.4, ridge)[0]
    longest = float(np.linalg.norm(jacobian, axis=1).max())
    assert_near(weights @ jacobian, CAGrad()(DIFFICULT[name]), 1e-8, 1e-10 * longest)


# --- laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFICULT)
@pytest.mark.parametrize("c", [0.4, 1.0, 3.0])
def test_the_step_stays_in_its_ball_and_helps_the_worst_off(name: str, c: float) -> None:
    jacobian = DIFFICULT[name]
    mean, direction = jacobian.mean(0), CAGrad(c)(jacobian)
    rounding = 1e-12 * norms_of(jacobian).max()
    assert float((direction - mean).norm()) <= c * float(mean.norm()) * (1 + 1e-12) + float(rounding)
    rows = jacobian[norms_of(jacobian) > 0]
    if len(rows):
        unit = rows / norms_of(rows).unsqueeze(1)
        level = float((rows @ direction).min())
        assert level >= float((rows @ mean).min()) - float(rounding * norms_of(rows).max())
        if c >= 1:
            assert float((unit @ direction).min()) >= -1e-9 * float(direction.norm()) - float(rounding)


def test_a_radius_of_zero_is_the_mean() -> None:
    for jacobian in DIFFICULT.values():
        assert_near(CAGrad(0.0)(jacobian), jacobian.mean(0), 1e-15, 1e-16)


@pytest.mark.parametrize("c", [0.3, 1.2])
def test_one_loss_takes_a_longer_step(c: float) -> None:
    jacobian = gaussian(1, 5)
    assert_near(CAGrad(c)(jacobian), (1 + c) * jacobian[0], 1e-14)
    assert_near(CAGrad(c, rescale="1+c")(jacobian), jacobian[0], 1e-14)


@pytest.mark.parametrize(("rescale", "divisor"), [("none", 1.0), ("1+c", 1.5), ("1+c^2", 1.25)])
def test_rescaling(rescale: str, divisor: float) -> None:
    jacobian = DIFFICULT["five"]
    assert_near(CAGrad(0.5, rescale=rescale)(jacobian), CAGrad(0.5)(jacobian) / divisor, 1e-14)


@pytest.mark.parametrize("c", [1.0, 1.5, 4.0])
def test_where_nothing_helps_every_loss_it_harms_none(c: float) -> None:
    for jacobian in (OPPOSED, DIFFICULT["opposed, and others"], DIFFICULT["more rows than columns"]):
        assert_near(CAGrad(c)(jacobian), exact_dualproj(jacobian.numpy()), 1e-8, 1e-12)
        assert_near(CAGrad(c)(jacobian), DualProj()(jacobian), 1e-8, 1e-12)


def test_a_small_ball_may_not_reach_the_dual_cone() -> None:
    direction = CAGrad(0.1)(OPPOSED)
    assert float((direction - OPPOSED.mean(0)).norm()) == pytest.approx(
        0.1 * float(OPPOSED.mean(0).norm()), rel=1e-12
    )
    assert float((OPPOSED @ direction).min()) < -0.1


@pytest.mark.parametrize("zeros", [1, 3])
def test_zero_rows_count_in_the_mean_alone(zeros: int) -> None:
    jacobian = DIFFICULT["five"]
    padded = torch.cat([jacobian[:2], torch.zeros(zeros, 9, dtype=torch.float64), jacobian[2:]])
    assert_near(CAGrad()(padded), CAGrad()(jacobian) * 5 / (5 + zeros), 1e-12)


@pytest.mark.parametrize("cosine", [-1.0 + 1e-6, -1.0 + 1e-9, -1.0 + 1e-12, -1.0 + 1e-15, -1.0])
@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_nearly_opposed_rows_give_a_direction(cosine: float, ratio: float) -> None:
    jacobian = torch.tensor([[1.0, 0.0], [ratio * cosine, ratio * np.sqrt(1.0 - cosine**2)]]).double()
    direction = CAGrad()(jacobian)
    mean = jacobian.mean(0)
    assert bool(direction.isfinite().all())
    assert float((direction - mean).norm()) <= 0.4 * float(mean.norm()) * (1 + 1e-9) + 1e-15


# --- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [-0.1, float("nan"), float("inf")])
def test_invalid_radius(c: float) -> None:
    with pytest.raises(ValueError, match=r"CAGrad: `c` must be finite and >= 0, got"):
        CAGrad(c)


def test_invalid_rescaling() -> None:
    with pytest.raises(ValueError, match=r"CAGrad: `rescale` must be one of \['none', '1\+c', '1\+c\^2'\], got 'c'"):
        CAGrad(rescale="c")  # type: ignore[arg-type]


def test_default_is_the_papers() -> None:
    method = CAGrad()
    assert (method.c, method.rescale) == (0.4, "none")
    jacobian: Tensor = DIFFICULT["three"]
    assert_near(method(jacobian), CAGrad(0.4, rescale="none")(jacobian), 0.0)
