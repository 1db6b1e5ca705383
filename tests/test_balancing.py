"""LossBalancer: its formula, and what it does when losses are absent, solved, or explode."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings, strategies
from support import assert_near, assert_same_bits, gaussian, jacobians, norms_of, state_of
from torch import Tensor

import gradsurgery as gs


class LiteralBalancer:
    """The formulas on the vectors, with the whole history of each loss."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.history: dict[int, list[float]] = {}

    def __call__(self, jacobian: Tensor, rows: Sequence[int]) -> Tensor:
        norms = {row: float(gradient.norm()) for row, gradient in zip(rows, jacobian, strict=True)}
        present = [row for row in rows if norms[row] > 0]
        usual = {}
        for row in present:
            history = self.history.setdefault(row, [])
            history.insert(0, norms[row])
            discounts = [self.beta**age for age in range(len(history))]
            squares = sum(discount * norm**2 for discount, norm in zip(discounts, history, strict=True))
            usual[row] = math.sqrt(squares / sum(discounts))
        length = sum(norms[row] for row in present) / sum(norms[row] / usual[row] for row in present)
        total = torch.zeros_like(jacobian[0])
        for row, gradient in zip(rows, jacobian, strict=True):
            if norms[row] > 0:
                total += length / usual[row] * gradient
        return total


def weights_of(method: gs.GramianAggregator, *norms: float) -> Tensor:
    """Of orthogonal gradients with these norms."""
    return method.solve(torch.tensor(norms, dtype=torch.float64).square().diag())


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.99, 1.0])
def test_it_is_its_formula(beta: float) -> None:
    method, literal = gs.LossBalancer(beta), LiteralBalancer(beta)
    for step, rows in enumerate([[0, 1], [1, 0], [2, 0, 1], [2], [0, 1, 2], [0, 1, 2], [2, 1], [0, 1, 2]]):
        jacobian = gaussian(len(rows), 6, seed=step) * 10.0 ** torch.tensor(rows).double().unsqueeze(1)
        if step == 4:
            jacobian[1] = 0.0
        assert_near(method(jacobian, rows=rows), literal(jacobian, rows), 1e-13)


def test_averages_by_hand() -> None:
    method = gs.LossBalancer(beta=0.5)
    assert_near(
        weights_of(method, 1.0, 4.0), torch.tensor([2.5, 0.625], dtype=torch.float64), 1e-15
    )  # rows of length 2.5
    method.reset()
    weights_of(method, 1.0, 2.0)
    weights = weights_of(method, math.sqrt(10.0), 2.0)  # the averages of the squares are 7 and 4
    length = (math.sqrt(10.0) + 2.0) / (math.sqrt(10.0 / 7.0) + 1.0)
    assert_near(weights, length / torch.tensor([7.0, 4.0], dtype=torch.float64).sqrt(), 1e-15)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan, math.inf])
def test_beta_is_a_share(wrong: float) -> None:
    with pytest.raises(ValueError, match=rf"^LossBalancer: `beta` must be in \[0, 1\], got {wrong}\."):
        gs.LossBalancer(wrong)


# --- laws --------------------------------------------------------------------------------------------------------


def histories(count: int) -> strategies.SearchStrategy[list[list[float]]]:
    """The norms of ``count`` losses over some calls, zero now and then."""
    norm = strategies.one_of(strategies.just(0.0), strategies.floats(1e-6, 1e6))
    return strategies.lists(strategies.lists(norm, min_size=count, max_size=count), min_size=1, max_size=8)


@given(history=histories(4), beta=strategies.floats(0.0, 1.0))
def test_lengths_add_up_to_those_of_the_gradients(history: list[list[float]], beta: float) -> None:
    method = gs.LossBalancer(beta)
    for norms in history:
        lengths = torch.tensor(norms, dtype=torch.float64)
        weights = weights_of(method, *norms)
        assert_near((weights * lengths).sum(), lengths.sum(), 1e-12)
        assert_same_bits(weights > 0, lengths > 0)


