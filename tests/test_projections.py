"""GradVac against its algorithm on the vectors, and at the ends of its formula; PCGrad's two forms."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support import DIFFICULT, assert_near, assert_same_bits, gaussian, norms_of, with_cosine
from torch import Tensor

from gradsurgery.aggregators import GradVac, GramianAggregator, PCGrad


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class LiteralGradVac:
    """Algorithm 1 of Wang et al. on the vectors, one pair after another; what is zero has no cosine."""

    def __init__(self, beta: float, draws: torch.Generator) -> None:
        self.beta, self.draws = beta, draws
        self.targets: dict[tuple[int, int], float] = {}

    def __call__(self, jacobian: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        numbers = list(range(len(jacobian))) if rows is None else list(rows)
        order = torch.rand(len(jacobian), len(jacobian), generator=self.draws, dtype=torch.float64).argsort(-1)
        total = torch.zeros_like(jacobian[0])
        for i in range(len(jacobian)):
            gradient = jacobian[i].clone()
            for j in order[i].tolist():
                if j != i and float(jacobian[i].norm()) > 0 and float(jacobian[j].norm()) > 0:
                    gradient = self._meet(gradient, jacobian, i, j, (numbers[i], numbers[j]))
            total += gradient
        return total

    def _meet(self, gradient: Tensor, jacobian: Tensor, i: int, j: int, pair: tuple[int, int]) -> Tensor:
        length, other = float(gradient.norm()), float(jacobian[j].norm())
        phi = self.targets.get(pair, 0.0)
        vanished = length <= 1e-7 * float(jacobian[i].norm())
        cosine = 0.0 if vanished else float(gradient @ jacobian[j]) / length / other
        cosine = min(1.0, max(-1.0, cosine))
        self.targets[pair] = (1 - self.beta) * phi + self.beta * cosine
        if vanished or cosine >= phi:
            return gradient
        across = gradient - gradient @ jacobian[j] / other**2 * jacobian[j]
        sine, wanted = float(across.norm()) / length, math.sqrt(1 - phi**2)  # not from the cosine, which is rounded
        return gradient + length * (phi * sine - cosine * wanted) / (other * wanted) * jacobian[j]


def targets_of(method: GradVac) -> Tensor:
    targets = method.state_dict()["targets"]
    assert isinstance(targets, Tensor)
    return targets


@pytest.mark.parametrize("beta", [0.01, 0.5])
@pytest.mark.parametrize("name", DIFFICULT)
def test_gradvac_is_its_algorithm(name: str, beta: float) -> None:
    jacobian = DIFFICULT[name]
    method, literal = GradVac(beta, generator=generator(5)), LiteralGradVac(beta, generator(5))
    longest = float(norms_of(jacobian).max())
    noise = longest * gaussian(*jacobian.shape, seed=40)
    for step in range(6):
        now = jacobian if step % 3 < 2 else jacobian + 0.3 * noise
        assert_near(method(now), literal(now), 1e-9, 1e-10 * longest)
    for (i, j), target in literal.targets.items():
        assert float(targets_of(method)[i, j]) == pytest.approx(target, abs=1e-7)


@pytest.mark.parametrize("count", [3, 10, 20])
def test_gradvac_with_many_losses(count: int) -> None:
    method, literal = GradVac(0.3, generator=generator(1)), LiteralGradVac(0.3, generator(1))
    common = gaussian(1, 30)
    for step in range(5):
        jacobian = gaussian(count, 30, seed=step) + common
        assert_near(method(jacobian), literal(jacobian), 1e-9)


def test_gradvac_keeps_targets_by_objective() -> None:
    method, literal = GradVac(0.5, generator=generator(2)), LiteralGradVac(0.5, generator(2))
    for step, rows in enumerate([[0, 1], [2, 0], [3], [1, 3, 0, 2], [3, 1], [0, 1, 2, 3]]):
        jacobian = gaussian(len(rows), 5, seed=step) + 1.0
        before = method.state_dict().get("targets")
        assert_near(method(jacobian, rows=rows), literal(jacobian, rows), 1e-9)
        if isinstance(before, Tensor):
            absent = [row for row in range(len(before)) if row not in rows]
            assert_same_bits(targets_of(method)[: len(before), : len(before)][absent], before[absent])


def test_gradvac_turns_a_gradient_to_its_target() -> None:
    """With two losses the weights say what was added to each gradient."""
    method = GradVac(1.0)
    usual, now = torch.tensor([[1.0, 0.0], [3.0, 1.0]]).double(), torch.tensor([[2.0, 0.0], [-1.0, 3.0]]).double()
    method(usual)
    target = 3 / math.sqrt(10)
    added = method.weights(now @ now.mT).flip(0) - 1
    for row, other, share in zip(now, now.flip(0), added, strict=True):
        turned = row + share * other
        assert float(turned @ other / turned.norm() / other.norm()) == pytest.approx(target, abs=1e-12)
        across = torch.stack([other[1], -other[0]])
        assert float(turned @ across) == pytest.approx(float(row @ across), abs=1e-12)


def test_gradvac_leaves_gradients_that_are_closer_than_usual() -> None:
    jacobian = torch.tensor([[1.0, 0.2], [0.7, 1.0]]).double()
    method = GradVac(0.25)
    cosine = float(jacobian[0] @ jacobian[1] / jacobian[0].norm() / jacobian[1].norm())
    for step in range(1, 8):
        assert_near(method(jacobian), jacobian.sum(0), 1e-15)
        expected = cosine * (1 - 0.75**step)
        assert_near(targets_of(method), expected * (1 - torch.eye(2).double()), 1e-14)


@pytest.mark.parametrize("name", DIFFICULT)
def test_gradvac_that_learns_nothing_is_pcgrad(name: str) -> None:
    jacobian = DIFFICULT[name]
    method, plain = GradVac(0.0, generator=generator(3)), PCGrad(generator=generator(3))
    for _ in range(3):
        assert_near(method(jacobian), plain(jacobian), 1e-9, 1e-12 * float(norms_of(jacobian).max()))


def test_gradvac_lets_opposed_gradients_vanish() -> None:
    row = gaussian(1, 6)
    opposed = torch.cat([row, -3.0 * row])
    for harmony in (False, True):
        method = GradVac(0.5)
        if harmony:
            method(opposed.abs())
        assert_near(method(opposed), torch.zeros(6), 0.0, 1e-12)


def test_targets_of_zero_rows_stand_still() -> None:
    method = GradVac(0.5)
    jacobian = gaussian(3, 5) + 2.0
    method(jacobian)
    before = targets_of(method)
    jacobian[1] = 0.0
    method(jacobian)
    after = targets_of(method)
    assert_same_bits((after[1], after[:, 1]), (before[1], before[:, 1]))
    assert float((after - before)[0, 2].abs()) > 0.01


@pytest.mark.parametrize("count", [2, 5, 40, 90])
def test_targets_of_one_leave_everything_finite(count: int) -> None:
    """No finite multiple turns one gradient into the direction of another."""
    method = GradVac(0.5)
    alike = gaussian(1, 50).expand(count, 50)
    for _ in range(70):
        method(alike)
    assert float(targets_of(method)[0, 1]) == pytest.approx(1.0, abs=1e-12)
    direction = method(alike)
    assert_near(direction, alike.sum(0), 1e-6)  # rounding asks for nothing
    different = gaussian(count, 50, seed=1)
    for jacobian in (different, torch.cat([different[:1], -different[1:]]), alike):
        weights = method.weights(jacobian @ jacobian.mT)
        assert bool(weights.isfinite().all())
        assert float(weights.abs().max()) < 2.0**26 * 4 * count**2
        assert bool(targets_of(method).isfinite().all())


@pytest.mark.parametrize("method", [PCGrad, GradVac])
def test_draws_follow_the_generator(method: type[PCGrad] | type[GradVac]) -> None:
    jacobian = with_cosine(4, -0.5)
    one, same, other = (method(generator=generator(seed)) for seed in (1, 1, 2))
    first = [one(jacobian) for _ in range(3)]
    assert_same_bits([same(jacobian) for _ in range(3)], first)
    assert not torch.equal(torch.stack([other(jacobian) for _ in range(3)]), torch.stack(first))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("method", [PCGrad, GradVac])
def test_every_problem_of_a_batch_has_draws_of_its_own(method: type[PCGrad] | type[GradVac]) -> None:
    jacobian = with_cosine(4, -0.5)
    weights = method(generator=generator()).weights((jacobian @ jacobian.mT).expand(3, 2, 4, 4))
    assert weights.shape == (3, 2, 4)
    assert len({tuple(np.round(row, 9)) for row in weights.flatten(0, 1).tolist()}) > 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", [PCGrad, GradVac])
def test_on_a_gpu_as_on_the_host(method: type[PCGrad] | type[GradVac]) -> None:
    here, there = method(generator=generator(4)), method(generator=generator(4))
    for step in range(3):
        jacobian = gaussian(12, 5, seed=step).view(2, 6, 5)
        gramian = jacobian @ jacobian.mT
        found = there.solve(gramian.cuda())
        assert found.is_cuda
        assert_near(found.cpu(), here.solve(gramian), 1e-12)


@pytest.mark.parametrize("beta", [-0.1, 1.5, math.nan])
def test_gradvac_needs_a_share(beta: float) -> None:
    with pytest.raises(ValueError, match=rf"^GradVac: `beta` must be in \[0, 1\], got {beta}\."):
        GradVac(beta)


def test_gradvac_is_a_gramian_method() -> None:
    assert issubclass(GradVac, GramianAggregator)
    with pytest.raises(TypeError, match=r"^GradVac: `generator` must be a torch\.Generator .*, got 3"):
        GradVac(generator=3)  # type: ignore[arg-type]
