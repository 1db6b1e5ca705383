"""Nash-MTL and FairGrad against closed forms, extended precision and a projection; their limits and their state."""

import copy
import math

import numpy as np
import pytest
import torch
from precise import bargaining_direction, well_posed
from scipy.optimize import least_squares
from support import DIFFICULT, assert_near, assert_same_bits, condition_of, gaussian, norms_of, state_of, with_cosine
from test_contract import check_permutation_equivariant, check_state_round_trip
from torch import Tensor

from gradsurgery.aggregators import Contract, FairGrad, NashMTL
from gradsurgery.solvers.bargaining import bargaining_weights

SIZES = [2, 3, 8, 16, 64]
ALPHAS = [0.5, 1.0, 2.0, 10.0]


def gramian_of(jacobian: Tensor) -> Tensor:
    return jacobian @ jacobian.mT


# --- exact -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", well_posed(2))
@pytest.mark.parametrize("count", SIZES)
def test_direction_is_exact(count: int, kind: str) -> None:
    jacobian = torch.from_numpy(well_posed(count)[kind])
    assert condition_of(jacobian) <= 1e6
    for alpha in ALPHAS if count <= 16 else [1.0, 2.0]:
        assert_near(FairGrad(alpha)(jacobian), bargaining_direction(jacobian.numpy(), 1 / alpha), 1e-9)
    single = jacobian.float()
    assert_near(FairGrad()(single), bargaining_direction(single.double().numpy(), 0.5), 1e-6)


@pytest.mark.parametrize("cosine", [0.9999, 0.3, 0.0, -0.5, -0.99, -0.9999, -0.999999])
@pytest.mark.parametrize("ratio", [1.0, 30.0, 1e6])
def test_nash_of_two(cosine: float, ratio: float) -> None:
    angle = math.acos(cosine)
    jacobian = torch.tensor([[1.0, 0.0], [ratio * math.cos(angle), ratio * math.sin(angle)]], dtype=torch.float64)
    weights = NashMTL(normalize=False).weights(gramian_of(jacobian))
    assert_near(weights * norms_of(jacobian), torch.ones(2).double() / math.sqrt(2) / math.cos(angle / 2), 1e-9)


@pytest.mark.parametrize("name", ["two in conflict", "five", "strong conflict", "nearly parallel", "duplicates"])
def test_published_forms(name: str) -> None:
    """What the codes of both papers solve: G divided by its norm for one, least squares for the other."""
    gramian = gramian_of(DIFFICULT[name])
    weights = NashMTL().weights(gramian)
    assert_near(gramian / gramian.norm() @ weights, 1 / weights, 1e-9)
    matrix = gramian.numpy()
    start = np.full(len(matrix), 1 / len(matrix))
    for alpha in (1.0, 2.0):
        power = 1 / alpha
        found = least_squares(
            lambda x, p=power: matrix @ x - x**-p, start, bounds=(0, np.inf), xtol=1e-15, ftol=1e-15, gtol=1e-15
        )
        assert_near(FairGrad(alpha).weights(gramian), found.x, 1e-5)


def test_alpha_one_is_nash() -> None:
    for jacobian in (DIFFICULT["five"], DIFFICULT["zero row"], DIFFICULT["opposed, and others"]):
        gramian = gramian_of(jacobian)
        assert_same_bits(FairGrad(1.0).weights(gramian), NashMTL(normalize=False).weights(gramian))
        length = gramian.norm().sqrt()
        assert_near(NashMTL().weights(gramian), length * FairGrad(1.0).weights(gramian), 1e-9)


