"""Burgers' equation: the reference against another solver, the losses, the conflict, the command line."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from support import assert_near, load_example
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.comparison import Comparison, Trial

burgers = load_example("burgers")

ROOT = Path(__file__).parents[1]


def _chebyshev(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in [0, 1], dense at both ends, and the matrix that differentiates a polynomial given there."""
    numbers = np.arange(count + 1)
    places = np.cos(np.pi * numbers / count)
    scale = np.where((numbers == 0) | (numbers == count), 2.0, 1.0) * (-1.0) ** numbers
    matrix = np.outer(scale, 1 / scale) / (places[:, None] - places + np.eye(count + 1))
    return (places + 1) / 2, 2 * (matrix - np.diag(matrix.sum(axis=1)))


def _solved(count: int, times: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Collocation in x, an implicit method in t. u is odd: half the domain will do, and the front is at its end."""
    places, once = _chebyshev(count)
    twice = once @ once

    def slope(_: float, inner: np.ndarray) -> np.ndarray:
        u = np.pad(inner, 1)
        return (burgers.NU * twice @ u - u * (once @ u))[1:-1]

    def jacobian(_: float, inner: np.ndarray) -> np.ndarray:
        u = np.pad(inner, 1)
        return (burgers.NU * twice - u[:, None] * once - np.diag(once @ u))[1:-1, 1:-1]

    inner = places[1:-1]
    start = -np.sin(np.pi * inner)
    options = {"method": "Radau", "rtol": 1e-10, "atol": 1e-11, "jac": jacobian}
    return inner, solve_ivp(slope, (0, 1), start, t_eval=times, **options).y


def test_reference_is_what_another_solver_finds() -> None:
    times = [0.1, 0.3, 0.5, 1.0]
    places, found = _solved(140, times)
    assert float(np.abs(np.gradient(found[:, 2], places)).max()) > 100  # the front is there, and resolved
    np.testing.assert_allclose(burgers.reference(places[:, None], np.array(times)), found, rtol=0, atol=1e-8)


def test_reference_needs_no_more_nodes() -> None:
    x, t = np.linspace(-1, 1, 101)[None], np.linspace(0, 1, 21)[:, None]
    found = burgers.reference(x, t)
    np.testing.assert_allclose(found, burgers.reference(x, t, nodes=150), rtol=0, atol=1e-13)
    np.testing.assert_allclose(found[0], -np.sin(np.pi * x[0]), rtol=0, atol=1e-14)
    np.testing.assert_allclose(found[:, [0, 50, -1]], 0, atol=1e-14)


class _Known(nn.Module):
    """u = t x^3, of which all derivatives are known."""

    def forward(self, points: Tensor) -> Tensor:
        t, x = points.unbind(-1)
        return t * x**3


def test_losses_of_a_known_function() -> None:
    torch.manual_seed(0)
    batch = {name: points.double() for name, points in burgers.draw_points(64).items()}
    found = burgers.losses(_Known(), batch)
    t, x = batch["inside"].unbind(-1)
    residual = x**3 + t * x**3 * 3 * t * x**2 - burgers.NU * 6 * t * x
    assert_near(found["residual"], residual.square().mean(), 1e-14)
    assert_near(found["initial"], torch.sin(math.pi * batch["start"][:, 1]).square().mean(), 1e-14)
    assert_near(found["boundary"], batch["walls"][:, 0].square().mean(), 1e-14)


def test_points_are_spread_over_the_domain() -> None:
    torch.manual_seed(0)
    points = burgers.draw_points(40)
    t, x = points["inside"].unbind(-1)
    assert (t * 40).long().sort().values.tolist() == list(range(40))
    assert ((x + 1) * 20).long().sort().values.tolist() == list(range(40))
    assert points["start"][:, 0].abs().max() == 0
    assert sorted(points["walls"][:, 1].tolist()) == [-1.0] * 25 + [1.0] * 25


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_conflict_after_a_few_steps_of_the_plain_sum(seed: int) -> None:
    """Why there is something to gain: fitting the initial values breaks the equation."""
    torch.manual_seed(seed)
    model = burgers.Network()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters(), lr=3e-3), gs.UPGrad())
    plain = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        plain.zero_grad()
        sum(burgers.losses(model, burgers.draw_points(50)).values()).backward()
        plain.step()
    gramian = optimizer.backward(burgers.losses(model, burgers.draw_points(200))).gramian
    norms = gramian.diagonal().sqrt()
    assert float(gramian[0, 2] / norms[0] / norms[2]) < -0.8


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--steps", "2", "--points", "8", "--seeds", "2", "--methods", "upgrad", "mconfig"]
    command += ["--record", str(tmp_path / "record.json"), "--out"]
    first = burgers.main([*command, str(tmp_path / "first.png")])
    assert {row.label for row in first.rows} == {"sum", "upgrad", "mconfig"}
    assert len(first.trials) == 6
    assert all(math.isfinite(row.means["error"]) for row in first.rows)
    again = burgers.main([*command, str(tmp_path / "again.png")])  # from the record, but for the networks drawn
    assert again.trials == first.trials
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert "upgrad" in capsys.readouterr().out


def _recorded() -> dict[str, Comparison]:
    record = json.loads((ROOT / "benchmarks" / "results" / "burgers.json").read_text())
    return {
        name: Comparison(one["settings"], [Trial.from_json(trial) for trial in one["trials"]])
        for name, one in record.items()
        if isinstance(one, dict) and "trials" in one
    }


def test_page_says_what_was_recorded() -> None:
    comparison = _recorded()["tuned"]
    assert comparison.fair
    assert len(comparison.seeds) == 3
    table = re.findall(
        r"^\| `(.*?)`.*? \| (\S+) \| (\S+) \| (\S+) (\S+) (\S+) \|$", (ROOT / "docs" / "burgers.md").read_text(), re.M
    )
    assert [label for label, *_ in table] == [row.label for row in comparison.rows]
    for (_, rate, mean, *seeds), row in zip(table, comparison.rows, strict=True):
        assert (float(rate),) == row.learning_rates
        assert float(mean) == pytest.approx(row.means["error"], rel=0.05)
        assert [float(seed) for seed in seeds] == pytest.approx(comparison.values(row.label)[:, 0].tolist(), rel=0.05)


def test_what_was_advised_was_trained_alike() -> None:
    recorded = _recorded()
    advised, tuned = recorded["advised by the diagnosis"], recorded["tuned"]
    assert advised.values("chain")[:, 0].tolist() == pytest.approx([0.012, 0.00007, 0.00056], rel=0.05)
    assert "ends at .012, .00007 and .00056" in (ROOT / "docs" / "burgers.md").read_text()
    assert advised.values("sum").tolist() == tuned.values("sum").tolist()
