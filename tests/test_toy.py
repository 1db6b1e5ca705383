"""Problems whose Pareto sets are known: quadratics, and the two-loss toy that ``examples/toy.py`` draws."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from references import exact_min_norm
from support import assert_near, load_example
from torch import Tensor

import gradsurgery as gs
from gradsurgery.aggregators import CONTRACTS, Aggregator, GramianAggregator

Quadratics = tuple[Tensor, Tensor]
"""K losses ``(x - c_k)' H_k (x - c_k) / 2``: the H_k (K, P, P) and the c_k (K, P)."""


toy = load_example("toy")


def _float64(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- quadratics --------------------------------------------------------------------------------------------------


def _alike(hessian: Any, centres: Any) -> Quadratics:
    return _float64(hessian).repeat(len(centres), 1, 1), _float64(centres)


def _distance_to_hull(problem: Quadratics, x: Tensor) -> float:
    """With one H for all losses the Pareto set is the convex hull of the c_k: the shortest combination of c_k - x."""
    return float(np.linalg.norm(exact_min_norm((problem[1] - x).numpy())))


def _distance_to_curve(problem: Quadratics, x: Tensor) -> float:
    """Of two losses with different H the Pareto set is a curve, (sum l_k H_k)^-1 sum l_k H_k c_k."""
    hessians, centres = problem
    share = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    weights = torch.stack([share, 1 - share], dim=-1)
    together = torch.einsum("mk,kij->mij", weights, hessians)
    pulls = torch.einsum("mk,kij,kj->mi", weights, hessians, centres)
    return float((torch.linalg.solve(together, pulls) - x).norm(dim=-1).min())


SEGMENT = _alike([[2.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], [[-2.0, 1.0, 0.0], [1.0, -1.0, 2.0]])
POLYGON = _alike([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [4.0, 0.0], [1.0, 3.0], [1.5, 1.0], [3.0, 2.5]])
CURVE = _float64([[[1.0, 0.0], [0.0, 4.0]], [[4.0, 0.0], [0.0, 1.0]]]), _float64([[-2.0, -1.0], [2.0, 1.0]])

PROBLEMS = [
    pytest.param(SEGMENT, _distance_to_hull, id="segment"),
    pytest.param(POLYGON, _distance_to_hull, id="polygon"),
    pytest.param(CURVE, _distance_to_curve, id="curve"),
]
DESCENDING = [m for m, c in CONTRACTS.items() if c.guarantees & {"stationary", "non_conflicting"}]


def _assert_converges(
    method: Aggregator, problem: Quadratics, distance: Callable[[Quadratics, Tensor], float], steps: int = 250
) -> None:
    """Fails unless steps of decreasing length, 15 in all, lead from 5 away from the centres to the Pareto set."""
    hessians, centres = problem
    aside = _float64([3.0, -4.0, 0.0][: centres.shape[1]])
    x = centres.mean(0) + aside
    assert distance(problem, x) > 2
    for step in range(steps):
        offsets = x - centres
        jacobian = torch.einsum("kij,kj->ki", hessians, offsets)
        direction = method(jacobian, (offsets * jacobian).sum(-1) / 2)
        length = direction.norm()
        if length > 0:
            x = x - 0.45 * 0.97**step * direction / length
    assert distance(problem, x) < 1e-3


@pytest.mark.parametrize(("problem", "distance"), PROBLEMS)
@pytest.mark.parametrize("method", DESCENDING)
def test_descends_to_the_pareto_set(
    method: type[Aggregator], problem: Quadratics, distance: Callable[[Quadratics, Tensor], float]
) -> None:
    _assert_converges(CONTRACTS[method].build(), problem, distance)


class _FollowsOne(GramianAggregator):
    """Climbs along the second gradient."""

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return -torch.eye(gramian.shape[-1], dtype=torch.float64)[1]


@pytest.mark.parametrize(("problem", "distance"), PROBLEMS)
def test_convergence_can_fail(problem: Quadratics, distance: Callable[[Quadratics, Tensor], float]) -> None:
    with pytest.raises(AssertionError):
        _assert_converges(_FollowsOne(), problem, distance)
    with pytest.raises(AssertionError):
        _assert_converges(gs.MGDA(), problem, distance, steps=3)


# --- the two losses ----------------------------------------------------------------------------------------------

HEIGHT = math.log(9)  # tanh(HEIGHT / 2) = 4 / 5, tanh(HEIGHT) = 40 / 41
RAVINE = math.log(5e-6) + 6

VALUES = [
    ([3.0, 0.0], [0.0, 0.0]),
    # above: on the curves where one of the logarithms is cut off
    ([-7 + 80 / 41, HEIGHT], [0.08 * RAVINE, 0.8 * (math.log(207 / 41) + 6)]),
    ([7 - 80 / 41, HEIGHT], [0.08 * (math.log(207 / 41) + 6), 0.8 * RAVINE]),
    # below: at the middles of the bowls, and between them
    ([7.0, -8.0], [-2.0 * math.tanh(4), -0.4 * math.tanh(4)]),
    ([-7.0, -8.0], [-0.04 * math.tanh(4), -20.0 * math.tanh(4)]),
    ([0.0, -HEIGHT], [0.08 * (-15.1 + 0.01 * (8 - HEIGHT) ** 2), 0.8 * (-15.1 + 0.01 * (8 - HEIGHT) ** 2)]),
]


@pytest.mark.parametrize(("x", "values"), VALUES)
def test_losses_at_points_worked_out_by_hand(x: list[float], values: list[float]) -> None:
    assert_near(toy.losses_at(_float64(x)), _float64(values), 1e-9)


def test_gradients_are_slopes() -> None:
    x = torch.empty(200, 2, dtype=torch.float64).uniform_(-10, 10, generator=torch.Generator().manual_seed(0))
    losses, jacobians = toy.jacobians_at(x)
    assert_near(losses + toy.LOWEST, toy.losses_at(x), 1e-14)
    assert bool((losses > 0).all())
    shifts = 1e-6 * torch.eye(2, dtype=torch.float64)
    slopes = [(toy.losses_at(x + shift) - toy.losses_at(x - shift)) / 2e-6 for shift in shifts]
    assert_near(jacobians, torch.stack(slopes, dim=-1), 1e-7)


def test_front_dominates_a_grid() -> None:
    """Brute force: to every point of a grid there is one on the front that is no worse in either loss."""
    first, second = toy.losses_at(toy.pareto_front(28_001)).flip(0).T.contiguous()
    assert bool((first.diff() > 0).all())
    assert bool((second.diff() < 0).all())
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    elsewhere = toy.losses_at(torch.cartesian_prod(axis, axis))
    rival = (
        torch.searchsorted(first, elsewhere[:, 0].contiguous(), right=True) - 1
    )  # the last that is no worse in the first
    assert bool((rival >= 0).all())
    assert float((second[rival] - elsewhere[:, 1]).max()) < 2e-3  # the front has gaps


def test_front_is_stationary() -> None:
    front = toy.pareto_front(29)
    published = torch.stack([front[:, 0], torch.full_like(front[:, 0], -8.3552)], dim=-1)
    slopes = [_shortest(jacobian) for jacobian in toy.jacobians_at(front)[1]]
    assert max(slopes) < 1e-12
    slopes = [_shortest(jacobian) for jacobian in toy.jacobians_at(published)[1]]
    assert slopes[14] < 1e-5 < min(slopes[:12] + slopes[17:])  # exact at x1 = 0 only


def _shortest(jacobian: Tensor) -> float:
    return float(np.linalg.norm(exact_min_norm(jacobian.numpy())))


def test_balanced_methods_leave_the_ravine_that_holds_the_sum() -> None:
    methods = [[gs.MGDA()], [gs.NashMTL(**toy.OPTIONS["nashmtl"])], [gs.Sum()]]
    start = _float64([[9.0, 9.0]])
    paths = toy.descend(methods, start, 1500, lr=0.01)
    assert paths.shape[1:] == (3, 1, 2)
    assert float(toy.distance_to_front(start)) > 17
    mgda, nash, plain = toy.distance_to_front(paths[-1, :, 0]).tolist()
    assert mgda < 4
    assert nash < 4
    assert plain > 8


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "toy.png"
    toy.main(["--methods", "sum", "mgad", "graddrop", "stch", "--steps", "3", "--out", str(figure)])
    assert figure.read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("left out mgad: get: `name` must be")
    assert [line.split()[:2] for line in lines[1:]] == [["Sum", "0/5"], ["GradDrop", "0/5"], ["STCH", "0/5"]]