@given(history=histories(3), beta=strategies.floats(0.0, 0.9999))
def test_no_row_is_much_longer_than_the_others_usually_are(history: list[list[float]], beta: float) -> None:
    method = gs.LossBalancer(beta)
    for norms in history:
        weights = weights_of(method, *norms)
        usual = method.average.sqrt()
        lengths = weights * torch.tensor(norms, dtype=torch.float64)
        common = (weights * usual).amax()  # the length that each row usually has
        assert bool((lengths <= common / math.sqrt(1 - beta) * (1 + 1e-9)).all())


@given(
    jacobian=jacobians(dtypes=(torch.float64,)), power=strategies.integers(-60, 60), steps=strategies.integers(1, 5)
)
@settings(max_examples=50)
def test_a_unit_of_all_losses_changes_nothing(jacobian: Tensor, power: int, steps: int) -> None:
    plain, scaled = gs.LossBalancer(), gs.LossBalancer()
    for step in range(steps):
        rows = jacobian.roll(step, 0) * (step + 1.0)
        assert_same_bits(scaled(2.0**power * rows) * 2.0**-power + 0.0, plain(rows) + 0.0)


@given(jacobian=jacobians(dtypes=(torch.float64,)), beta=strategies.floats(0.0, 1.0))
@settings(max_examples=50)
def test_a_unit_of_one_loss_changes_its_length_only(jacobian: Tensor, beta: float) -> None:
    """The direction is the same whatever unit a loss is measured in, but for the common length."""
    units = 2.0 ** torch.arange(len(jacobian)).double().unsqueeze(1)
    plain, other = gs.LossBalancer(beta), gs.LossBalancer(beta)
    for step in range(3):
        rows = jacobian * (1.0 + (torch.arange(len(jacobian)) == step)).unsqueeze(1)
        first, second = (
            plain.solve(rows @ rows.mT),
            other.solve((units * rows) @ (units * rows).mT) * units.squeeze(1),
        )
        present = norms_of(jacobian) > 0
        assert_near(second[present] * first[present].sum(), first[present] * second[present].sum(), 1e-9)


# --- losses that come and go -------------------------------------------------------------------------------------


def test_a_loss_that_comes_alone_is_left_alone() -> None:
    method = gs.LossBalancer()
    row = gaussian(1, 5)
    for rows in ([0, 1], [1], [0], [1, 0], [1]):
        jacobian = gaussian(2, 5)[: len(rows)] * torch.tensor([[1e3], [1.0]])[: len(rows)]
        direction = method(jacobian, rows=rows)
        if len(rows) == 1:
            assert_same_bits(direction, jacobian[0])
    assert_same_bits(method(torch.cat([row, 0.0 * row])), row[0])  # the same beside a solved one


