"""Each method against an independent solution: exact arithmetic, the paper's formula, its literal algorithm."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from precise import aligned_direction, bargaining_direction, equal_cosine_directions
from references import exact_cagrad, exact_dualproj, exact_equal_projections, exact_min_norm, exact_upgrad
from scipy.optimize import nnls
from support import (
    DIFFICULT,
    assert_near,
    assert_parallel,
    assert_same_bits,
    condition_of,
    gaussian,
    norms_of,
    with_cosine,
)
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery import aggregators
from gradsurgery.aggregators import CONTRACTS, Aggregator


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- exact directions --------------------------------------------------------------------------------------------

EXACT: dict[type[Aggregator], Callable[[np.ndarray], np.ndarray]] = {
    gs.MGDA: exact_min_norm,
    gs.UPGrad: exact_upgrad,
    aggregators.DualProj: exact_dualproj,
    aggregators.CAGrad: exact_cagrad,
    gs.IMTLG: exact_equal_projections,
    aggregators.ConFIG: lambda rows: equal_cosine_directions(rows)[1],
    aggregators.NashMTL: lambda rows: math.sqrt(np.linalg.norm(rows @ rows.T)) * bargaining_direction(rows, 1.0),
    aggregators.FairGrad: lambda rows: bargaining_direction(rows, 0.5),
    aggregators.AlignedMTL: lambda rows: aligned_direction(rows, "min", np.full(len(rows), 1 / len(rows))),
}


def _of_condition(condition: float, seed: int) -> Tensor:
    source = np.random.default_rng(seed)
    left, _ = np.linalg.qr(source.standard_normal((5, 5)))
    right, _ = np.linalg.qr(source.standard_normal((7, 5)))
    return torch.from_numpy(left * np.geomspace(1.0, condition**-0.5, 5) @ right.T)


NEAR_A_MILLION = [
    matrix
    for seed in range(60)
    if 3e5 < condition_of(matrix := _of_condition(1e6, seed)) <= 1e6  # of unit rows
]
WELL_CONDITIONED = {
    **{name: matrix for name, matrix in DIFFICULT.items() if condition_of(matrix) <= 1e6},
    **{f"near a million, {number}": matrix for number, matrix in enumerate(NEAR_A_MILLION)},
    "near a million, norms too": NEAR_A_MILLION[0] * torch.logspace(-3, 3, 5, dtype=torch.float64).unsqueeze(1),
}


@pytest.mark.parametrize("name", WELL_CONDITIONED)
@pytest.mark.parametrize("method", EXACT)
def test_direction_is_exact(method: type[Aggregator], name: str) -> None:
    jacobian = WELL_CONDITIONED[name]
    assert_near(method()(jacobian), EXACT[method](jacobian.numpy()), 1e-9)
    single = jacobian.float()
    assert_near(method()(single), EXACT[method](single.double().numpy()), 1e-6)


def test_there_are_enough_well_conditioned_ones() -> None:
    assert len(WELL_CONDITIONED) >= 20
    assert len(NEAR_A_MILLION) >= 5


# --- MGDA --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["two in conflict", "five", "zero row", "norms a million apart", "opposed, and others"]
)
@pytest.mark.parametrize("normalization", ["l2", "loss", "loss+"])
def test_mgda_normalizations(normalization: str, name: str) -> None:
    jacobian = DIFFICULT[name]
    losses = torch.linspace(0.5, 3.0, len(jacobian), dtype=torch.float64)
    norms = norms_of(jacobian)
    scale = {"l2": norms, "loss": losses, "loss+": losses * norms}[normalization]
    rows = jacobian[norms > 0] / scale[norms > 0].unsqueeze(1)
    found = gs.MGDA(normalization)(jacobian, losses)
    assert_near(found, exact_min_norm(rows.numpy()), 1e-8, 1e-12 * float(norms_of(rows).max()))


def test_mgda_has_no_cap_on_weights() -> None:
    """The reference implementation of Sener and Koltun's solver is known for one."""
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 1e4]], dtype=torch.float64)
    assert_near(gs.MGDA().weights(jacobian @ jacobian.mT), torch.tensor([1.0, 1e-8], dtype=torch.float64), 1e-7)
    assert_near(gs.MGDA()(jacobian), torch.tensor([1.0, 1e-4], dtype=torch.float64) / (1 + 1e-8), 1e-12)


