"""Methods that learn their weights from two independent batches: SDMGrad, MoDo, and what they stand on."""

import copy
import itertools
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from references import exact_min_norm
from scipy.optimize import minimize
from support import DIFFICULT, assert_near, assert_same_bits, gaussian, norms_of, state_of
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery import kernels
from gradsurgery.aggregators import Aggregator, MoDo, SDMGrad
from gradsurgery.aggregators.crossbatch import CrossBatch
from gradsurgery.solvers import project_on_simplex

METHODS: dict[str, Callable[[], CrossBatch]] = {
    "SDMGrad": SDMGrad,
    "SDMGrad, as published": lambda: SDMGrad(lr=10.0),
    "SDMGrad, small steps": lambda: SDMGrad(0.6, lr=0.1, momentum=0.0, iterations=7),
    "SDMGrad, without regularisation": lambda: SDMGrad(0.0, lr=0.5),
    "MoDo": MoDo,
    "MoDo, small steps": lambda: MoDo(0.003, 0.0),
}


def batches(step: int, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Three noisy looks at one Jacobian."""
    mean = gaussian(count, 30, seed=step) + 0.5
    first, second, third = (mean + 0.5 * gaussian(count, 30, seed=1000 + 3 * step + batch) for batch in range(3))
    return first, second, third


def literal_projection(point: Sequence[float]) -> list[float]:
    """On the simplex: of all ways to leave entries out, the closest point that is non-negative."""
    best: list[float] = []
    for kept in range(1, len(point) + 1):
        order = sorted(range(len(point)), key=lambda i: -point[i])[:kept]
        excess = (sum(point[i] for i in order) - 1.0) / kept
        candidate = [point[i] - excess if i in order else 0.0 for i in range(len(point))]
        if min(candidate) >= 0 and (not best or _distance(candidate, point) < _distance(best, point)):
            best = candidate
    return best


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def literal_step(method: CrossBatch, first: Tensor, second: Tensor, weights: list[float]) -> list[float]:
    """The weights after one observation, as the authors' codes compute them, without their small constants."""
    count = len(weights)
    inner = [[sum((a * b).tolist()) for b in second] for a in first]
    if isinstance(method, MoDo):
        pull = [sum(inner[i][j] * weights[j] for j in range(count)) + method.rho * weights[i] for i in range(count)]
        return literal_projection([weights[i] - method.gamma * pull[i] for i in range(count)])
    assert isinstance(method, SDMGrad)
    scale = (sum(math.sqrt(max(inner[i][i], 0.0)) for i in range(count)) / count) ** 2
    if method.lr is None:
        inner = [[(inner[i][j] + inner[j][i]) / 2 for j in range(count)] for i in range(count)]
        scale = max(sum(abs(entry) for entry in row) for row in inner)
    current = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor(inner, dtype=torch.float64) / scale
    optimizer = torch.optim.SGD([current], lr=method.lr or 1.0, momentum=method.momentum)
    for _ in range(method.iterations):
        current.grad = matrix @ current.detach() + method.strength * matrix.mean(dim=1)
        optimizer.step()
        with torch.no_grad():
            current.copy_(torch.tensor(literal_projection(current.tolist()), dtype=torch.float64))
    return current.tolist()


def literal_direction(method: CrossBatch, jacobian: Tensor, weights: list[float]) -> Tensor:
    combined = sum(weight * row for weight, row in zip(weights, jacobian, strict=True))
    if isinstance(method, SDMGrad):
        combined = (combined + method.strength * jacobian.mean(0)) / (1 + method.strength)
    assert isinstance(combined, Tensor)
    return combined


# --- the algorithms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_several_steps_are_the_algorithm(name: str) -> None:
    method, weights = METHODS[name](), [0.25] * 4
    for step in range(6):
        first, second, third = batches(step)
        method.observe(first, second)
        weights = literal_step(method, first, second, weights)
        assert_near(method(third), literal_direction(method, third, weights), 1e-9)
    assert max(weights) > 0.26


@pytest.mark.parametrize("name", METHODS)
def test_blocks_and_batches_of_problems(name: str) -> None:
    whole, parts, together = METHODS[name](), METHODS[name](), METHODS[name]()
    alone = [METHODS[name]() for _ in range(6)]
    factors = torch.linspace(0.5, 2.0, 24, dtype=torch.float64).view(2, 3, 4, 1)
    for step in range(3):
        trio = batches(step)
        cut = [[one[:, :12].reshape(4, 3, 4), one[:, 12:29], one[:, 29]] for one in trio]
        whole.observe(trio[0], trio[1])
        parts.observe(cut[0], cut[1])
        found = torch.cat([block.flatten() for block in parts(cut[2])])
        assert_near(found, whole(trio[2]), 1e-12)
        problems = [factors * one for one in trio]
        together.observe(problems[0], problems[1])
        directions = together(problems[2]).flatten(0, 1)
        for index, method in enumerate(alone):
            own = [problem.flatten(0, 1)[index] for problem in problems]
            method.observe(own[0], own[1])
            assert_near(directions[index], method(own[2]), 1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_absent_losses_wait(name: str) -> None:
    """Those present have the weight 1 together; a new one starts at 1/K."""
    method, known = METHODS[name](), dict[int, float]()
    for step, rows in enumerate([[0, 1], [2, 0], [0, 1, 2, 3], [1], [3, 1, 0]]):
        first, second, third = (one[rows] for one in batches(step))
        start = literal_projection([known.get(row, 1 / len(rows)) for row in rows])
        assert_near(method(third, rows=rows), literal_direction(method, third, start), 1e-10)
        method.observe(first, second, rows=rows)
        weights = literal_step(method, first, second, start)
        known.update(zip(rows, weights, strict=True))
        assert_near(method(third, rows=rows), literal_direction(method, third, weights), 1e-9)


def test_sdmgrad_approaches_its_minimum() -> None:
    """Where both batches agree, A is a Gramian and the problem has one answer."""
    rows = batches(0)[0]
    for strength, lr in itertools.product((0.0, 0.3, 2.0), (None, 0.3)):
        method = SDMGrad(strength, lr=lr, iterations=3000)
        method.observe(rows, rows)
        gramian = (rows @ rows.mT).numpy()
        scale = gramian.max()

        def objective(w: np.ndarray, strength: float = strength, gramian: np.ndarray = gramian / scale) -> float:
            return float(0.5 * w @ gramian @ w + strength * w @ gramian.mean(axis=1))

        total = {"type": "eq", "fun": lambda w: w.sum() - 1}
        options = {"ftol": 1e-15, "maxiter": 1000}
        best = minimize(objective, np.full(4, 0.25), bounds=[(0, 1)] * 4, constraints=total, options=options)
        expected = (torch.from_numpy(best.x) + strength / 4) / (1 + strength)
        assert_near(method.weights(torch.eye(4, dtype=torch.float64)), expected, 1e-5)


@pytest.mark.parametrize("difficulty", DIFFICULT)
def test_sdmgrad_comes_to_rest_at_its_minimum_by_default(difficulty: str) -> None:
    """Observation after observation of the same gradients, whatever these are; a zero row is one of the rows here."""
    rows = DIFFICULT[difficulty]
    method = SDMGrad(0.0)
    for _ in range(200):
        method.observe(rows, rows)
    shortest = 0.0 if bool((norms_of(rows) == 0).any()) else float(np.linalg.norm(exact_min_norm(rows.numpy())))
    found, longest = float(method(rows).norm()), float(norms_of(rows).max())
    assert found**2 <= shortest**2 + 1e-5 * longest**2


def test_sdmgrad_as_published_bounces_where_the_default_does_not() -> None:
    rows = torch.diag(torch.tensor([1.0, 1.1], dtype=torch.float64))
    method, published = SDMGrad(0.0), SDMGrad(0.0, lr=10.0)
    for one in (method, published):
        one.observe(rows, rows)
    assert_near(method(rows), exact_min_norm(rows.numpy()), 1e-4)
    assert published.simplex.tolist() in ([0.0, 1.0], [1.0, 0.0])


@pytest.mark.parametrize("count", [3, 64])
def test_the_order_of_what_sdmgrad_observes_is_no_matter(count: int) -> None:
    half = gaussian(count, 40)
    rows = torch.cat([half, -half, 3.0 * half[:1]])  # opposed, parallel, and at 64 more than columns
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(rows)))
    straight, permuted = SDMGrad(), SDMGrad()
    for step in range(5):
        noisy = rows + 0.1 * gaussian(*rows.shape, seed=step)
        straight.observe(rows, noisy)
        permuted.observe(rows[order], noisy[order])
        assert_near(permuted.simplex, straight.simplex[order], 1e-8)
        assert_near(permuted(rows[order]), straight(rows), 1e-8)