@pytest.mark.parametrize("how", ["absent", "zero"])
def test_the_average_of_a_loss_waits(how: str) -> None:
    method, without = gs.LossBalancer(0.5), gs.LossBalancer(0.5)
    jacobian = torch.diag(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    method(jacobian)
    without(jacobian[:2])
    before = state_of(method)
    for step in range(5):
        others = (1.0 + step) * jacobian[:2]
        direction = method(others, rows=[0, 1]) if how == "absent" else method(torch.cat([others, 0 * others[:1]]))
        assert_same_bits(direction, without(others))
    after = state_of(method)
    assert after.keys() == before.keys() == {"average", "calls"}
    for name in after:
        assert_same_bits(after[name][2], before[name][2])
        assert not torch.equal(after[name][:2], before[name][:2])


def test_gradients_that_are_all_zero_leave_no_trace() -> None:
    method = gs.LossBalancer()
    method(torch.eye(2))
    before = state_of(method)
    assert method(torch.zeros(2, 2)).tolist() == [0.0, 0.0]
    assert_same_bits(state_of(method), before)


# --- losses that explode or are solved ---------------------------------------------------------------------------


def usual_calls(count: int) -> gs.LossBalancer:
    method = gs.LossBalancer(beta=0.99)
    for _ in range(count):
        weights_of(method, 1.0, 1.0, 1.0)
    return method


def test_an_explosion_counts_ten_times_and_is_paid_for() -> None:
    method = usual_calls(1000)
    weights = weights_of(method, 1e4, 1.0, 1.0)
    lengths = weights * torch.tensor([1e4, 1.0, 1.0], dtype=torch.float64)
    assert_near(lengths / lengths[1], torch.tensor([10.0, 1.0, 1.0], dtype=torch.float64), 1e-3)
    weights = weights_of(method, 1.0, 1.0, 1.0)
    assert_near(
        weights, torch.tensor([0.003, 1.4985, 1.4985], dtype=torch.float64), 1e-2
    )  # the others go on as before
    for _ in range(3000):
        weights = weights_of(method, 1.0, 1.0, 1.0)
    assert_near(weights, torch.ones(3).double(), 1e-4)  # it is forgotten


def test_the_weight_of_a_solved_loss_grows_slowly() -> None:
    method = usual_calls(1000)
    before = weights_of(method, 1.0, 1.0, 1.0)
    for _ in range(200):
        after = weights_of(method, 1e-9, 1.0, 1.0)
        growth = (after[0] / after[1]) / (before[0] / before[1])
        assert 1.0 < float(growth) <= 0.99**-0.5 * (1 + 1e-3)
        before = after
    assert_near(after[1:], torch.full((2,), 1.0).double(), 1e-8)  # the others keep their lengths


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_weight_of_a_solved_loss_is_bounded(beta: float) -> None:
    method = gs.LossBalancer(beta)
    for power in range(200):
        weights = weights_of(method, 4.0**-power, 1.0)
        assert float(weights[0] / weights[1]) <= 2.0**40
    assert_near(weights, torch.tensor([2.0**40, 1.0], dtype=torch.float64), 1e-9)


def test_a_rare_long_gradient_does_not_dominate() -> None:
    """Losses that are solved send now and then the gradient of a mistake: it stays in the average of the squares."""
    method = usual_calls(1)
    for step in range(1, 500):
        norm = 1.0 if step % 50 == 0 else 1e-6
        weights = weights_of(method, norm, 1.0, 1.0)
        assert float(weights[0] * norm) <= 10 * float(weights[1])


def test_numbers_that_are_not_finite_leave_no_trace() -> None:
    method = gs.LossBalancer()
    method(torch.eye(3))
    before = state_of(method)
    for wrong in (math.nan, math.inf):
        jacobian = torch.eye(3)
        jacobian[1, 1] = wrong
        assert not bool(method(jacobian).isfinite().all())
        assert_same_bits(state_of(method), before)


# --- with others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [lambda: gs.PCGrad(generator=torch.Generator().manual_seed(1)), gs.UPGrad])
def test_directions_of_balanced_rows(build: type[gs.GramianAggregator]) -> None:
    chain, balancer, direction = gs.Chain(gs.LossBalancer(), build()), gs.LossBalancer(), build()
    for step in range(5):
        jacobian = gaussian(4, 6, seed=step) * torch.tensor([[1.0], [1e3], [1e-3], [5.0]])
        balanced = balancer.solve(jacobian @ jacobian.mT).unsqueeze(1) * jacobian
        assert_near(chain(jacobian), direction(balanced), 1e-9)


def test_each_problem_of_a_batch_has_its_averages() -> None:
    together, alone = gs.LossBalancer(), [gs.LossBalancer() for _ in range(6)]
    for step in range(4):
        problems = gaussian(24, 5, seed=step).view(2, 3, 4, 5) * 10.0 ** torch.arange(6).view(2, 3, 1, 1)
        problems[0, step % 3, step] = 0.0
        found = together.solve(problems @ problems.mT).flatten(0, 1)
        for weights, method, problem in zip(found, alone, problems.flatten(0, 1), strict=True):
            assert_near(weights, method.solve(problem @ problem.mT), 1e-12)