# --- UPGrad ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 7, 16, 32])
def test_upgrad_against_scipy(count: int) -> None:
    jacobian = gaussian(count, 60, seed=count)
    matrix = jacobian.numpy()
    expected = np.mean([row + nnls(matrix.T, -row)[0] @ matrix for row in matrix], axis=0)
    assert_near(gs.UPGrad()(jacobian), expected, 1e-9)


@pytest.mark.parametrize("zeros", [1, 3])
def test_upgrad_counts_zero_rows_in_the_average(zeros: int) -> None:
    jacobian = DIFFICULT["five"]
    padded = torch.cat([jacobian[:2], torch.zeros(zeros, 9, dtype=torch.float64), jacobian[2:]])
    assert_near(gs.UPGrad()(padded), gs.UPGrad()(jacobian) * 5 / (5 + zeros), 1e-12)


@pytest.mark.parametrize("cosine", [-0.3, -0.99, -0.9999])
def test_upgrad_of_two_is_half_of_pcgrad(cosine: float) -> None:
    jacobian = with_cosine(2, cosine) * torch.tensor([[1.0], [30.0]], dtype=torch.float64)
    first, second = jacobian
    expected = (first + second - (first @ second) * (second / (second @ second) + first / (first @ first))) / 2
    assert_near(gs.UPGrad()(jacobian), expected, 1e-9)
    assert_near(gs.PCGrad()(jacobian), 2 * expected, 1e-9)


# --- PCGrad ------------------------------------------------------------------------------------------------------


def literal_pcgrad(jacobian: Tensor, draws: torch.Generator) -> Tensor:
    """Algorithm 1 of Yu et al.; the order that row i meets the others in sorts its K uniform draws."""
    order = torch.rand(len(jacobian), len(jacobian), generator=draws, dtype=torch.float64).argsort(-1)
    total = torch.zeros_like(jacobian[0])
    for row in range(len(jacobian)):
        gradient = jacobian[row].clone()
        for other in order[row].tolist():
            inner = torch.dot(gradient, jacobian[other])
            if other != row and inner < 0:
                gradient -= inner / torch.dot(jacobian[other], jacobian[other]) * jacobian[other]
        total += gradient
    return total


@pytest.mark.parametrize("name", DIFFICULT)
def test_pcgrad_is_its_algorithm(name: str) -> None:
    jacobian = DIFFICULT[name]
    method, draws = gs.PCGrad(generator=generator(5)), generator(5)
    for _ in range(4):
        absolute = 1e-12 * float(norms_of(jacobian).max())
        assert_near(method(jacobian), literal_pcgrad(jacobian, draws), 1e-9, absolute)


@pytest.mark.parametrize("count", [3, 10, 20])
def test_pcgrad_with_many_losses(count: int) -> None:
    jacobian = gaussian(count, 15, seed=count)
    method, draws = gs.PCGrad(generator=generator(1)), generator(1)
    for _ in range(3):
        assert_near(method(jacobian), literal_pcgrad(jacobian, draws), 1e-9)


def test_pcgrad_draws_every_order() -> None:
    """A row that conflicts with two others in different ways has two outcomes: here there are three such rows."""
    jacobian = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.6, -0.7]], dtype=torch.float64)
    method = gs.PCGrad(generator=generator())
    seen = {tuple(np.round(method(jacobian).tolist(), 9)) for _ in range(300)}
    assert len(seen) == 8


# --- IMTL-G ------------------------------------------------------------------------------------------------------


def papers_imtlg(jacobian: Tensor) -> Tensor:
    """Equation 3 of Liu et al., with the pseudo-inverse: alpha_2..K = g_1 U' (D U')^+."""
    unit = jacobian / norms_of(jacobian).unsqueeze(1)
    differences = jacobian[0] - jacobian[1:]
    unit_differences = unit[0] - unit[1:]
    alpha = jacobian[0] @ unit_differences.mT @ torch.linalg.pinv(differences @ unit_differences.mT)
    return (1 - alpha.sum()) * jacobian[0] + alpha @ jacobian[1:]