def test_products_near_the_largest_number() -> None:
    method, plain = SDMGrad(), SDMGrad()
    rows = gaussian(4, 2)
    for one, scale in ((method, 2.0**510), (plain, 1.0)):
        one.observe(scale * rows, scale * rows)
    assert_same_bits(method.simplex, plain.simplex)


@pytest.mark.parametrize("method", [SDMGrad(0.0, lr=0.2), MoDo(0.004, 0.0)])
def test_two_batches_take_the_bias_out(method: CrossBatch) -> None:
    """Of two gradients, one is short and noisy: its noise does not count against it, as it does in one batch's."""
    mean = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    mean = torch.cat([mean, torch.zeros(2, 200, dtype=torch.float64)], dim=1)
    noise = torch.tensor([[0.5], [0.0]], dtype=torch.float64)

    def look(seed: int) -> Tensor:
        return mean + noise * gaussian(2, 202, seed=seed)

    method, biased = copy.deepcopy(method), copy.deepcopy(method)
    shares = []
    for step in range(300):
        method.observe(look(2 * step), look(2 * step + 1))
        biased.observe(look(2 * step), look(2 * step))
        weights = [one.simplex.tolist() for one in (method, biased)]
        shares.append([own[0] for own in weights])
    ours, theirs = np.mean(shares[100:], axis=0)
    assert abs(ours - 0.9) < 0.06  # of the means: 9 / (9 + 1)
    assert theirs < 0.4


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**60, 1e-12, 1e12])
def test_the_scale_of_what_sdmgrad_observes_is_no_matter(scale: float) -> None:
    plain, scaled = SDMGrad(), SDMGrad()
    for step in range(4):
        first, second, third = batches(step)
        plain.observe(first, second)
        scaled.observe(scale * first, scale * second)
        if math.frexp(scale)[0] == 0.5:
            assert_same_bits(scaled(third), plain(third))
        assert_near(scaled(third), plain(third), 1e-6)


