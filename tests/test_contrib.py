"""The newer methods against their papers: the algorithms written out on the vectors, in float64."""

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from references import exact_min_norm
from support import DIFFICULT, assert_near, gaussian, norms_of, with_cosine
from torch import Tensor

from gradsurgery.aggregators import Aggregator
from gradsurgery.aggregators.contrib import DCGD, PCD, ChebyshevCenter

Array = NDArray[np.float64]

WITHOUT_ZERO_ROWS = {name: matrix for name, matrix in DIFFICULT.items() if bool((norms_of(matrix) > 0).all())}
PAIRS = {name: matrix[:2] for name, matrix in WITHOUT_ZERO_ROWS.items() if len(matrix) > 1 and "oppo" not in name}


# --- DCGD --------------------------------------------------------------------------------------------------------


def _dcgd(r: Array, b: Array, variant: str) -> Array:
    """Algorithms 1 to 3 of Hwang and Lim."""
    g = r + b
    if variant == "center":
        c = r / np.linalg.norm(r) + b / np.linalg.norm(b)
        center: Array = (g @ c) / (c @ c) * c
        return center
    r_without_b = r - (r @ b) / (b @ b) * b
    b_without_r = b - (r @ b) / (r @ r) * r
    if g @ r >= 0 and g @ b >= 0:
        return g
    if variant == "average":
        return 0.5 * (r_without_b + b_without_r)
    return r_without_b if g @ b < 0 else b_without_r


@pytest.mark.parametrize("variant", ["center", "average", "projection"])
@pytest.mark.parametrize("name", PAIRS)
def test_dcgd_follows_its_paper(name: str, variant: Any) -> None:
    jacobian = PAIRS[name]
    expected = _dcgd(*jacobian.numpy(), variant)
    assert_near(DCGD(variant)(jacobian), expected, 1e-10, 1e-12 * float(norms_of(jacobian).max()))
    assert_near(DCGD(variant)(jacobian.flip(0)), expected, 1e-10, 1e-12 * float(norms_of(jacobian).max()))


@pytest.mark.parametrize("variant", ["center", "average", "projection"])
@pytest.mark.parametrize("split", [1, 2, 4])
def test_dcgd_adds_up_the_losses_of_a_group(split: int, variant: Any) -> None:
    harmed = 0
    for seed in range(10):
        jacobian = gaussian(5, 4, seed)
        r, b = jacobian[:split].sum(0).numpy(), 10 ** (seed % 3) * jacobian[split:].sum(0).numpy()
        scaled = torch.cat([jacobian[:split], 10 ** (seed % 3) * jacobian[split:]])
        harmed += bool(min((r + b) @ r, (r + b) @ b) < 0)
        direction = DCGD(variant, split=split)(scaled)
        assert_near(direction, _dcgd(r, b, variant), 1e-12)
        assert min(direction.numpy() @ r, direction.numpy() @ b) > -1e-12
    assert harmed > 0


def test_dcgd_knows_the_losses_by_number() -> None:
    jacobian = gaussian(3, 4)
    expected = _dcgd(jacobian[1].numpy(), (jacobian[0] + jacobian[2]).numpy(), "center")
    assert_near(DCGD(split=2)(jacobian, rows=[3, 0, 2]), expected, 1e-12)


@pytest.mark.parametrize("variant", ["center", "average", "projection"])
def test_dcgd_without_a_second_group_is_the_sum(variant: Any) -> None:
    rows = gaussian(3, 4)
    for jacobian, split in ((rows, 3), (torch.cat([rows[:1], torch.zeros_like(rows)]), 1)):
        assert_near(DCGD(variant, split=split)(jacobian), jacobian.sum(0), 1e-12)
    for seed in range(10):  # a group that cancels up to rounding
        rows = gaussian(4, 6, seed)
        jacobian = torch.cat([rows, -rows[1:].sum(0, keepdim=True)])
        assert_near(DCGD(variant)(jacobian), jacobian[0], 1e-12)


@pytest.mark.parametrize("variant", ["center", "average", "projection"])
def test_dcgd_of_opposed_rows(variant: Any) -> None:
    row = gaussian(1, 6)
    direction = DCGD(variant)(torch.cat([row, -3.0 * row]))
    assert float(direction.norm()) <= 1e-14 * float(row.norm())


