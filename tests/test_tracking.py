"""Methods that remember gradients: ExcessMTL, MoCo and DB-MTL against their algorithms, entry by entry."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import assert_near, assert_same_bits, gaussian, norms_of, state_of
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.aggregators import DBMTL, Aggregator, ExcessMTL, MConFIG, MoCo

Row = dict[int, list[float]]  # by block


# --- the algorithms, one number after another --------------------------------------------------------------------


class Literal:
    """Remembers by loss and block, and returns the direction of each block as a list."""

    def __call__(self, rows: dict[int, Row], losses: dict[int, float]) -> Row:
        raise NotImplementedError


def combined(rows: dict[int, Row], weights: dict[int, float]) -> Row:
    blocks = next(iter(rows.values()))
    return {
        block: [sum(weights[k] * row[block][p] for k, row in rows.items()) for p in range(len(blocks[block]))]
        for block in blocks
    }


def length(row: Row) -> float:
    return math.sqrt(sum(entry**2 for block in row.values() for entry in block))


def followed(known: Row, target: Row, rate: float) -> Row:
    """The row, moved towards its target in the blocks that the target has."""
    moved = dict(known)
    for block, entries in target.items():
        old = known.get(block, [0.0] * len(entries))
        moved[block] = [a - rate * (a - b) for a, b in zip(old, entries, strict=True)]
    return moved


class LiteralExcessMTL(Literal):
    """He et al., with sums of squares and weights that are multiplied."""

    def __init__(self, eta: float, warmup: int = 1) -> None:
        self.eta, self.warmup = eta, warmup
        self.squares: dict[tuple[int, int, int], float] = {}
        self.weights: dict[int, float] = {}
        self.first: dict[int, list[float]] = {}

    def __call__(self, rows: dict[int, Row], losses: dict[int, float]) -> Row:
        risks = {}
        for k, row in rows.items():
            self.weights.setdefault(k, 1.0)
            risks[k] = 0.0
            for block, entries in row.items():
                for p, entry in enumerate(entries):
                    key = (k, block, p)
                    self.squares[key] = self.squares.get(key, 0.0) + entry**2
                    if entry != 0:
                        risks[k] += entry**2 / math.sqrt(self.squares[key])
        total = sum(self.weights[k] for k in rows)
        for k in rows:
            seen = self.first.setdefault(k, [])
            if len(seen) < self.warmup:
                self.weights[k] *= math.exp(self.eta)
                if risks[k] > 0:
                    seen.append(risks[k])
            else:
                self.weights[k] *= math.exp(self.eta * risks[k] / (sum(seen) / len(seen)))
        share = total / sum(self.weights[k] for k in rows)
        for k in rows:
            self.weights[k] *= share
        return combined(rows, {k: self.weights[k] * len(rows) / total for k in rows})


def literal_projection(point: dict[int, float]) -> dict[int, float]:
    """On the simplex, with the threshold found by bisection."""
    low, high = min(point.values()) - 1.0, max(point.values())
    for _ in range(200):
        middle = (low + high) / 2
        if sum(max(0.0, entry - middle) for entry in point.values()) > 1:
            low = middle
        else:
            high = middle
    return {k: max(0.0, entry - high) for k, entry in point.items()}


class LiteralMoCo(Literal):
    """Fernando et al., algorithm 1, with the decays and the normalization of their code."""

    def __init__(
        self, beta: float, gamma: float, rho: float, decays: tuple[float, float], normalized: bool = False
    ) -> None:
        self.beta, self.gamma, self.rho, self.decays, self.normalized = beta, gamma, rho, decays, normalized
        self.rows: dict[int, Row] = {}
        self.weights: dict[int, float] = {}
        self.calls: dict[int, int] = {}

    def __call__(self, rows: dict[int, Row], losses: dict[int, float]) -> Row:
        tracked = {}
        for k, row in rows.items():
            factor = 1.0
            if self.normalized:
                factor = losses[k] / length(row) if length(row) > 0 else 0.0
            self.calls[k] = self.calls.get(k, 0) + 1
            target = {block: [factor * entry for entry in entries] for block, entries in row.items()}
            rate = self.beta / self.calls[k] ** self.decays[0]
            self.rows[k] = followed(self.rows.get(k, {}), target, rate)
            tracked[k] = {block: self.rows[k][block] for block in row}
        step = self.gamma / max(self.calls[k] for k in rows) ** self.decays[1]
        start = literal_projection({k: self.weights.get(k, 1 / len(rows)) for k in rows})
        pulled = combined(tracked, start)
        point = {}
        for k, row in tracked.items():
            inner = sum(a * b for block in row for a, b in zip(row[block], pulled[block], strict=True))
            point[k] = start[k] - step * (inner + self.rho * start[k])
        self.weights.update(literal_projection(point))
        return combined(tracked, {k: self.weights[k] for k in rows})


class LiteralDBMTL(Literal):
    """Lin et al., algorithm 1."""

    def __init__(self, beta: float, decay: float = 0.0) -> None:
        self.beta, self.decay = beta, decay
        self.rows: dict[int, Row] = {}
        self.calls: dict[int, int] = {}

    def __call__(self, rows: dict[int, Row], losses: dict[int, float]) -> Row:
        tracked = {}
        for k, row in rows.items():
            self.calls[k] = self.calls.get(k, 0) + 1
            target = {block: [entry / losses[k] for entry in entries] for block, entries in row.items()}
            rate = 1 - self.beta / self.calls[k] ** self.decay
            self.rows[k] = followed(self.rows.get(k, {}), target, rate)
            tracked[k] = {block: self.rows[k][block] for block in row}
        longest = max(length(row) for row in tracked.values())
        return combined(tracked, {k: longest / length(row) if length(row) > 0 else 0.0 for k, row in tracked.items()})


PAIRS: dict[str, tuple[Callable[[], Aggregator], Callable[[], Literal]]] = {
    "ExcessMTL": (ExcessMTL, lambda: LiteralExcessMTL(0.01)),
    "ExcessMTL, large steps": (lambda: ExcessMTL(0.7), lambda: LiteralExcessMTL(0.7)),
    "ExcessMTL, warm-up": (lambda: ExcessMTL(0.7, warmup=3), lambda: LiteralExcessMTL(0.7, 3)),
    "MoCo": (MoCo, lambda: LiteralMoCo(0.5, 0.1, 0.0, (0.5, 0.5))),
    "MoCo, constant steps": (
        lambda: MoCo(0.3, 0.02, 0.5, beta_decay=0.0, gamma_decay=0.0),
        lambda: LiteralMoCo(0.3, 0.02, 0.5, (0.0, 0.0)),
    ),
    "MoCo, of the losses' lengths": (
        lambda: MoCo(normalization="loss"),
        lambda: LiteralMoCo(0.5, 0.1, 0.0, (0.5, 0.5), normalized=True),
    ),
    "DBMTL": (DBMTL, lambda: LiteralDBMTL(0.9)),
    "DBMTL, decaying": (lambda: DBMTL(0.5, beta_decay=0.5), lambda: LiteralDBMTL(0.5, 0.5)),
    "DBMTL, without memory": (lambda: DBMTL(0.0), lambda: LiteralDBMTL(0.0)),
}


def literal_direction(
    literal: Literal, blocks: list[Tensor], losses: Tensor, rows: list[int], columns: list[int]
) -> list[Tensor]:
    by_loss = {
        k: {column: block[i].double().flatten().tolist() for column, block in zip(columns, blocks, strict=True)}
        for i, k in enumerate(rows)
    }
    direction = literal(by_loss, dict(zip(rows, losses.tolist(), strict=True)))
    return [
        torch.tensor(direction[column], dtype=torch.float64).view(block.shape[1:])
        for column, block in zip(columns, blocks, strict=True)
    ]


def jacobian(step: int, count: int = 4) -> list[Tensor]:
    """Blocks of a matrix, a vector and a scalar, with zeros: a column throughout, and at first a row."""
    matrix = gaussian(count, 12, seed=step) * torch.logspace(-1, 1, count, dtype=torch.float64).unsqueeze(1)
    matrix[:, 2] = 0.0
    matrix[-1] *= step > 1
    return [matrix[:, :6].reshape(count, 3, 2), matrix[:, 6:11], matrix[:, 11]]


def losses_at(step: int, count: int = 4) -> Tensor:
    return torch.linspace(0.3, 2.0, count, dtype=torch.float64) / (1 + step)


@pytest.mark.parametrize("name", PAIRS)
def test_several_steps_are_the_algorithm(name: str) -> None:
    method, literal = PAIRS[name][0](), PAIRS[name][1]()
    for step in range(8):
        blocks, losses = jacobian(step), losses_at(step)
        expected = literal_direction(literal, blocks, losses, [0, 1, 2, 3], [0, 1, 2])
        for found, wanted in zip(method(blocks, losses), expected, strict=True):
            assert_near(found, wanted, 1e-11)


@pytest.mark.parametrize("name", PAIRS)
def test_absent_losses_and_parameters_wait(name: str) -> None:
    """A loss that is new starts like the others; one that returns finds what it left, and so do parameters."""
    method, literal = PAIRS[name][0](), PAIRS[name][1]()
    present = [([0, 1], [0, 1]), ([2, 0], [1, 0]), ([0, 1, 2, 3], [0, 1, 2]), ([3], [2]), ([1, 3], [0, 2])]
    for step, (rows, columns) in enumerate(present * 3):
        blocks = [jacobian(step)[column][rows] for column in columns]
        losses = losses_at(step)[rows]
        expected = literal_direction(literal, blocks, losses, rows, columns)
        for found, wanted in zip(method(blocks, losses, rows=rows, columns=columns), expected, strict=True):
            assert_near(found, wanted, 1e-10, 1e-14)


@pytest.mark.parametrize("name", PAIRS)
def test_a_fresh_state_would_give_another_direction(name: str) -> None:
    if name == "DBMTL, without memory":
        return
    method = PAIRS[name][0]()
    for step in range(6):
        found = method(jacobian(step)[1], losses_at(step))
    with pytest.raises(AssertionError):
        assert_near(PAIRS[name][0]()(jacobian(5)[1], losses_at(5)), found, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PAIRS)
def test_precision_of_the_state(name: str, dtype: torch.dtype) -> None:
    """The state has float32 at least, so that the direction is as exact as the gradients."""
    single, double = PAIRS[name][0](), PAIRS[name][0]()
    for step in range(8):
        rough = [block.to(dtype) for block in jacobian(step)]
        expected = double([block.double() for block in rough], losses_at(step))
        found = single(rough, losses_at(step))
        assert {direction.dtype for direction in found} == {dtype}
        flat = [torch.cat([direction.double().flatten() for direction in one]) for one in (found, expected)]
        assert_near(*flat, 4 * torch.finfo(dtype).eps)
    kept = [value for key, value in single.state_dict().items() if key.startswith(("tracked", "roots"))]
    assert {value.dtype for value in kept} == {torch.float32}
    assert sum(value.numel() for value in kept) == 4 * 12


# --- what is remembered ------------------------------------------------------------------------------------------

METHODS: dict[str, Callable[[], Aggregator]] = {name: pair[0] for name, pair in PAIRS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_nonfinite_losses_or_gradients_leave_the_state(name: str) -> None:
    method = METHODS[name]()
    method(jacobian(2), losses_at(2))
    before = state_of(method)
    broken = jacobian(3)
    broken[1][0, 0] = torch.inf
    for direction in method(broken, losses_at(3)):
        assert not bool(direction.isfinite().any())
    assert_same_bits(state_of(method), before)
    bad = losses_at(3)
    bad[1] = -torch.inf
    directions = method(jacobian(3), bad)
    if isinstance(method, DBMTL) or (isinstance(method, MoCo) and method.normalization == "loss"):
        assert not any(bool(direction.isfinite().any()) for direction in directions)
        assert_same_bits(state_of(method), before)
    else:
        assert all(bool(direction.isfinite().all()) for direction in directions)


OVERFLOWING: dict[str, tuple[list[Tensor], Tensor]] = {
    "squares": ([1e200 * gaussian(4, 6, seed=1)], losses_at(0)),
    "quotients": ([1e20 * gaussian(4, 6, seed=1).float()], torch.tensor([1e-20, 1.0, 1.0, 1.0])),
    "sums of squares": ([torch.full((4, 6), 3e38)], losses_at(0)),
}


@pytest.mark.parametrize("overflow", OVERFLOWING)
@pytest.mark.parametrize("name", [*PAIRS, "MConFIG"])
def test_numbers_that_overflow_do_not_stay(name: str, overflow: str) -> None:
    """Either the direction is finite, or nothing has happened; whatever is remembered, later calls work."""
    blocks, losses = OVERFLOWING[overflow]
    calm = [1e-3 * block / block.abs().max() for block in blocks]
    for first in (True, False):
        method = MConFIG() if name == "MConFIG" else METHODS[name]()
        if not first:
            method(calm, losses_at(0))
        before = state_of(method)
        for _ in range(2):
            directions = method(blocks, losses)
            if not all(bool(direction.isfinite().all()) for direction in directions):
                assert_same_bits(state_of(method), before)
        assert all(bool(value.isfinite().all()) for value in method.state_dict().values())
        assert all(bool(direction.isfinite().all()) for direction in method(calm, losses_at(0)))


@pytest.mark.parametrize("name", [*PAIRS, "MConFIG"])
def test_squares_that_overflow_give_no_finite_direction(name: str) -> None:
    method = MConFIG() if name == "MConFIG" else METHODS[name]()
    blocks, losses = OVERFLOWING["squares"]
    if not name.startswith("ExcessMTL"):  # which takes no squares
        assert not bool(method(blocks, losses)[0].isfinite().all())


@pytest.mark.parametrize("count", [4, 6])
@pytest.mark.parametrize("name", METHODS)
def test_state_of_a_used_method_gives_way_to_what_is_loaded(name: str, count: int) -> None:
    original, used = METHODS[name](), METHODS[name]()
    original(jacobian(2)[:2], losses_at(2))
    for step in range(3):  # other blocks, another dtype
        used([block.float() for block in jacobian(step, count)], losses_at(step, count))
    used.load_state_dict(state_of(original))
    assert_same_bits(state_of(used), state_of(original))
    expected = original(jacobian(3), losses_at(3))
    assert_same_bits(used(jacobian(3), losses_at(3)), expected)
    used.reset()
    assert_same_bits(used(jacobian(3), losses_at(3)), METHODS[name]()(jacobian(3), losses_at(3)))


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_another_shape_are_refused(name: str) -> None:
    method = METHODS[name]()
    method(jacobian(2), losses_at(2))
    before = state_of(method)
    with pytest.raises(ValueError, match=r"^\w+: `jacobian` must keep the shape .*\(4, 5\), got \(4, 6\)"):
        method([jacobian(2)[0], torch.ones(4, 6), jacobian(2)[2]], losses_at(2))
    assert_same_bits(state_of(method), before)
    with pytest.raises(ValueError, match=r"^\w+: `jacobian` must be one \(K, P\) matrix .* got shape \(2, 4, 5\)"):
        method(torch.ones(2, 4, 5), losses_at(2))


@pytest.mark.parametrize("name", METHODS)
def test_parameters_without_entries(name: str) -> None:
    blocks = [torch.ones(4, 0, 3), *jacobian(2)]
    found = METHODS[name]()(blocks, losses_at(2))
    assert found[0].shape == (0, 3)
    for direction, expected in zip(found[1:], METHODS[name]()(jacobian(2), losses_at(2)), strict=True):
        assert_near(direction, expected, 1e-12)


# --- each method -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_excessmtl_has_no_squares_to_lose(scale: float) -> None:
    method, plain = ExcessMTL(0.5), ExcessMTL(0.5)
    for step in range(5):
        rows = jacobian(step)[1].float()
        assert_near(method(rows * scale) / scale, plain(rows), 1e-5)


def test_excessmtl_favours_what_does_not_improve() -> None:
    method = ExcessMTL(0.1)
    for step in range(50):
        direction = method(torch.diag(torch.tensor([1.0, 1.0, 0.98**step])))
    weights = direction / torch.tensor([1.0, 1.0, 0.98**49])
    assert_near(weights[0], weights[1], 1e-6)
    assert float(weights[2]) < 0.8 * float(weights[0])
    assert float(weights.mean()) == pytest.approx(1.0, rel=1e-6)


def test_excessmtl_weights_may_differ_without_bound() -> None:
    method = ExcessMTL(100.0)
    for step in range(50):
        direction = method(torch.diag(torch.tensor([1.0, 10.0**-step], dtype=torch.float64)))
    assert_near(direction, torch.tensor([2.0, 0.0], dtype=torch.float64), 1e-12)


def test_moco_tracks_the_mean_of_noisy_gradients() -> None:
    """With noise of its size in every gradient, the direction approaches the shortest combination of the means."""
    mean = gaussian(2, 6, seed=1)
    method = MoCo(gamma=0.05, beta_decay=0.7, gamma_decay=0.0)
    for step in range(2000):
        direction = method(mean + gaussian(2, 6, seed=100 + step))
    assert_near(direction, gs.MGDA()(mean), 0.2)


def test_moco_steps_depend_on_the_scale() -> None:
    rows = gaussian(3, 5)
    assert float((MoCo()(10 * rows) / 10 - MoCo()(rows)).norm()) > 0.1 * float(MoCo()(rows).norm())


def test_dbmtl_brings_all_to_one_length_whatever_the_losses() -> None:
    rows, losses = gaussian(3, 5), torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)
    directions = [
        DBMTL()(rows * factors, losses * factors[:, 0]) for factors in (torch.ones(3, 1), 1e-9 * torch.ones(3, 1))
    ]
    assert_near(directions[0], directions[1], 1e-12)
    units = rows / norms_of(rows).unsqueeze(1)
    assert_near(directions[0], 0.1 * float((norms_of(rows) / losses).max()) * units.sum(0), 1e-12)


# --- in the wrapper ----------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A trunk, a second shared layer that is first of all but not always used, and three heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, 3).double()
        self.extra = nn.Linear(3, 3).double()
        self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(3)).double()

    def losses(self, step: int) -> dict[str, Tensor | None]:
        z = self.trunk(torch.linspace(-1, 1, 24, dtype=torch.float64).view(6, 4).roll(step, 0)).tanh()
        if step % 3 != 1:
            z = self.extra(z)
        losses = {str(k): (head(z) - k).square().mean() for k, head in enumerate(self.heads)}
        return {key: None if step % 4 == 2 and key == "1" else loss for key, loss in losses.items()}

    def shared(self) -> list[Tensor]:
        return [*self.extra.parameters(), *self.trunk.parameters()]


def train(model: Model, optimizer: gs.MultiObjectiveOptimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        optimizer.backward(model.losses(step))
        optimizer.step()


def train_by_hand(model: Model, literal: Literal, steps: range) -> None:
    shared, heads = model.shared(), list(model.heads.parameters())
    for step in steps:
        losses = {int(key): loss for key, loss in model.losses(step).items() if loss is not None}
        rows, columns = list(losses), [2, 3] if step % 3 == 1 else [0, 1, 2, 3]
        used = [shared[column] for column in columns]
        gradients = [torch.autograd.grad(loss, used, retain_graph=True) for loss in losses.values()]
        blocks = [torch.stack(block) for block in zip(*gradients, strict=True)]
        values = torch.tensor([float(loss.detach()) for loss in losses.values()], dtype=torch.float64)
        directions = literal_direction(literal, blocks, values, rows, columns)
        own = torch.autograd.grad(sum(losses.values()), heads, allow_unused=True)
        with torch.no_grad():
            for parameter, direction in [*zip(used, directions, strict=True), *zip(heads, own, strict=True)]:
                if direction is not None:
                    parameter -= 0.05 * direction


def wrapped(model: Model, method: Aggregator) -> gs.MultiObjectiveOptimizer:
    order = [*model.shared(), *model.heads.parameters()]
    return gs.MultiObjectiveOptimizer(torch.optim.SGD(order, lr=0.05), method, shared=model.shared())


@pytest.mark.parametrize("name", PAIRS)
def test_training_is_the_algorithm(name: str) -> None:
    model, other = Model(), Model()
    train(model, wrapped(model, PAIRS[name][0]()), range(9))
    train_by_hand(other, PAIRS[name][1](), range(9))
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert_near(parameter, expected, 1e-10)
    with pytest.raises(AssertionError):
        assert_near(model.trunk.weight, Model().trunk.weight, 1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_training_continues_from_a_checkpoint(name: str, tmp_path: Any) -> None:
    model = Model()
    optimizer = wrapped(model, METHODS[name]())
    train(model, optimizer, range(5))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other = Model()
    resumed = wrapped(other, METHODS[name]())
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(model, optimizer, range(5, 10))
    train(other, resumed, range(5, 10))
    assert_same_bits(dict(other.state_dict()), dict(model.state_dict()))
    assert_same_bits(dict(resumed.aggregator.state_dict()), dict(optimizer.aggregator.state_dict()))


def test_parameters_that_join_later_follow() -> None:
    """A group that is added shifts no position, so that the parameters before it find their own memory."""
    model, other, later = Model(), Model(), nn.Linear(3, 3, bias=False).double()
    order = [*model.shared(), *model.heads.parameters()]
    inner = torch.optim.SGD(order, lr=0.05)
    optimizer, plain = (
        gs.MultiObjectiveOptimizer(inner, MoCo(), shared=[*model.shared(), later]),
        wrapped(other, MoCo()),
    )
    train(model, optimizer, range(2))
    optimizer.add_param_group({"params": later.parameters()})
    train(model, optimizer, range(2, 4))
    train(other, plain, range(4))
    assert_same_bits(dict(model.state_dict()), dict(other.state_dict()))
    z = later(model.trunk(torch.ones(2, 4, dtype=torch.float64)))
    optimizer.backward({str(k): head(z).sum() for k, head in enumerate(model.heads)})
    added = optimizer.aggregator.state_dict().keys() - plain.aggregator.state_dict().keys()
    assert added == {f"tracked_{len(order)}"}


@pytest.mark.parametrize("inside", [lambda method: method, lambda method: gs.Chain(gs.Mean(), method)])
@pytest.mark.parametrize("method", [ExcessMTL, MoCo, DBMTL])
def test_sparse_gradients_are_refused(
    method: Callable[[], Aggregator], inside: Callable[[Aggregator], Aggregator]
) -> None:
    table, head = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 2)
    named = [("table", table.weight), *head.named_parameters()]
    aggregator = inside(method())
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(named, lr=0.1), aggregator)
    losses = list(head(table(torch.tensor([0, 3]))).square().sum(0))
    with pytest.raises(
        RuntimeError, match=r"must have dense gradients .* parameter 'table', .* Use Embedding\(sparse=F"
    ):
        optimizer.backward(losses)
    assert [parameter.grad for _, parameter in named] == [None] * 3
    assert aggregator.state_dict() == {}


@pytest.mark.parametrize("method", [ExcessMTL, MoCo, DBMTL])
def test_parameters_that_the_optimizer_does_not_hold_are_refused(method: Callable[[], Aggregator]) -> None:
    model, aggregator = Model(), method()
    inner = torch.optim.SGD([*model.trunk.parameters(), *model.heads.parameters()], lr=0.1)
    optimizer = gs.MultiObjectiveOptimizer(inner, aggregator, shared=model.shared())
    with pytest.raises(ValueError, match=r"`shared` must hold parameters of the optimizer .* shape \(3, 3\) with"):
        optimizer.backward(model.losses(0))
    assert [parameter.grad for parameter in model.parameters()] == [None] * 10
    assert aggregator.state_dict() == {}
    optimizer.backward(model.losses(1))  # which reach held ones only
    assert aggregator.state_dict() != {}


@pytest.mark.parametrize("name", METHODS)
def test_last_in_a_chain(name: str) -> None:
    chain, method, mean = gs.Chain(gs.Mean(), METHODS[name]()), METHODS[name](), 0.25
    for step in range(3):
        rows = jacobian(step)[1]
        assert_near(chain(rows, losses_at(step)), method(mean * rows, losses_at(step)), 1e-12)


# --- what is refused ---------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExcessMTL(0.0), "ExcessMTL: `eta` must be a finite number > 0, got 0.0"),
        (lambda: ExcessMTL(INF), "ExcessMTL: `eta` must be .*, got inf"),
        (lambda: ExcessMTL(warmup=0), "ExcessMTL: `warmup` must be an integer >= 1, got 0"),
        (lambda: ExcessMTL(warmup=1.5), "ExcessMTL: `warmup` must be an integer >= 1, got 1.5"),
        (lambda: MoCo(0.0), r"MoCo: `beta` must be in \(0, 1\], got 0.0"),
        (lambda: MoCo(NAN), r"MoCo: `beta` must be .*, got nan"),
        (lambda: MoCo(gamma=-1.0), "MoCo: `gamma` must be a finite number > 0, got -1.0"),
        (lambda: MoCo(rho=-0.1), "MoCo: `rho` must be a finite number >= 0, got -0.1"),
        (lambda: MoCo(beta_decay=NAN), "MoCo: `beta_decay` must be .*, got nan"),
        (lambda: MoCo(gamma_decay=-1.0), "MoCo: `gamma_decay` must be .*, got -1.0"),
        (lambda: MoCo(normalization="l1"), "MoCo: `normalization` must be one of .*, got 'l1'"),
        (lambda: DBMTL(1.0), r"DBMTL: `beta` must be in \[0, 1\), got 1.0"),
        (lambda: DBMTL(-0.1), "DBMTL: `beta` must be .*, got -0.1"),
        (lambda: DBMTL(beta_decay=INF), "DBMTL: `beta_decay` must be a finite number >= 0, got inf"),
    ],
)
def test_invalid_options(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


@pytest.mark.parametrize(
    ("method", "losses", "message"),
    [
        (DBMTL(), None, "DBMTL: `losses` must be positive, got none. Hand over the loss values"),
        (DBMTL(), [1.0, 0.0], r"DBMTL: `losses` must be positive, got \[1.0, 0.0\]"),
        (DBMTL(), [1.0, -2.0], r"DBMTL: `losses` must be positive, got \[1.0, -2.0\]"),
        (MoCo(normalization="loss"), None, "MoCo: `losses` must be >= 0 for normalization='loss', got none"),
        (MoCo(normalization="loss"), [1.0, -1.0], r"MoCo: `losses` must be >= 0 .*, got \[1.0, -1.0\]"),
    ],
)
def test_losses_that_are_needed(method: Aggregator, losses: list[float] | None, message: str) -> None:
    values = None if losses is None else torch.tensor(losses, dtype=torch.float64)
    method = copy.deepcopy(method)
    with pytest.raises(ValueError, match=f"^{message}"):
        method(torch.eye(2), values)
    assert not method.state_dict()