def test_the_scale_of_what_modo_observes_matters() -> None:
    plain, scaled = MoDo(0.001), MoDo(0.001)
    first, second, third = batches(0)
    plain.observe(first, second)
    scaled.observe(3 * first, 3 * second)
    with pytest.raises(AssertionError):
        assert_near(scaled(third), plain(third), 1e-3)


def test_batches_that_disagree_altogether_leave_sdmgrad_as_it_is() -> None:
    method = SDMGrad()
    rows = gaussian(3, 6)
    method.observe(rows, -rows)
    assert_near(method(rows), rows.mean(0), 1e-12)
    method.observe(torch.zeros(3, 6), torch.zeros(3, 6))
    assert_near(method(rows), rows.mean(0), 1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_before_anything_is_observed_it_is_the_mean(name: str) -> None:
    rows = gaussian(3, 6)
    assert_near(METHODS[name]()(rows), rows.mean(0), 1e-12)


# --- state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_state_round_trip(name: str) -> None:
    original = METHODS[name]()
    for step in range(3):
        original.observe(*batches(step)[:2])
    loaded, used = METHODS[name](), METHODS[name]()
    loaded.load_state_dict(state_of(original))
    used.observe(*batches(7, 6)[:2])
    used.load_state_dict(state_of(original))
    half = copy.deepcopy(original).bfloat16()
    copies = [loaded, used, copy.deepcopy(original), pickle.loads(pickle.dumps(original)), half]
    for step in range(3, 6):
        first, second, third = batches(step)
        original.observe(first, second)
        for other in copies:
            other.observe(first, second)
            assert_same_bits(other(third), original(third))
            assert_same_bits(state_of(other), state_of(original))
    original.reset()
    assert_near(original(third), third.mean(0), 1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", METHODS)
def test_nonfinite_observations_leave_the_state(name: str, bad: float) -> None:
    method = METHODS[name]()
    method.observe(*batches(0)[:2])
    before = state_of(method)
    first, second, _ = batches(1)
    first[1, 2] = bad
    method.observe(first, second)
    method.observe(second, first)
    assert_same_bits(state_of(method), before)


@pytest.mark.parametrize(
    ("first", "second", "kind", "message"),
    [
        (
            torch.ones(2, 3),
            torch.ones(2, 4),
            ValueError,
            r"`second` must have the shapes of `first`, \[\(2, 3\)\], got",
        ),
        (torch.ones(2, 3), torch.ones(3, 3), ValueError, r"`second` must have the shapes of `first`"),
        ([torch.ones(2, 3)], [torch.ones(2, 3)] * 2, ValueError, r"`second` must have the shapes of `first`"),
        (torch.ones(3), torch.ones(3), ValueError, r"`jacobian` must be a \(K, P\) matrix"),
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64), TypeError, "`jacobian` must be floating point"),
    ],
)
@pytest.mark.parametrize("name", ["SDMGrad", "MoDo"])
def test_what_cannot_be_observed(name: str, first: Any, second: Any, kind: type[Exception], message: str) -> None:
    method = METHODS[name]()
    with pytest.raises(kind, match=f"^{name}: {message}"):
        method.observe(first, second)
    with pytest.raises(ValueError, match=f"^{name}: `rows` must be 2 different indices"):
        method.observe(torch.ones(2, 3), torch.ones(2, 3), rows=[0, 0])
    assert not method.state_dict()


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SDMGrad(-0.1), "SDMGrad: `strength` must be a finite number >= 0, got -0.1"),
        (lambda: SDMGrad(lr=0.0), "SDMGrad: `lr` must be a finite number > 0 or None, got 0.0"),
        (lambda: SDMGrad(momentum=1.0), r"SDMGrad: `momentum` must be in \[0, 1\), got 1.0"),
        (lambda: SDMGrad(iterations=0), "SDMGrad: `iterations` must be an integer >= 1, got 0"),
        (lambda: SDMGrad(iterations=2.5), "SDMGrad: `iterations` must be an integer >= 1, got 2.5"),
        (lambda: MoDo(0.0), "MoDo: `gamma` must be a finite number > 0, got 0.0"),
        (lambda: MoDo(NAN), "MoDo: `gamma` must be .*, got nan"),
        (lambda: MoDo(rho=INF), "MoDo: `rho` must be a finite number >= 0, got inf"),
    ],
)
def test_invalid_options(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


# --- in the wrapper ----------------------------------------------------------------------------------------------


def make_model() -> nn.Module:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    return nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleList(nn.Linear(3, 1) for _ in range(3))}).double()