@pytest.mark.parametrize("name", ["five", "six at cosine -.99", "norms a million apart", "zero row", "rank two"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_degree_of_homogeneity(alpha: float, name: str) -> None:
    jacobian = DIFFICULT[name]
    degree = (1 - alpha) / (1 + alpha)
    expected = FairGrad(alpha)(jacobian)
    for scale in (1e-12, 1e-5, 3.0, 1e7, 1e12):
        assert_near(FairGrad(alpha)(scale * jacobian) / scale**degree, expected, 1e-8)
        assert_near(NashMTL(normalize=False)(scale * jacobian), NashMTL(normalize=False)(jacobian), 1e-8)


def test_a_batch_of_very_different_problems() -> None:
    problems = [DIFFICULT[name] for name in ("opposed, and others", "strong conflict", "norms a million apart")]
    problems = [rows[:4] if len(rows) > 4 else rows for rows in problems] + [torch.zeros(4, 3, dtype=torch.float64)]
    problems += [-problems[0].flip(0), gaussian(4, 1), gaussian(4, 9)]
    gramians = np.stack([gramian_of(rows).numpy() for rows in problems])
    for power in (1.0, 0.5, 0.1, 2.0):
        together = bargaining_weights(gramians, power)
        for weights, gramian, rows in zip(together, gramians, problems, strict=True):
            alone = bargaining_weights(gramian[None], power)[0]
            longest = float(norms_of(rows).max()) * float(np.abs(alone).max())
            assert_near(weights @ rows.numpy(), alone @ rows.numpy(), 1e-8, 1e-12 * longest)


def _in_mild_conflict(count: int, seed: int) -> Tensor:
    """Unit rows whose Gramian has a condition number of the order of 20."""
    left, right = (
        torch.linalg.qr(gaussian(count, count, seed))[0],
        torch.linalg.qr(gaussian(2 * count, count, seed))[0],
    )
    rows = left * torch.logspace(0, math.log10(20**-0.5), count, dtype=torch.float64) @ right.mT
    return rows / norms_of(rows).unsqueeze(1)


@pytest.mark.parametrize("ratio", [1.0, 2e3, 1e6, 1e12])
@pytest.mark.parametrize("alpha", [30.0, 70.0, 100.0, 1e3, 1e6])
def test_weights_may_be_smaller_than_any_number(alpha: float, ratio: float) -> None:
    """The gains are ``w^(-1 / alpha)``, or more than that of a weight too small to be told from zero."""
    for count, seed in ((2, 0), (3, 1), (8, 2), (8, 3)):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        norms = torch.logspace(0, math.log10(ratio), count, dtype=torch.float64)[order]
        jacobian = norms.unsqueeze(1) * _in_mild_conflict(count, seed)
        weights = FairGrad(alpha).weights(gramian_of(jacobian))
        assert bool((weights > 0).all())
        direction = weights @ jacobian
        gains = jacobian @ direction
        excess = (gains - weights ** (-1 / alpha)) / norms / direction.norm()
        assert float(excess.min()) >= -1e-12
        assert float(excess[weights > 1e-130 * weights.max()].max()) <= 1e-12
    gramian = torch.tensor([[1.0, 0.3e6], [0.3e6, 1e12]], dtype=torch.float64)  # G w = (1, 3e5)
    assert_near(FairGrad(alpha).weights(gramian)[:1], torch.ones(1), 1e-12)


# --- where no direction helps every loss -------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFICULT)
@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0, 50.0])
def test_always_finite(alpha: float, name: str) -> None:
    method = FairGrad(alpha)
    jacobian = DIFFICULT[name]
    for matrix in (jacobian, jacobian.float(), torch.cat([jacobian, -jacobian.mean(0, keepdim=True)])):
        weights = method.solve(gramian_of(matrix.double()))
        assert bool(weights.isfinite().all())
        assert bool((weights[norms_of(matrix) == 0] == 0).all())
        assert bool(method(matrix).isfinite().all())


@pytest.mark.parametrize("name", ["exactly opposed", "opposed, norms differ", "zero and opposed", "one column"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_losses_that_only_oppose_each_other_stand_still(alpha: float, name: str) -> None:
    jacobian = DIFFICULT[name]
    jacobian = jacobian[(jacobian @ jacobian[0] / norms_of(jacobian[:1])).abs() >= 0.999999 * norms_of(jacobian)]
    assert_near(FairGrad(alpha)(jacobian), torch.zeros_like(jacobian[0]), 0.0)
    assert_near(NashMTL()(jacobian), torch.zeros_like(jacobian[0]), 0.0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_others_bargain_for_what_opposed_losses_leave(alpha: float) -> None:
    others, opposed = gaussian(3, 7, seed=3), gaussian(1, 7, seed=4)
    jacobian = torch.cat([others[:1], 5.0 * opposed, others[1:], -0.01 * opposed])
    along = opposed / opposed.norm()
    left = others - (others @ along.mT) * along
    assert_near(FairGrad(alpha)(jacobian), bargaining_direction(left.numpy(), 1 / alpha), 1e-9)
    errors = []
    for ridge in (1e-2, 1e-4, 1e-6):  # it is the limit when each row gets a component of its own that vanishes
        own = math.sqrt(ridge) * torch.diag(norms_of(jacobian))
        ridged = FairGrad(alpha)(torch.cat([jacobian, own], dim=1))[:7]
        errors.append(float((ridged - FairGrad(alpha)(jacobian)).norm()))
    if alpha <= 2:  # a vanishing gain still counts for much where alpha is large
        assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0.0


def test_rows_that_cancel_in_threes() -> None:
    triangle = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]], dtype=torch.float64)
    jacobian = torch.zeros(4, 3, dtype=torch.float64)
    jacobian[:3, :2] = triangle * torch.tensor([[3.0], [1e-3], [1.0]], dtype=torch.float64)
    jacobian[3] = torch.tensor([1.0, 2.0, 0.5])
    for alpha in ALPHAS:
        expected = torch.tensor([0.0, 0.0, 0.5 ** ((1 - alpha) / (1 + alpha))], dtype=torch.float64)
        assert_near(FairGrad(alpha)(jacobian), expected, 1e-9)


# --- options -----------------------------------------------------------------------------------------------------