# --- Chebyshev center --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFICULT)
def test_chebyshev_center_follows_its_paper(name: str) -> None:
    jacobian = DIFFICULT[name]
    rows = jacobian[norms_of(jacobian) > 0].numpy()
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    w = exact_min_norm(rows / lengths) if len(rows) else np.zeros(jacobian.shape[1])
    size = np.linalg.norm(w)
    if size < 1e-12:  # no direction helps every loss
        assert_near(ChebyshevCenter()(jacobian), np.zeros_like(w), 0.0)
        return
    v = w / size
    assert_near(ChebyshevCenter()(jacobian), (rows @ v).sum() * v, 1e-8)


def test_chebyshev_center_is_furthest_from_every_facet() -> None:
    draws = np.random.default_rng(0)
    for seed in range(5):
        jacobian = gaussian(3, 4, seed)
        units = (jacobian / norms_of(jacobian).unsqueeze(1)).numpy()
        direction = ChebyshevCenter()(jacobian).numpy()
        v = direction / np.linalg.norm(direction)
        for _ in range(100):
            other = v + 0.1 * draws.standard_normal(4)
            assert (units @ other).min() / np.linalg.norm(other) < (units @ v).min()


@pytest.mark.parametrize("name", PAIRS)
def test_chebyshev_center_of_two_is_dcgd(name: str) -> None:
    jacobian = PAIRS[name]
    assert_near(ChebyshevCenter()(jacobian), DCGD()(jacobian), 1e-9)


def test_chebyshev_center_of_many() -> None:
    jacobian = with_cosine(64, -0.9, columns=80)
    direction = ChebyshevCenter()(jacobian).numpy()
    progress = jacobian.numpy() @ direction  # all rows are alike: all progress is the same
    assert_near(progress, np.full(64, progress.mean()), 1e-9)
    assert progress.mean() > 0


# --- PCD ---------------------------------------------------------------------------------------------------------


class _PriorityConstrained:
    """Algorithm 1 of Varam and AlHajri, enumerating which constraints bind, without their 1e-8."""

    def __init__(self, tau: float, beta: float) -> None:
        self.tau, self.beta = tau, beta
        self.steps, self.squared = 0, np.zeros(1)

    def __call__(self, rows: Array) -> Array:
        self.steps += 1
        self.squared = self.beta * self.squared + (1 - self.beta) * (rows**2).sum(1)
        typical = np.sqrt(self.squared / (1 - self.beta**self.steps))
        g = rows / np.where(typical > 0, typical, 1.0)[:, None]
        first = np.linalg.norm(rows[0])
        nearest = self._nearest(g)
        length = np.linalg.norm(nearest)
        if first == 0 or length <= 1e-7 * np.linalg.norm(g[0]):
            return np.zeros_like(rows[0])
        direction: Array = nearest * first / length
        return direction

    def _nearest(self, g: Array) -> Array:
        shares = self.tau * (g**2).sum(1)
        constraints = [k for k in range(1, len(g)) if g[k] @ g[k] > 0]
        for count in range(len(constraints) + 1):
            for binding in combinations(constraints, count):
                a = g[list(binding)]
                if count and np.linalg.matrix_rank(a, 1e-5 * np.linalg.norm(a, axis=1).min()) < count:
                    continue
                multipliers = np.linalg.solve(a @ a.T, shares[list(binding)] - a @ g[0]) if count else np.zeros(0)
                x = g[0] + multipliers @ a
                if (multipliers >= -1e-9).all() and all(g[k] @ x >= shares[k] - 1e-9 for k in constraints):
                    return x
        return g[0]  # no direction gives every other loss its share


@pytest.mark.parametrize("tau", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("name", DIFFICULT)
def test_pcd_follows_its_paper(name: str, tau: float) -> None:
    jacobian = DIFFICULT[name]
    method, reference = PCD(tau, beta=0.8), _PriorityConstrained(tau, 0.8)
    for step in range(4):
        turned = (1.0 + step % 3) * jacobian.roll(step, 1)
        turned[-1:] *= 3.0**step
        expected = reference(turned.numpy())
        assert_near(method(turned), expected, 1e-8)


def test_pcd_of_two_in_closed_form() -> None:
    for seed in range(20):
        jacobian = gaussian(2, 3, seed) * torch.tensor([[1.0], [1e6]], dtype=torch.float64)
        first, second = (jacobian / norms_of(jacobian).unsqueeze(1)).numpy()
        x = first + max(0.0, 0.3 - first @ second) * second
        expected = x / np.linalg.norm(x) * float(norms_of(jacobian)[0])
        assert_near(PCD(0.3)(jacobian), expected, 1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(16, 20), (64, 100)])