@pytest.mark.parametrize("count", [2, 3, 5, 12, 30])
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_imtlg_is_its_formula(count: int, spread: float) -> None:
    scales = torch.logspace(0, math.log10(spread), count, dtype=torch.float64).unsqueeze(1)
    jacobian = scales * gaussian(count, 50, seed=count)
    direction = gs.IMTLG()(jacobian)
    assert_near(direction, papers_imtlg(jacobian), 1e-8)
    projections = jacobian @ direction / norms_of(jacobian)
    assert_near(projections, projections.mean().expand(count), 1e-10)
    assert float(gs.IMTLG().weights(jacobian @ jacobian.mT).sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("cosine", [0.5, -0.5, -0.99, -0.9999])
def test_imtlg_of_two_shares_by_the_other_norm(cosine: float) -> None:
    jacobian = with_cosine(2, -abs(cosine)) * torch.tensor([[1.0], [9.0 * math.copysign(1, -cosine)]]).double()
    first, second = jacobian
    assert_near(gs.IMTLG()(jacobian), 0.9 * first + 0.1 * second, 1e-9)


@pytest.mark.parametrize("factor", [1.0, 2.0, 1e-3, 1e4])
def test_imtlg_lets_parallel_rows_share(factor: float) -> None:
    base = gaussian(3, 6, seed=2)
    direction = gs.IMTLG()(torch.cat([base, factor * base[:1]]))
    assert_parallel(direction, gs.IMTLG()(base), 1e-9)
    if factor == 1.0:
        assert_near(direction, gs.IMTLG()(base), 1e-9)


def test_imtlg_with_one_parameter() -> None:
    column = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float64)
    assert_near(gs.IMTLG()(column), torch.tensor([3 / 1.75], dtype=torch.float64), 1e-9)
    column[1] = -2.0
    assert_near(gs.IMTLG()(column), torch.zeros(1), 0.0, 1e-12)


@pytest.mark.parametrize("name", ["exactly opposed", "opposed, norms differ", "rank two", "more rows than columns"])
def test_imtlg_stays_where_nothing_serves_all_equally(name: str) -> None:
    jacobian = DIFFICULT[name]
    assert_near(gs.IMTLG()(jacobian), torch.zeros_like(jacobian[0]), 0.0, 1e-10 * float(norms_of(jacobian).max()))


# --- GradNorm ----------------------------------------------------------------------------------------------------


class LiteralGradNorm:
    """The stated loss, differentiated by autograd and stepped on by torch's Adam, one parameter a loss."""

    def __init__(self, count: int, alpha: float, progress: str, lr: float) -> None:
        self.logarithms = [nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(count)]
        self.adam = torch.optim.Adam(self.logarithms, lr=lr)
        self.alpha, self.progress = alpha, progress
        self.initial: dict[int, float] = {}

    def weights(self, norms: Sequence[float], losses: Sequence[float], rows: Sequence[int]) -> Tensor:
        """The weights of this call; learns for the next."""
        logarithms = torch.stack([self.logarithms[row] for row in rows])
        weights = torch.softmax(logarithms, dim=0) * len(rows)
        values = losses if self.progress == "loss" else norms
        present = [position for position, norm in enumerate(norms) if norm > 0]
        for position in present:
            self.initial.setdefault(rows[position], values[position])
        ratios = {p: values[p] / self.initial[rows[p]] for p in present}
        if present:
            mean_ratio = sum(ratios.values()) / len(ratios)
            level = sum(float(weights[p].detach()) * norms[p] for p in present) / len(present)
            targets = {p: level * (ratios[p] / mean_ratio) ** self.alpha for p in present}
            loss = sum((weights[p] * norms[p] - targets[p]).abs() for p in present) / level
            self.adam.zero_grad()
            loss.backward()
            for position, row in enumerate(rows):
                if position not in present:
                    self.logarithms[row].grad = None
            self.adam.step()
        return weights.detach()