def losses_of(model: nn.Module, step: int, batch: int) -> list[Tensor]:
    inputs = gaussian(6, 4, seed=10 * step + batch)
    z = model["trunk"](inputs)
    return [(head(z) - inputs[:, k : k + 1]).square().mean() for k, head in enumerate(model["heads"])]


def train(model: nn.Module, optimizer: gs.MultiObjectiveOptimizer, steps: range) -> None:
    method = optimizer.aggregator
    assert isinstance(method, CrossBatch)
    for step in steps:
        optimizer.zero_grad()
        first, second = (optimizer.jacobian(losses_of(model, step, batch)) for batch in (1, 2))
        method.observe(first, second)
        optimizer.backward(losses_of(model, step, 3))
        optimizer.step()


@pytest.mark.parametrize("name", METHODS)
def test_training_is_the_algorithm(name: str) -> None:
    model, other = make_model(), make_model()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), METHODS[name]())
    train(model, optimizer, range(4))
    weights = [1 / 3] * 3
    shared, heads = list(other["trunk"].parameters()), list(other["heads"].parameters())
    for step in range(4):
        rows = []
        for batch in (1, 2, 3):
            losses = losses_of(other, step, batch)
            gradients = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
            rows.append(torch.stack([torch.cat([part.flatten() for part in own]) for own in gradients]))
        weights = literal_step(METHODS[name](), rows[0], rows[1], weights)
        direction = literal_direction(METHODS[name](), rows[2], weights)
        own = torch.autograd.grad(sum(losses), heads)
        parts = direction.split([parameter.numel() for parameter in shared])
        with torch.no_grad():
            for parameter, gradient in [*zip(shared, parts, strict=True), *zip(heads, own, strict=True)]:
                parameter -= 0.1 * gradient.view_as(parameter)
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert_near(parameter, expected, 1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_training_continues_from_a_checkpoint(name: str, tmp_path: Any) -> None:
    models = [make_model(), make_model()]
    optimizers = [
        gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters(), lr=0.1), METHODS[name]()) for model in models
    ]
    train(models[0], optimizers[0], range(3))
    torch.save([models[0].state_dict(), optimizers[0].state_dict()], tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    models[1].load_state_dict(saved[0])
    optimizers[1].load_state_dict(saved[1])
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, range(3, 6))
    assert_same_bits(dict(models[1].state_dict()), dict(models[0].state_dict()))
    assert_same_bits(dict(optimizers[1].aggregator.state_dict()), dict(optimizers[0].aggregator.state_dict()))