def test_max_norm_shortens_long_directions_only() -> None:
    jacobian = gaussian(4, 9, seed=1)
    free = NashMTL()(jacobian)
    assert_near(NashMTL(max_norm=0.5)(jacobian), 0.5 * free / free.norm(), 1e-12)
    assert_same_bits(NashMTL(max_norm=2.0 * float(free.norm()))(jacobian), free)
    batch = torch.stack([jacobian, 1e-3 * jacobian, 0.0 * jacobian])
    expected = torch.stack([free / free.norm(), 1e-3 * free, 0.0 * free])
    assert_near(NashMTL(max_norm=1.0)(batch), expected, 1e-12)


def test_weights_are_kept_between_updates() -> None:
    method, exact = NashMTL(update_every=3), NashMTL()
    steps = [gaussian(3, 6, seed=seed) for seed in range(7)]
    for step, jacobian in enumerate(steps):
        weights = exact.weights(gramian_of(steps[step - step % 3]))
        assert_near(method(jacobian), weights @ jacobian, 1e-12)


def test_kept_weights_are_clipped_in_every_step() -> None:
    method = NashMTL(update_every=10, max_norm=1.0)
    for scale in (1e-3, 1.0, 50.0):
        direction = method(scale * gaussian(3, 6))
        assert float(direction.norm()) <= 1.0 + 1e-12
        assert (float(direction.norm()) > 0.999) == (scale > 0.1)


def test_a_loss_without_a_weight_is_solved_for() -> None:
    method, exact = NashMTL(update_every=100), NashMTL()
    jacobian = gaussian(4, 6)
    first = method(jacobian[:2], rows=[0, 2])
    assert_near(first, exact(jacobian[:2]), 1e-12)
    assert_near(
        method(2.0 * jacobian[:1], rows=[2]), 2.0 * exact.weights(gramian_of(jacobian[:2]))[1] * jacobian[0], 1e-12
    )
    assert_near(method(jacobian[:3], rows=[2, 0, 3]), exact(jacobian[:3]), 1e-12)
    kept = exact.weights(gramian_of(jacobian[:3]))
    assert_near(method(jacobian[1:3], rows=[0, 3]), kept[1:] @ jacobian[1:3], 1e-12)


@pytest.mark.parametrize("name", ["three", "zero row", "one row", "cosine -.99"])
def test_kept_weights_are_state(name: str) -> None:
    contract = Contract(lambda: NashMTL(update_every=4, max_norm=2.0), "gramian", frozenset())
    assert contract.build().stateful
    assert not NashMTL().stateful
    check_state_round_trip(contract, DIFFICULT[name])
    check_permutation_equivariant(contract, DIFFICULT[name])


def test_kept_weights_are_rolled_back_and_reset() -> None:
    method = NashMTL(update_every=2)
    jacobian = gaussian(3, 6)
    method(jacobian)
    before = state_of(method)
    broken = jacobian.clone()
    broken[0, 0] = torch.nan
    assert not bool(method(broken).isfinite().any())
    assert_same_bits(state_of(method), before)
    method.reset()
    assert_same_bits(method(2.0 * jacobian), NashMTL()(2.0 * jacobian))
    with pytest.raises(ValueError, match=r"^NashMTL: `gramian` must keep the shape .* Call reset\(\)"):
        copy.deepcopy(method)(torch.stack([jacobian, jacobian]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NashMTL(max_norm=0.0), "NashMTL: `max_norm` must be None or a finite number > 0, got 0.0"),
        (lambda: NashMTL(max_norm=math.nan), "NashMTL: `max_norm` must be .*, got nan"),
        (lambda: NashMTL(update_every=0), "NashMTL: `update_every` must be an integer >= 1, got 0"),
        (lambda: NashMTL(update_every=1.5), "NashMTL: `update_every` must be .*, got 1.5"),
        (lambda: FairGrad(0.0), "FairGrad: `alpha` must be a finite number > 0, got 0.0"),
        (lambda: FairGrad(math.inf), "FairGrad: `alpha` must be .*, got inf"),
        (lambda: FairGrad(math.nan), "FairGrad: `alpha` must be .*, got nan"),
    ],
)
def test_invalid_options(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


def test_no_loss_gets_worse_with_any_fairness() -> None:
    for name in ("strong conflict", "six at cosine -.9999", "more rows than columns", "opposed, and others"):
        jacobian = DIFFICULT[name]
        for alpha in ALPHAS:
            direction = FairGrad(alpha)(jacobian)
            gains = jacobian @ direction / norms_of(jacobian)
            assert float(gains.min()) >= -1e-9 * float(direction.norm())


def test_more_fairness_brings_the_smallest_gain_closer_to_the_largest() -> None:
    jacobian = with_cosine(3, -0.5) * torch.tensor([[1.0], [4.0], [0.2]], dtype=torch.float64)
    spreads = []
    for alpha in (0.5, 1.0, 2.0, 10.0, 50.0):
        gains = jacobian @ FairGrad(alpha)(jacobian)
        spreads.append(float(gains.max() / gains.min()))
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 2.0