def _steps(count: int, seed: int) -> list[tuple[Tensor, Tensor, list[int]]]:
    """Jacobians, losses and rows of a training run in which losses are missing or zero now and then."""
    source = np.random.default_rng(seed)
    steps = []
    for step in range(25):
        rows = list(range(count))
        if step % 3 == 1:
            rows = sorted(source.choice(count, size=source.integers(1, count + 1), replace=False).tolist())
        if step == 4:
            rows.reverse()
        jacobian = gaussian(len(rows), 6, seed=100 * seed + step) * 10.0 ** (
            torch.tensor(rows).double().unsqueeze(1) - 1
        )
        if step % 4 == 2:
            jacobian[source.integers(0, len(rows))] = 0.0
        losses = torch.from_numpy(source.uniform(0.1, 3.0, len(rows)))
        steps.append((jacobian, losses, rows))
    return steps


@pytest.mark.parametrize("progress", ["loss", "gradient"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_gradnorm_is_its_loss_and_adam(count: int, alpha: float, progress: Any) -> None:
    method = gs.GradNorm(alpha, progress=progress, lr=0.05)
    literal = LiteralGradNorm(count, alpha, progress, lr=0.05)
    weights = []
    for jacobian, losses, rows in _steps(count, seed=count):
        expected = literal.weights(norms_of(jacobian).tolist(), losses.tolist(), rows)
        assert_near(method(jacobian, losses, rows=rows), expected @ jacobian, 1e-9)
        weights.append(expected)
    assert count == 1 or float((weights[-1] - weights[-2][: len(weights[-1])]).abs().max()) > 1e-4


def test_gradnorm_on_blocks_and_in_float32() -> None:
    literal = LiteralGradNorm(3, 1.5, "loss", lr=0.025)
    method = gs.GradNorm()
    for jacobian, losses, rows in _steps(3, seed=9):
        single = jacobian.float()
        expected = literal.weights(norms_of(single).tolist(), losses.float().tolist(), rows) @ single.double()
        parts = method([single[:, :2], single[:, 2:].reshape(-1, 2, 2)], losses.float(), rows=rows)
        assert_near(torch.cat([part.flatten() for part in parts]), expected, 1e-6)


def test_gradnorm_balances_the_norms() -> None:
    jacobian = torch.diag(torch.tensor([100.0, 1.0, 0.1])).double()
    method = gs.GradNorm(alpha=0.0)
    for _ in range(600):
        weights = method.weights(jacobian @ jacobian.mT)
    weighted = weights * norms_of(jacobian)
    assert float(weighted.max() / weighted.min()) < 1.2
    assert float(weights.mean()) == pytest.approx(1.0)
    assert float(weights.min()) > 0


@pytest.mark.parametrize("count", [2, 3, 7])
def test_gradnorm_rests_where_the_norms_are_equal(count: int) -> None:
    """Rounding has a sign, too, and Adam would make a full step of it."""
    jacobian = with_cosine(count, -0.7)
    method = gs.GradNorm(alpha=0.0)
    for _ in range(5):
        assert_near(method.weights(jacobian @ jacobian.mT), torch.ones(count), 1e-14)


def test_gradnorm_favours_losses_that_lag_behind() -> None:
    jacobian = torch.eye(2, dtype=torch.float64)
    method = gs.GradNorm(alpha=1.5)
    method(jacobian, torch.tensor([1.0, 1.0]))
    for _ in range(5):
        method(jacobian, torch.tensor([1.0, 0.1]))
    weights = method(jacobian, torch.tensor([1.0, 0.1]))
    assert float(weights[0]) > 1.05 > 0.95 > float(weights[1])


def test_gradnorm_leaves_missing_losses_as_they_were() -> None:
    method = gs.GradNorm(alpha=0.0)
    jacobian = torch.diag(torch.tensor([4.0, 2.0, 1.0])).double()
    for _ in range(3):
        method(jacobian)
    before = {name: value.clone() for name, value in method.state_dict().items() if isinstance(value, Tensor)}
    method(jacobian[[0, 2]], rows=[0, 2])
    after = method.state_dict()
    for name in ("log_weights", "adam.first_moment", "adam.second_moment", "adam.steps"):
        assert_same_bits(after[name][1], before[name][1])
        assert float((after[name][[0, 2]] - before[name][[0, 2]]).abs().min()) > 0


def test_gradnorm_needs_losses_for_their_progress() -> None:
    message = (
        r"^GradNorm: `losses` must be given for progress='loss', got none\. Hand over the loss values, or use .*"
    )
    with pytest.raises(ValueError, match=message):
        gs.GradNorm()(DIFFICULT["three"])


# --- GradDrop ----------------------------------------------------------------------------------------------------


def literal_graddrop(
    block: Tensor, leaks: Sequence[float], draws: torch.Generator, at: Tensor | None = None
) -> Tensor:
    """Algorithm 1 of Chen et al., one coordinate after another."""
    if at is None:
        signed = block.clone()
    else:
        signed = torch.stack([sum(at[n].sign() * row[n] for n in range(len(at))) for row in block])
    uniform = torch.rand(
        signed.shape[1:] if at is None else (1, *signed.shape[1:]), generator=draws, dtype=block.dtype
    )
    uniform = uniform.flatten()
    result = torch.zeros_like(block[0])
    flat = signed.reshape(len(block), -1)
    columns = flat.shape[1]
    for column in range(columns):
        entries = flat[:, column].tolist()
        magnitude = sum(abs(entry) for entry in entries)
        purity = 0.5 * (1.0 + (sum(entries) / magnitude if magnitude > 0 else 0.0))
        positive = float(uniform[column]) < purity
        for k, entry in enumerate(entries):
            keep = 1.0 if (entry > 0 if positive else entry < 0) else 0.0
            share = leaks[k] + (1 - leaks[k]) * keep
            result.reshape(-1, columns)[:, column] += share * block[k].reshape(-1, columns)[:, column]
    return result


def _blocks_draws(source: torch.Generator) -> torch.Generator:
    return generator(int(torch.randint(1 << 62, (), generator=source)))


@pytest.mark.parametrize("leak", [0.0, 0.3, [0.0, 1.0, 0.5, 0.2]])
def test_graddrop_is_its_algorithm(leak: float | list[float]) -> None:
    leaks = leak if isinstance(leak, list) else [leak] * 4
    method, source = gs.GradDrop(leak, generator=generator(3)), generator(3)
    for step in range(4):
        jacobian = gaussian(4, 12, seed=step)
        jacobian[1] *= step  # zero at first
        jacobian[:, 3] = 0.0
        draws = _blocks_draws(source)
        blocks = [jacobian[:, :5], jacobian[:, 5:].reshape(4, 7, 1)]
        for found, block in zip(method(blocks), blocks, strict=True):
            assert_near(found, literal_graddrop(block, leaks, draws), 1e-12)


def test_graddrop_at_a_block_compares_signs_relative_to_its_input() -> None:
    method, source = gs.GradDrop(generator=generator(4)), generator(4)
    differs = 0.0
    for step in range(4):
        rows, z = gaussian(3, 20, seed=step).view(3, 5, 4), gaussian(5, 4, seed=50 + step)
        draws = _blocks_draws(source)
        expected = literal_graddrop(rows, [0.0] * 3, draws, at=z)
        assert_near(method([rows], at=z)[0], expected, 1e-12)
        differs += float((expected - literal_graddrop(rows, [0.0] * 3, generator(0))).norm())
    assert differs > 1.0


def test_graddrop_keeps_one_sign() -> None:
    jacobian = gaussian(5, 200)
    positive, negative = jacobian.clamp_min(0).sum(0), jacobian.clamp_max(0).sum(0)
    direction = gs.GradDrop(generator=generator())(jacobian)
    is_positive = (direction - positive).abs() < 1e-12
    assert bool((is_positive | ((direction - negative).abs() < 1e-12)).all())
    assert 0.3 < float(is_positive.double().mean()) < 0.7


def test_graddrop_keeps_signs_as_often_as_their_purity_says() -> None:
    jacobian = torch.tensor([[3.0], [-1.0]]).expand(2, 20_000)
    kept = gs.GradDrop(generator=generator())(jacobian) > 0
    assert float(kept.double().mean()) == pytest.approx(0.75, abs=0.02)


def test_graddrop_gives_each_objective_its_leak() -> None:
    rows = torch.tensor([[1.0, -1.0], [-3.0, 3.0]])
    assert_same_bits(gs.GradDrop([0.0, 0.0, 1.0])(rows[:1], rows=[2]), rows[0])
    assert_same_bits(gs.GradDrop([1.0, 0.0, 1.0])(rows, rows=[0, 2]), rows.sum(0))


# --- Sum, Mean, Chain --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFICULT)
def test_sum_and_mean(name: str) -> None:
    jacobian = DIFFICULT[name]
    assert_near(gs.Sum()(jacobian), jacobian.sum(0), 1e-14, 1e-15 * float(norms_of(jacobian).max()))
    assert_near(gs.Mean()(jacobian), jacobian.mean(0), 1e-14, 1e-15 * float(norms_of(jacobian).max()))


def test_chain_is_composition() -> None:
    chain = gs.Chain(gs.GradNorm(alpha=0.5, progress="gradient"), gs.MGDA("l2"), gs.PCGrad(generator=generator(2)))
    magnitude, direction, draws = gs.GradNorm(alpha=0.5, progress="gradient"), gs.MGDA("l2"), generator(2)
    for step in range(5):
        jacobian = gaussian(4, 6, seed=step) * torch.tensor([[1.0], [10.0], [0.1], [1.0]], dtype=torch.float64)
        balanced = magnitude.weights(jacobian @ jacobian.mT).unsqueeze(1) * jacobian
        weighted = direction.weights(balanced @ balanced.mT).unsqueeze(1) * balanced
        assert_near(chain(jacobian), literal_pcgrad(weighted, draws), 1e-9)


def test_chain_may_end_with_a_method_that_needs_the_jacobian() -> None:
    chain = gs.Chain(gs.GradNorm(alpha=0.0, lr=0.5), gs.GradDrop(0.25, generator=generator(7)))
    assert chain.needs_jacobian
    magnitude, source = gs.GradNorm(alpha=0.0, lr=0.5), generator(7)
    for step in range(3):
        jacobian = gaussian(3, 6, seed=step)
        balanced = magnitude.weights(jacobian @ jacobian.mT).unsqueeze(1) * jacobian
        expected = literal_graddrop(balanced, [0.25] * 3, _blocks_draws(source))
        assert_near(chain(jacobian), expected, 1e-12)
    with pytest.raises(
        TypeError, match=r"^Chain: `gramian` is not enough for GradDrop\. Call it with the Jacobian\."
    ):
        chain.solve(torch.eye(3))


def test_chain_of_chains_and_with_missing_rows() -> None:
    inner = gs.Chain(gs.GradNorm(alpha=0.0, lr=0.5), gs.Mean())
    chain, magnitude = gs.Chain(inner, gs.MGDA()), gs.GradNorm(alpha=0.0, lr=0.5)
    for rows in ([0, 1, 2], [2, 0], [1], [0, 1, 2]):
        jacobian = torch.diag(torch.tensor([9.0, 3.0, 1.0])).double()[rows]
        weights = magnitude.solve(jacobian @ jacobian.mT, rows=rows) / len(rows)
        balanced = weights.unsqueeze(1) * jacobian
        assert_near(chain(jacobian, rows=rows), exact_min_norm(balanced.numpy()), 1e-8)


# --- draws -------------------------------------------------------------------------------------------------------

RANDOM: list[Callable[[torch.Generator | None], Aggregator]] = [
    lambda source: gs.PCGrad(generator=source),
    lambda source: gs.GradDrop(generator=source),
]


@pytest.mark.parametrize("build", RANDOM, ids=["PCGrad", "GradDrop"])
def test_draws_follow_the_generator(build: Callable[[torch.Generator | None], Aggregator]) -> None:
    jacobian = with_cosine(4, -0.5, columns=30)
    one, same, other = build(generator(1)), build(generator(1)), build(generator(2))
    first = [one(jacobian) for _ in range(3)]
    assert_same_bits([same(jacobian) for _ in range(3)], first)
    assert not torch.equal(torch.stack([other(jacobian) for _ in range(3)]), torch.stack(first))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("build", RANDOM, ids=["PCGrad", "GradDrop"])
def test_default_draws_follow_the_global_seed(build: Callable[[torch.Generator | None], Aggregator]) -> None:
    jacobian = with_cosine(4, -0.5, columns=30)
    directions = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        directions.append(build(None)(jacobian))
    assert_same_bits(directions[0], directions[1])
    assert not torch.equal(directions[0], directions[2])


# --- what cannot be aggregated -----------------------------------------------------------------------------------

FORM = re.compile(r"^\w+: `\w+` .*must .+, got .+\.", flags=re.DOTALL)
INVALID: dict[str, tuple[Any, type[Exception], str]] = {
    "integers": (torch.ones(2, 3, dtype=torch.int64), TypeError, "floating point tensors, got torch.int64"),
    "booleans": (torch.ones(2, 3, dtype=torch.bool), TypeError, "got torch.bool"),
    "complex": (torch.ones(2, 3, dtype=torch.complex64), TypeError, "got torch.complex64"),
    "an integer block": ([torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int32)], TypeError, "got torch.int32"),
    "lists of numbers": ([[1.0, 2.0], [3.0, 4.0]], TypeError, "got list"),
    "a vector": (torch.ones(3), ValueError, r"a \(K, P\) matrix .* got shape \(3,\)\. Row k is"),
    "a scalar": (torch.tensor(1.0), ValueError, r"got shape \(\)"),
    "a scalar block": ([torch.tensor(1.0)], ValueError, r"got shape \(\)"),
    "no blocks": ([], ValueError, "at least one block, got an empty sequence"),
    "no rows": (torch.ones(0, 3), ValueError, r"same number of rows K >= 1 in every block, got \[\(0, 3\)\]"),
    "different K": ([torch.ones(2, 3), torch.ones(3, 3)], ValueError, r"K >= 1 .* \[\(2, 3\), \(3, 3\)\]"),
}


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("method", CONTRACTS)
def test_invalid_jacobians(method: type[Aggregator], name: str) -> None:
    jacobian, kind, message = INVALID[name]
    with pytest.raises(kind, match=f"^{method.__name__}: `jacobian` must .*{message}") as caught:
        CONTRACTS[method].build()(jacobian, torch.ones(2))
    assert FORM.match(str(caught.value))


INVALID_GRAMIANS: dict[str, tuple[Any, type[Exception], str]] = {
    "integers": (torch.eye(2, dtype=torch.int64), TypeError, "a floating point tensor, got torch.int64"),
    "a list": ([[1.0]], TypeError, "a floating point tensor, got list"),
    "not square": (torch.ones(2, 3), ValueError, r"square in its last two dimensions, K >= 1, got shape \(2, 3\)"),
    "a vector": (torch.ones(3), ValueError, r"square .* got shape \(3,\)\. Inner products of the rows"),
    "empty": (torch.ones(0, 0), ValueError, r"K >= 1, got shape \(0, 0\)"),
}


@pytest.mark.parametrize("name", INVALID_GRAMIANS)
@pytest.mark.parametrize("method", [method for method, contract in CONTRACTS.items() if contract.kind == "gramian"])
def test_invalid_gramians(method: type[gs.GramianAggregator], name: str) -> None:
    gramian, kind, message = INVALID_GRAMIANS[name]
    with pytest.raises(kind, match=f"^{method.__name__}: `gramian` must be .*{message}") as caught:
        CONTRACTS[method].build().solve(gramian)
    assert FORM.match(str(caught.value))


@pytest.mark.parametrize("rows", [[0], [0, 1, 2], [1, 1], [-1, 0]])
@pytest.mark.parametrize("method", CONTRACTS)
def test_invalid_rows(method: type[Aggregator], rows: list[int]) -> None:
    message = f"^{method.__name__}: `rows` must be 2 different indices >= 0, got {re.escape(str(rows))}"
    with pytest.raises(ValueError, match=message):
        CONTRACTS[method].build()(torch.eye(2), torch.ones(2), rows=rows)


NAN, INF = math.nan, math.inf
INVALID_OPTIONS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: gs.MGDA("l1"), ValueError, "MGDA: `normalization` must be one of .*, got 'l1'"),  # type: ignore[arg-type]
    (lambda: gs.GradNorm(-0.1), ValueError, "GradNorm: `alpha` must be a finite number >= 0, got -0.1"),
    (lambda: gs.GradNorm(NAN), ValueError, "GradNorm: `alpha` must be .*, got nan"),
    (lambda: gs.GradNorm(INF), ValueError, "GradNorm: `alpha` must be .*, got inf"),
    (lambda: gs.GradNorm(lr=0.0), ValueError, "GradNorm: `lr` must be a finite number > 0, got 0.0"),
    (lambda: gs.GradNorm(lr=-1.0), ValueError, "GradNorm: `lr` must be .*, got -1.0"),
    (lambda: gs.GradNorm(lr=NAN), ValueError, "GradNorm: `lr` must be .*, got nan"),
    (lambda: gs.GradNorm(progress="step"), ValueError, "GradNorm: `progress` must be one of .*, got 'step'"),
    (lambda: gs.GradDrop(-0.1), ValueError, r"GradDrop: `leak` must be in \[0, 1\], got -0.1"),
    (lambda: gs.GradDrop(1.5), ValueError, r"GradDrop: `leak` must be in \[0, 1\], got 1.5"),
    (lambda: gs.GradDrop(NAN), ValueError, "GradDrop: `leak` must be .*, got nan"),
    (lambda: gs.GradDrop([]), ValueError, r"GradDrop: `leak` must be .*, got \[\]"),
    (lambda: gs.GradDrop([0.1, 2.0]), ValueError, r"GradDrop: `leak` must be .*, got \[0.1, 2.0\]"),
    (lambda: gs.GradDrop(generator=3), TypeError, "GradDrop: `generator` must be a torch.Generator .*, got 3"),
    (lambda: gs.PCGrad(generator="cpu"), TypeError, "PCGrad: `generator` must be a torch.Generator .*, got 'cpu'"),
    (lambda: gs.Chain(), ValueError, "Chain: `methods` must be two or more aggregators, got 0"),
    (lambda: gs.Chain(gs.Sum()), ValueError, "Chain: `methods` must be two or more aggregators, got 1"),
    (lambda: gs.Chain(gs.Sum(), 3), TypeError, "Chain: `methods` must be aggregators, got int at position 1"),
    (
        lambda: gs.Chain(gs.GradDrop(), gs.Sum()),
        TypeError,
        "Chain: `methods` before the last .*, got GradDrop. Put it",
    ),
]