def test_observe_pairs_gradients_by_parameter() -> None:
    """Each batch reaches an expert of its own beside the trunk: only the trunk's gradients have inner products."""
    trunk, experts = nn.Parameter(torch.ones(2).double()), [nn.Parameter(torch.ones(2).double()) for _ in range(2)]
    found = []
    for shared in ([trunk, *experts], [*experts, trunk], [trunk]):
        inner = torch.optim.SGD([trunk, *experts], lr=0.1)
        optimizer = gs.MultiObjectiveOptimizer(inner, MoDo(0.01), shared=shared)
        one, other = ([k * (trunk.sum() + 3 * expert[0]) for k in (1, 2)] for expert in experts)
        optimizer.observe(one, other)
        found.append(state_of(optimizer.aggregator))
    assert_same_bits(found[0], found[2])
    assert_same_bits(found[1], found[2])


def test_observe_of_batches_that_share_no_parameter() -> None:
    experts = [nn.Parameter(torch.ones(2).double()) for _ in range(2)]
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(experts, lr=0.1), MoDo(0.01, 0.0), shared=experts)
    optimizer.observe(*([expert[0], 2 * expert.sum()] for expert in experts))
    assert state_of(optimizer.aggregator)["simplex"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", METHODS)
def test_observe_with_a_scale_is_that_without(name: str) -> None:
    models = [make_model(), make_model()]
    plain, scaled = (
        gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), METHODS[name]()) for model in models
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(2):
        plain.observe(*(losses_of(models[0], step, batch) for batch in (1, 2)))
        scaled.observe(*(losses_of(models[1], step, batch) for batch in (1, 2)), grad_scaler=scaler)
    assert_near(scaled.aggregator.simplex, plain.aggregator.simplex, 1e-12)


@pytest.mark.parametrize("scope", ["tensor", "module"])
@pytest.mark.parametrize("inside", [lambda method: method, lambda method: gs.Chain(gs.Mean(), method)])
@pytest.mark.parametrize("name", ["SDMGrad", "MoDo"])
def test_scope_must_be_all(name: str, inside: Callable[[Aggregator], Aggregator], scope: Any) -> None:
    model = make_model()
    method = METHODS[name]()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = gs.MultiObjectiveOptimizer(plain, inside(method), shared=model["trunk"], scope=scope)
    method.observe(optimizer.jacobian(losses_of(model, 0, 1)), optimizer.jacobian(losses_of(model, 0, 2)))
    before = state_of(method)
    with pytest.raises(
        ValueError, match="^MultiObjectiveOptimizer: `scope` must be 'all' for a method that learns from"
    ):
        optimizer.backward(losses_of(model, 0, 3))
    assert_same_bits(state_of(method), before)
    assert all(parameter.grad is None for parameter in model.parameters())


# --- what they stand on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 7, 100_001])
def test_cross_gramian(columns: int, dtype: torch.dtype) -> None:
    first, second = gaussian(3, columns, seed=1).to(dtype), gaussian(3, columns, seed=2).to(dtype)
    found = kernels.cross_gramian([first, first[:, 0], first.T.contiguous().T], [second, second[:, 0], second.T.T])
    expected = 2 * first.double() @ second.double().T + torch.outer(first[:, 0].double(), second[:, 0].double())
    assert found.dtype == torch.float64
    assert_near(found, expected, 1e-13)
    assert_near(kernels.cross_gramian([first], [first]), kernels.gramian([first])[0], 1e-13)
    assert_near(kernels.cross_gramian([first[:, :0]], [second[:, :0]]), torch.zeros(3, 3), 0.0)


def test_projection_on_the_simplex() -> None:
    source = np.random.default_rng(0)
    for count in (1, 2, 3, 8):
        points = source.standard_normal((50, count)) * 10.0 ** source.integers(-3, 3, (50, 1))
        found = project_on_simplex(points)
        for point, projected in zip(points, found, strict=True):
            assert_near(projected, np.array(literal_projection(point.tolist())), 1e-12)
        assert_near(project_on_simplex(found), found, 1e-15)
        assert_near(project_on_simplex(points.reshape(5, 10, count)).reshape(50, count), found, 0.0)


def test_projection_of_large_numbers_keeps_the_one() -> None:
    assert project_on_simplex(np.array([1e20, 1e20, -1e20])).tolist() == [0.5, 0.5, 0.0]
    assert project_on_simplex(np.array([1e300, 0.0])).tolist() == [1.0, 0.0]
    assert project_on_simplex(np.array([-1e-300])).tolist() == [1.0]
