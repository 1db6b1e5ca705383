"""Methods that weigh the gradients without looking at their angles: fixed, drawn, by their norms, over time."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from scipy.stats import kstest
from support import DIFFICULT, assert_near, assert_same_bits, gaussian, losses_of, norms_of, state_of
from torch import Tensor

from gradsurgery.aggregators import (
    CRMOGM,
    DBMTL,
    MGDA,
    Aggregator,
    AlignedMTL,
    Chain,
    Constant,
    DualProj,
    ExcessMTL,
    GradDrop,
    GradNorm,
    MConFIG,
    Mean,
    MoCo,
    NormalizedSGD,
    PCGrad,
    Random,
    Sum,
    TrimmedMean,
    UPGrad,
)
from gradsurgery.kernels.host import _starts
from gradsurgery.solvers.nnls import _identity


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Constant ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_constant_is_the_weighted_sum(kind: type) -> None:
    jacobian = gaussian(3, 5)
    direction = Constant(kind([0.5, -2.0, 3.0]))(jacobian)
    assert_near(direction, 0.5 * jacobian[0] - 2.0 * jacobian[1] + 3.0 * jacobian[2], 1e-15)


def test_constant_gives_each_objective_its_weight() -> None:
    jacobian = torch.eye(2)
    assert Constant([1.0, 2.0, 4.0])(jacobian, rows=[2, 0]).tolist() == [4.0, 1.0]
    assert Constant([1.0, 2.0, 4.0])(jacobian, rows=[0, 1]).tolist() == [1.0, 2.0]


def test_constant_weights_stay_constant() -> None:
    method = Constant([1.0, 2.0])
    for shape in ((2, 2), (3, 2, 2)):
        method.weights(torch.zeros(shape, dtype=torch.float64)).zero_()
    assert method.weights(torch.eye(2)).tolist() == [1.0, 2.0]
    assert method.state_dict() == {}


def test_constant_needs_a_weight_for_every_loss() -> None:
    with pytest.raises(ValueError, match=r"^Constant: `weights` must have one entry a loss, got 2 for loss 2\."):
        Constant([1.0, 2.0])(torch.eye(3))
    with pytest.raises(ValueError, match=r"^Constant: `weights` must .*, got 1 for loss 4\."):
        Constant([1.0])(torch.eye(1), rows=[4])
    for wrong in ([], [1.0, math.nan], [math.inf], torch.ones(2, 2), [[1.0, 2.0]]):
        with pytest.raises(ValueError, match=r"^Constant: `weights` must be finite numbers, one a loss, got \["):
            Constant(wrong)
    with pytest.raises(ValueError, match=r"^Constant: `weights` must be .*, got 1\.0\."):
        Constant(1.0)
    for wrong in ("12", ["1", "2"], [1.0, [2.0]], None):
        with pytest.raises(TypeError, match=r"^Constant: `weights` must be finite numbers, one a loss, got "):
            Constant(wrong)


# --- what matters how much ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [UPGrad, DualProj, AlignedMTL])
def test_preferences_are_a_vector_with_something_in_it(build: type) -> None:
    rule = f"^{build.__name__}: `preference` must be finite numbers >= 0, not all zero, one a loss, got "
    for wrong in ([], [0.0, 0.0], [1.0, -1.0], [math.nan], torch.ones(2, 2), torch.ones(())):
        with pytest.raises(ValueError, match=rule):
            build(preference=wrong)
    for wrong in ("12", ["a"], {}):
        with pytest.raises(TypeError, match=rule):
            build(preference=wrong)
    for kind in (list, tuple, torch.tensor):
        assert build(preference=kind([1, 0, 2])).preference == (1.0, 0.0, 2.0)


def test_preferences_of_absent_losses_are_not_used() -> None:
    jacobian = gaussian(3, 5)
    every = [0.5, 0.0, 3.0, 9.0, 1.0]
    for rows in ([0, 1, 2], [2, 0, 1], [4, 1, 0]):
        present = UPGrad(preference=[every[row] for row in rows])
        assert_same_bits(UPGrad(preference=every)(jacobian, rows=rows), present(jacobian))
    with pytest.raises(ValueError, match=r"^UPGrad: `preference` must have one entry a loss, got 2 for loss 2\."):
        UPGrad(preference=[1.0, 1.0])(jacobian)


def test_what_is_kept_for_all_calls_cannot_be_changed() -> None:
    for shared in (UPGrad().preferences(3), _identity(3, 0.5), *_starts(4, 2)):
        with pytest.raises(ValueError, match="read-only"):
            shared[0] = 7


# --- Random ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 16, 40])
def test_random_weights_lie_on_the_simplex(count: int) -> None:
    weights = Random(generator=generator()).weights(torch.eye(count).expand(7, 3, count, count))
    assert weights.shape == (7, 3, count)
    assert bool((weights > 0).all())
    assert_near(weights.sum(-1), torch.ones(7, 3), 1e-14)
    assert count == 1 or float(weights.std(dim=(0, 1)).min()) > 0


@pytest.mark.parametrize("count", [3, 17])
def test_random_weights_are_the_softmax_of_normal_numbers(count: int) -> None:
    method = Random(generator=generator(1))
    alone = torch.stack([method.weights(torch.eye(count)) for _ in range(1500)])
    together = method.weights(torch.eye(count).expand(1500, count, count))
    for weights in (alone, together):
        logarithms = weights.log()
        for first, second in ((0, 1), (1, 2), (2, 0)):
            ratios = (logarithms[:, first] - logarithms[:, second]) / math.sqrt(2)
            assert kstest(ratios.numpy(), "norm").pvalue > 1e-3
        assert_near(weights.mean(0), torch.full((count,), 1 / count), 0.05)


def test_random_draws_follow_the_generator() -> None:
    one, same, other = (Random(generator=generator(seed)) for seed in (1, 1, 2))
    first = [one.weights(torch.eye(4)) for _ in range(3)]
    assert_same_bits([same.weights(torch.eye(4)) for _ in range(3)], first)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other.weights(torch.eye(4)))
    torch.manual_seed(3)
    default = Random().weights(torch.eye(4))
    assert_same_bits(Random(generator=generator(3)).weights(torch.eye(4)), default)


# --- NormalizedSGD -----------------------------------------------------------------------------------------------


class LiteralNormalizedSGD:
    """The formulas on the vectors, one loss after another."""

    def __init__(self, burn_in: int) -> None:
        self.burn_in = burn_in
        self.calls: dict[int, int] = {}
        self.initial: dict[int, float] = {}

    def __call__(self, jacobian: Tensor, rows: Sequence[int]) -> Tensor:
        norms = {row: float(gradient.norm()) for row, gradient in zip(rows, jacobian, strict=True)}
        present = [row for row in rows if norms[row] > 0]
        for row in present:
            seen = self.calls.get(row, 0)
            if seen in (0, self.burn_in):
                self.initial[row] = norms[row]
            self.calls[row] = seen + 1
        rates = {row: norms[row] / self.initial[row] for row in present}
        length = sum(rates[row] / sum(rates.values()) * norms[row] for row in present)
        total = torch.zeros_like(jacobian[0])
        for row, gradient in zip(rows, jacobian, strict=True):
            if norms[row] > 0:
                total += length * gradient / norms[row]
        return total


@pytest.mark.parametrize("burn_in", [0, 1, 3])
def test_normalized_sgd_is_its_formula(burn_in: int) -> None:
    method, literal = NormalizedSGD(burn_in), LiteralNormalizedSGD(burn_in)
    for step, rows in enumerate([[0, 1], [1, 0], [2, 0, 1], [2], [0, 1, 2], [0, 1, 2], [2, 1], [0, 1, 2]]):
        jacobian = gaussian(len(rows), 6, seed=step) * 10.0 ** torch.tensor(rows).double().unsqueeze(1)
        if step == 4:
            jacobian[1] = 0.0
        assert_near(method(jacobian, rows=rows), literal(jacobian, rows), 1e-13)


@pytest.mark.parametrize("name", DIFFICULT)
def test_normalized_sgd_starts_with_the_mean_norm(name: str) -> None:
    jacobian = DIFFICULT[name]
    norms = norms_of(jacobian)
    present = norms > 0
    units = (jacobian[present] / norms[present].unsqueeze(1)).sum(0)
    mean = float(norms[present].mean()) if present.any() else 0.0
    assert_near(NormalizedSGD()(jacobian), mean * units, 1e-13, 1e-14 * mean)


def test_normalized_sgd_takes_initial_norms_anew() -> None:
    method = NormalizedSGD(burn_in=2)
    jacobian = torch.eye(2, dtype=torch.float64)
    factors = torch.tensor([[1.0], [0.5]])
    for scale, expected in ((1.0, 1.0), (factors, 5 / 6), (factors, 0.75), (factors, 0.75)):
        assert_near(method(scale * jacobian), torch.full((2,), expected, dtype=torch.float64), 1e-14)


def test_normalized_sgd_counts_calls() -> None:
    for wrong in (-1, 0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"^NormalizedSGD: `burn_in` must be an integer >= 0, got {wrong}\."):
            NormalizedSGD(wrong)


# --- Chain -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_before_a_jacobian_method_are_scaled_in_single_precision(dtype: torch.dtype) -> None:
    jacobian = torch.tensor([[6e4, 0.3], [0.0, 1.7]]).to(dtype)
    found = Chain(Constant([2.0, 0.5]), TrimmedMean())(jacobian)
    assert found.dtype == dtype
    exact = torch.tensor([1.0, 0.25], dtype=torch.float64) @ jacobian.double()
    assert_same_bits(found, exact.to(dtype))


@pytest.mark.parametrize("last", [GradDrop, TrimmedMean, DBMTL, MoCo, ExcessMTL, MConFIG])
@pytest.mark.parametrize("first", [MGDA, lambda: GradNorm(alpha=0.0), lambda: Constant([1e200, 1.0])])
def test_numbers_that_overflow_in_a_chain(first: Callable[[], Aggregator], last: Callable[[], Aggregator]) -> None:
    chain, calm = Chain(first(), last()), 1e-200 * gaussian(2, 3)
    chain(calm, torch.ones(2))
    before = state_of(chain)
    direction = chain(1e200 * gaussian(2, 3), torch.ones(2))
    assert not bool(direction.isfinite().all())
    assert_same_bits(state_of(chain), before)


def test_numbers_that_overflow_between_the_methods_of_a_chain() -> None:
    chain = Chain(GradNorm(alpha=0.0), Constant([1e200, 1.0]), MGDA())
    for _ in range(2):
        assert bool(chain(gaussian(2, 3)).isnan().all())
        assert not chain.state_dict()
    assert bool(Chain(Constant([1.0, 1.0]), MGDA())(gaussian(2, 3)).isfinite().all())


# --- CRMOGM ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("build", [MGDA, UPGrad, lambda: GradNorm(lr=0.5), lambda: PCGrad(generator=generator(4))])
def test_crmogm_is_a_moving_average(build: type, alpha: float) -> None:
    method, inner = CRMOGM(build(), alpha), build()
    averages: dict[int, float] = {}
    for step, rows in enumerate([[0, 1], [0, 1], [2, 1], [0, 1, 2], [1], [2, 0, 1]]):
        jacobian = gaussian(len(rows), 4, seed=step)
        losses = losses_of(jacobian)
        gramian = jacobian @ jacobian.mT
        for row, weight in zip(rows, inner.solve(gramian, losses, rows=rows).tolist(), strict=True):
            averages[row] = alpha * averages.get(row, weight) + (1 - alpha) * weight
        expected = torch.tensor([averages[row] for row in rows], dtype=torch.float64)
        assert_near(method.solve(gramian, losses, rows=rows), expected, 1e-13)


def test_crmogm_of_fixed_weights_is_those_weights() -> None:
    method = CRMOGM(Mean(), 0.7)
    for step in range(4):
        jacobian = gaussian(3, 5, seed=step)
        assert_same_bits(method(jacobian), Mean()(jacobian))


def test_crmogm_forgets_with_its_method() -> None:
    method, jacobian = CRMOGM(GradNorm(alpha=0.0, lr=0.5)), torch.diag(torch.tensor([1.0, 9.0]))
    first = [method(jacobian) for _ in range(3)]
    method.reset()
    assert_same_bits([method(jacobian) for _ in range(3)], first)


def test_crmogm_inside_a_chain() -> None:
    jacobian = gaussian(3, 5)
    assert_near(Chain(CRMOGM(MGDA()), Sum())(jacobian), MGDA()(jacobian), 1e-12)


@pytest.mark.parametrize("method", [3, GradDrop(), Chain(Mean(), GradDrop()), MGDA])
def test_crmogm_needs_a_gramian_method(method: object) -> None:
    name = type(method).__name__
    message = rf"^CRMOGM: `method` must be an aggregator that needs only the Gramian, got {name}\."
    with pytest.raises(TypeError, match=message):
        CRMOGM(method)  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_crmogm_needs_a_share(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"^CRMOGM: `alpha` must be in \[0, 1\), got {alpha}\."):
        CRMOGM(MGDA(), alpha)