@pytest.mark.parametrize(("build", "kind", "message"), INVALID_OPTIONS)
def test_invalid_options(build: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{message}") as caught:
        build()
    assert FORM.match(str(caught.value))


@pytest.mark.parametrize(
    ("method", "losses", "message"),
    [
        (gs.MGDA("loss"), None, "`losses` must be positive for normalization='loss', got none. Hand over"),
        (gs.MGDA("loss+"), torch.tensor([1.0, 0.0]), r"`losses` must be positive .*, got \[1.0, 0.0\]"),
        (gs.MGDA("loss"), torch.tensor([1.0, -2.0]), r"`losses` must be positive .*, got \[1.0, -2.0\]"),
    ],
)
def test_mgda_needs_positive_losses(method: Aggregator, losses: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"^MGDA: {message}"):
        method(torch.eye(2), losses)


def test_graddrop_needs_a_leak_for_every_loss() -> None:
    with pytest.raises(ValueError, match=r"^GradDrop: `leak` must have one entry a loss, got 2 for loss 2\."):
        gs.GradDrop([0.1, 0.2])(torch.eye(3))


def test_gradnorm_keeps_its_batch_shape() -> None:
    method = gs.GradNorm(alpha=0.0)
    method(torch.ones(2, 3, 4))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with pytest.raises(ValueError, match=r"^GradNorm: `gramian` must keep the shape .*, \(2, 3\), got \(5, 3\)"):
        method(torch.ones(5, 3, 4))
    assert_same_bits(dict(method.state_dict()), before)


def test_a_method_that_raises_half_way_leaves_no_trace() -> None:
    """Called by hand, too: the first method of the chain has learnt when the second one raises."""
    chain = gs.Chain(gs.GradNorm(alpha=0.0), gs.MGDA("loss"))
    jacobian = DIFFICULT["five"]
    losses = torch.ones(5, dtype=torch.float64)
    chain(jacobian, losses)
    before = {name: value.clone() for name, value in chain.state_dict().items()}
    with pytest.raises(ValueError, match="^MGDA: `losses` must be positive"):
        chain(jacobian, -losses)
    assert_same_bits(dict(chain.state_dict()), before)
    chain(jacobian, losses)
    assert any(not torch.equal(value, before[name]) for name, value in chain.state_dict().items())