def test_pcd_of_many_meets_the_optimality_conditions(rows: int, columns: int) -> None:
    jacobian = gaussian(rows, columns)
    norms = norms_of(jacobian)
    weights = PCD(0.1).solve(jacobian @ jacobian.mT)
    multipliers = weights * norms / (weights[0] * norms[0])  # of the unit rows, the first one's being 1
    units = jacobian / norms.unsqueeze(1)
    surplus = units @ (multipliers @ units) - 0.1
    assert bool((multipliers >= 0).all())
    assert bool((surplus[1:] >= -1e-10).all())
    assert 0 < int((multipliers[1:] > 0).sum()) < rows - 1
    assert_near(surplus[1:][multipliers[1:] > 0], torch.zeros(int((multipliers[1:] > 0).sum())), 0.0, 1e-10)


def test_pcd_owes_a_share_of_the_usual_progress() -> None:
    """After steps of norm 1 a gradient of norm 1/10 constrains as much as a tenth of one."""
    method = PCD(0.5, beta=0.999)
    steady = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for _ in range(50):
        method(steady)
    weaker = steady * torch.tensor([[1.0], [0.1]], dtype=torch.float64)
    expected = torch.tensor([1.0, 0.05], dtype=torch.float64)
    assert_near(method(weaker), expected / expected.norm(), 1e-3)


def test_pcd_does_not_see_the_scale_of_the_other_losses() -> None:
    jacobian = gaussian(4, 6)
    factors = torch.tensor([[1.0], [1e-9], [1e3], [1e9]], dtype=torch.float64)
    plain, scaled = PCD(0.3), PCD(0.3)
    for step in range(3):
        rows = jacobian.roll(step, 1)
        assert_near(scaled(factors * rows), plain(rows), 1e-9)


def test_pcd_without_its_primary_loss_does_not_step() -> None:
    jacobian = gaussian(3, 4)
    assert_near(PCD()(jacobian, rows=[2, 1, 3]), torch.zeros(4), 0.0)
    without = jacobian.clone()
    without[0] = 0.0
    assert_near(PCD()(without), torch.zeros(4), 0.0)
    first_last = PCD()(jacobian[[1, 2, 0]], rows=[1, 2, 0])
    assert_near(first_last, PCD()(jacobian), 1e-12)


def test_pcd_follows_the_primary_loss_where_the_others_are_opposed() -> None:
    row = gaussian(1, 6, seed=1)
    jacobian = torch.cat([gaussian(1, 6), row, -2.0 * row])
    assert_near(PCD(0.02)(jacobian), jacobian[0], 1e-12)
    orthogonal = PCD(0.0)(jacobian)  # which harms neither
    assert abs(float(orthogonal @ row[0])) <= 1e-12
    assert math.isclose(float(orthogonal.norm()), float(jacobian[0].norm()), rel_tol=1e-12)


# --- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: DCGD("middle"),
            r"DCGD: `variant` must be one of \['center', 'average', 'projection'\], got 'middle'",
        ),
        (lambda: DCGD(split=0), r"DCGD: `split` must be an integer >= 1, got 0"),
        (lambda: DCGD(split=True), r"DCGD: `split` must be an integer >= 1, got True"),
        (lambda: PCD(1.5), r"PCD: `tau` must be in \[0, 1\], got 1\.5"),
        (lambda: PCD(math.nan), r"PCD: `tau` must be in \[0, 1\], got nan"),
        (lambda: PCD(beta=1.0), r"PCD: `beta` must be in \[0, 1\), got 1\.0"),
    ],
)
def test_options_are_checked(build: Callable[[], Aggregator], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_weights_are_one_a_loss() -> None:
    gramians: Tensor = torch.stack([matrix @ matrix.mT for matrix in (gaussian(4, 6), gaussian(4, 2))])
    for method in (DCGD(), ChebyshevCenter(), PCD()):
        assert method.solve(gramians).shape == (2, 4)
