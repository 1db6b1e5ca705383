"""The monitor sees what surgeries do, changes nothing, and goes on where it was."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import parallel
import pytest
import torch
from crew import Crew
from support import assert_same_bits
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.diagnostics import similarity
from gradsurgery.diagnostics.monitor.monitor import ConflictMonitor
from gradsurgery.looking import Look

BATCHES = [torch.linspace(-1, 1, 20).view(5, 4) * (1 + k) + 0.2 * k for k in range(8)]


class Network(nn.Module):
    """A trunk that draws random numbers and keeps statistics, and three heads."""

    def __init__(self, blocks: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 6))
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in "abc"})
        self.blocks = nn.ModuleList(gs.ImpartialityBlock(3, gs.UPGrad()) for _ in range(blocks))

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        z = self.trunk(batch)
        views: Any = [z, z, z]
        for block in self.blocks:
            views = [view + other for view, other in zip(views, block(z), strict=True)]
        outputs = zip("abc", self.heads.values(), views, strict=True)
        return {name: (head(view) - k).square().mean() * 2**k for k, (name, head, view) in enumerate(outputs)}


def wrapped(model: Network, method: Any, **options: Any) -> gs.MultiObjectiveOptimizer:
    inner = torch.optim.SGD(model.named_parameters(), lr=0.005, momentum=0.9)
    return gs.MultiObjectiveOptimizer(inner, method, shared=model.trunk, **options)


def train(
    method: Callable[[], Any] | None, watch: bool, blocks: int = 0, batches: int = 8, **options: Any
) -> tuple[dict[str, Tensor], ConflictMonitor | None, list[gs.Surgery]]:
    """Parameters, buffers and the random state after some steps; the monitor; what the surgeries returned."""
    model = Network(blocks)
    scope = {"scope": options.pop("own_scope")} if "own_scope" in options else {}
    optimizer: Any = (
        torch.optim.SGD(model.parameters(), lr=0.005) if method is None else wrapped(model, method(), **scope)
    )
    monitor = None
    if watch:
        monitor = ConflictMonitor(model if method is None else optimizer, **options)
    torch.manual_seed(1)
    surgeries = []
    for batch in BATCHES[:batches]:
        losses = model.losses(batch)
        optimizer.zero_grad()
        if method is None:
            if monitor is not None and not blocks:
                monitor.record(losses)
            sum(losses.values()).backward()  # type: ignore[union-attr]
        else:
            surgeries.append(optimizer.backward(losses))
        optimizer.step()
    return {**model.state_dict(), "random state": torch.get_rng_state()}, monitor, surgeries


# --- nothing is changed --------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "the Gramian is there": {"method": gs.UPGrad},
    "a method with a state": {"method": gs.GradNorm},
    "another scope": {"method": gs.UPGrad, "scope": "tensor"},
    "groups, watched as a whole": {"method": gs.MGDA, "own_scope": "module"},
    "a scalarizer": {"method": gs.scalarizers.UncertaintyWeighting},
    "over the gradients themselves": {"method": lambda: gs.GradDrop(generator=torch.Generator().manual_seed(3))},
    "over the gradients, as they are": {"method": lambda: gs.aggregators.TrimmedMean(), "scope": None},
    "a plain sum": {"method": None},
    "a plain sum, by tensor": {"method": None, "scope": "tensor"},
    "a block": {"method": None, "blocks": 1},
    "two blocks": {"method": None, "blocks": 2},
}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_changed(case: str, every: int) -> None:
    plain, _, _ = train(watch=False, **CASES[case])
    seen, monitor, _ = train(watch=True, every=every, **CASES[case])
    assert_same_bits(seen, plain)
    assert monitor is not None
    assert monitor.history.steps.tolist() == list(range(0, 8, every))
    as_it_is = CASES[case].get("scope", "all") is None
    assert bool(monitor.history.gramians.isnan().all()) == as_it_is


def test_the_comparison_can_fail() -> None:
    with pytest.raises(AssertionError):
        assert_same_bits(train(gs.UPGrad, False)[0], train(gs.MGDA, False)[0])


# --- what it sees --------------------------------------------------------------------------------------------------


def test_it_sees_what_the_surgeries_do() -> None:
    _, monitor, surgeries = train(gs.UPGrad, True, every=1)
    assert monitor is not None
    history = monitor.history
    assert history.names == ("a", "b", "c")
    assert history.groups == ("all",)
    for time, surgery in enumerate(surgeries):
        assert surgery.gramian is not None
        assert surgery.weights is not None
        assert history.weights is not None
        assert torch.equal(history.gramians[time, 0], surgery.gramian)
        assert torch.equal(history.losses[time], surgery.losses)
        assert torch.equal(history.weights[time], surgery.weights)
        assert torch.equal(history.cosines[time, 0], similarity.cosines(surgery.gramian))
    cosines = history.cosines[:, 0, 0, 1].tolist()
    factors = [0.9 ** (7 - time) for time in range(8)]
    mean = sum(f * c for f, c in zip(factors, cosines, strict=True)) / sum(factors)
    assert float(monitor.averages.cosines[0, 0, 1]) == pytest.approx(mean)


@pytest.mark.parametrize("cls", gs.aggregators.CONTRACTS)
def test_what_a_method_goes_on_with_is_not_what_is_recorded(cls: type[gs.Aggregator]) -> None:
    """Tensors are kept as they are until somebody asks; a method that wrote to its last weights would change them."""
    model = Network()
    optimizer = wrapped(model, gs.aggregators.CONTRACTS[cls].build())
    monitor, copies = ConflictMonitor(optimizer, every=1, scope=None), []
    for batch in BATCHES[:3]:
        surgery = optimizer.backward(model.losses(batch))
        copies.append(None if surgery.weights is None else surgery.weights.double().clone())
        optimizer.step()
    weights = monitor.history.weights
    assert (weights is None) == (copies[0] is None)
    if weights is not None:
        assert torch.equal(weights, torch.stack([each for each in copies if each is not None]))


@pytest.mark.parametrize("method", [gs.UPGrad, None], ids=["surgery", "plain sum"])
@pytest.mark.parametrize("scope", ["module", "tensor"])
def test_layer_by_layer(method: Any, scope: str) -> None:
    _, parts, _ = train(method, True, every=2, scope=scope)
    _, whole, _ = train(method, True, every=2)
    assert parts is not None
    assert whole is not None
    groups = 3 if scope == "module" else 6
    assert len(parts.history.groups) == groups
    assert parts.history.gramians.shape == (4, groups, 3, 3)
    # Without tags, a plain sum shares what two losses reach: the trunk, as named here.
    assert torch.allclose(parts.history.joint_gramians, whole.history.gramians[:, 0], rtol=1e-6, atol=1e-9)
    assert f"{parts.history.groups[0]}: a - b" in str(parts)


def test_losses_that_come_and_go() -> None:
    model = Network()
    optimizer = wrapped(model, gs.UPGrad())
    monitor = ConflictMonitor(optimizer, every=1)
    for step, batch in enumerate(BATCHES[:4]):
        losses: dict[str, Tensor | None] = dict(model.losses(batch))
        losses["a" if step == 0 else "b"] = None
        optimizer.backward(losses)
    history = monitor.history
    assert set(history.names) == {"a", "b", "c"}
    first, second = history.names.index("a"), history.names.index("b")
    assert history.losses[:, first].isnan().tolist() == [True, False, False, False]
    assert history.losses[:, second].isnan().tolist() == [False, True, True, True]
    assert math.isnan(float(monitor.averages.cosines[0, first, second]))
    assert not math.isnan(float(monitor.averages.cosines[0, first, history.names.index("c")]))


def test_lists_of_losses_get_names() -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD([x]), gs.UPGrad())
    monitor = ConflictMonitor(optimizer, every=1, names=["depth", "labels"])
    optimizer.backward([x.sum(), x.square().sum(), -x[0]])
    assert monitor.history.names == ("depth", "labels", "2")


def test_names_that_losses_have_already_are_refused() -> None:
    model = Network()
    first, second, _ = model.losses(BATCHES[0]).values()
    monitor = ConflictMonitor(model, names=["depth", "normals"])
    with pytest.raises(ValueError, match=r"must not hold names that losses have already, got \['depth', 'normals'\]"):
        monitor.record({"0": first, "depth": second})


def test_an_overflow_is_recorded_and_counts_for_nothing() -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD([x]), gs.Sum())
    monitor = ConflictMonitor(optimizer, every=1)
    for factor in (1.0, math.inf, 1.0):
        optimizer.backward({"up": factor * x[0] + x[1], "down": -x[0]})
    assert monitor.history.overflows == 1
    assert float(monitor.averages.cosines[0, 0, 1]) == pytest.approx(-(0.5**0.5))
    assert "1 of them overflown" in str(monitor)


def test_two_monitors_on_one_optimizer() -> None:
    model = Network()
    optimizer = wrapped(model, gs.UPGrad())
    often, seldom = ConflictMonitor(optimizer, every=1), ConflictMonitor(optimizer, every=3, scope="module")
    for batch in BATCHES:
        optimizer.backward(model.losses(batch))
    assert often.history.steps.tolist() == list(range(8))
    assert seldom.history.steps.tolist() == [0, 3, 6]
    assert torch.allclose(seldom.history.joint_gramians, often.history.gramians[::3, 0], rtol=1e-6)


def test_through_scalarize_and_a_scaler() -> None:
    found = []
    for enabled in (True, False):
        model = Network()
        optimizer = wrapped(model, gs.UPGrad())
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        monitor = ConflictMonitor(optimizer, every=1)
        torch.manual_seed(1)
        for batch in BATCHES[:3]:
            optimizer.zero_grad()
            scaler.scale(optimizer.scalarize(model.losses(batch))).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(monitor.history)
    assert torch.allclose(found[0].gramians, found[1].gramians, rtol=1e-5, atol=1e-12)
    assert len(found[0]) == 3


# --- a plain sum ---------------------------------------------------------------------------------------------------


def test_the_gramian_of_a_plain_sum_is_that_of_a_surgery() -> None:
    model = Network()
    twin = copy.deepcopy(model)
    optimizer, monitor = wrapped(twin, gs.Sum()), ConflictMonitor(model, every=1)
    for batch in BATCHES[:3]:
        torch.manual_seed(2)
        monitor.record(model.losses(batch))
        torch.manual_seed(2)
        optimizer.backward(twin.losses(batch))
    expected = ConflictMonitor(optimizer, every=1)
    torch.manual_seed(2)
    optimizer.backward(twin.losses(BATCHES[2]))
    assert torch.allclose(monitor.history.gramians[-1], expected.history.gramians[-1], rtol=1e-5, atol=1e-10)
    assert monitor.history.weights is None


def test_a_scaler_saves_gradients_that_float16_would_lose() -> None:
    """The gradient passes through a float16 tensor, in which 1e-9 is zero."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    x = nn.Parameter(torch.ones(2))
    model = nn.ParameterList([x])
    monitor = ConflictMonitor(model, every=1)
    for known in (None, scaler):
        half = x.half().float()
        monitor.record({"a": 1e-9 * half.sum(), "b": 2e-9 * half[0]}, grad_scaler=known)
    lost, saved = monitor.history.gramians[:, 0]
    assert torch.equal(lost, torch.zeros(2, 2))
    torch.testing.assert_close(saved, torch.tensor([[2.0, 2.0], [2.0, 4.0]]).double() * 1e-18, rtol=1e-2, atol=0)
    assert monitor.history.losses[0].tolist() == monitor.history.losses[1].tolist()


def test_steps_that_are_not_due_cost_nothing() -> None:
    model = Network()
    monitor = ConflictMonitor(model, every=4)
    with mock.patch.object(Look, "gramian", autospec=True, side_effect=Look.gramian) as looks:
        for batch in BATCHES:
            monitor.record(model.losses(batch))
        assert looks.call_count == 2
        monitor_losses: Any = None  # not even looked at
        monitor.record(model.losses(BATCHES[0]))
        monitor.record(monitor_losses)
    assert monitor.history.steps.tolist() == [0, 4, 8]


@pytest.mark.parametrize("kind", ["cpu", "bfloat16"])
def test_what_is_shared_may_be_told(kind: str) -> None:
    model = Network()
    everything, last = ConflictMonitor(model, every=1), ConflictMonitor(model, every=1, shared=model.trunk[4])
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
        losses = model.losses(BATCHES[0])
    everything.record(losses)
    last.record(losses)
    assert bool((last.history.norms < everything.history.norms).all())
    gradients = [
        torch.autograd.grad(loss, [*model.trunk[4].parameters()], retain_graph=True) for loss in losses.values()
    ]
    norms = torch.stack([torch.cat([part.flatten() for part in each]).norm() for each in gradients])
    assert torch.allclose(last.history.norms[0, 0], norms.double(), rtol=2e-2 if kind == "bfloat16" else 1e-5)


def test_losses_without_a_graph() -> None:
    model = Network()
    monitor = ConflictMonitor(model, every=1)
    losses = model.losses(BATCHES[0])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match=r"record\(losses\) before the loop's own backward"):
        monitor.record(losses)
    with torch.no_grad():
        losses = model.losses(BATCHES[0])
    with pytest.raises(
        ValueError, match=r"^ConflictMonitor: .*at least one that requires a gradient.*torch\.no_grad"
    ):
        monitor.record(losses)
    total: Any = sum(model.losses(BATCHES[0]).values())
    with pytest.raises(TypeError, match="Hand over a dict or list of the losses, not their sum"):
        monitor.record(total)


def test_record_is_for_plain_sums_alone() -> None:
    model = Network()
    losses = model.losses(BATCHES[0])
    with pytest.raises(
        RuntimeError, match="got MultiObjectiveOptimizer, whose surgeries are recorded as they happen"
    ):
        ConflictMonitor(wrapped(model, gs.UPGrad())).record(losses)
    with pytest.raises(RuntimeError, match="got Network, whose surgeries are recorded as they happen"):
        ConflictMonitor(Network(1)).record(losses)


def recorded_on(rank: int | None, surgical: bool) -> tuple[Tensor, Tensor]:
    """Gramians and losses of a part of the batch, or of all of it; ranks see what one process would."""
    model, (x, y) = parallel.Network(), parallel.batch()
    half = len(x) // 2
    own = parallel.part(rank, (0, half, 2 * half))
    x, y = x[: 2 * half][own], y[: 2 * half][own]
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters()), gs.UPGrad(), shared=model.trunk)
    monitor = ConflictMonitor(optimizer if surgical else model, every=2)
    for _ in range(4):
        losses = parallel.losses_of(model, x, y)
        if surgical:
            optimizer.backward(losses)
        else:
            monitor.record(losses)
    return monitor.history.gramians, monitor.history.losses


@pytest.mark.parametrize("surgical", [True, False])
def test_ranks_see_the_whole_batch(crew: Callable[[int], Crew], surgical: bool) -> None:
    alone = recorded_on(None, surgical)
    for found in crew(2)(recorded_on, surgical):
        parallel.assert_close(list(found), list(alone))
    assert len(alone[0]) == 2


def trained_in_parallel(rank: int, watched: bool, options: dict[str, bool]) -> list[Tensor]:
    model, (x, y) = parallel.Network(), parallel.batch()
    own = parallel.part(rank, (0, 4, 8))
    wrapped = nn.parallel.DistributedDataParallel(Whole(model), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ConflictMonitor(wrapped, every=2)
    for _ in range(4):
        optimizer.zero_grad()
        losses = wrapped(x[:8][own], y[:8][own])
        if watched:
            monitor.record(losses)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    return [each.detach() for each in model.parameters()]


class Whole(nn.Module):
    """A forward pass that ends in the losses."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = parallel.losses_of(self.model, x, y)
        return found


@pytest.mark.parametrize("option", ["find_unused_parameters", "static_graph", "gradient_as_bucket_view"])
def test_data_parallel_training_averages_its_gradients_as_before(crew: Callable[[int], Crew], option: str) -> None:
    first, second = crew(2)(trained_in_parallel, True, {option: True})
    plain, _ = crew(2)(trained_in_parallel, False, {option: True})
    assert_same_bits(first, plain)
    assert_same_bits(first, second)


# --- blocks --------------------------------------------------------------------------------------------------------


def test_one_block() -> None:
    model = Network(1)
    monitor = ConflictMonitor(model, every=1, names=["depth", "normals", "labels"])
    z_gradients: list[Tensor] = []
    z = model.trunk(BATCHES[0])
    views = model.blocks[0](z)
    for view in views:
        view.register_hook(lambda gradient: z_gradients.append(gradient))
    sum(head(view).square().mean() for head, view in zip(model.heads.values(), views, strict=True)).backward()  # type: ignore[union-attr]
    rows = torch.stack([gradient.flatten() for gradient in reversed(z_gradients)]).double()
    history = monitor.history
    assert history.groups == ("all",)
    assert history.names == ("depth", "normals", "labels")
    lengths, expected = history.norms[0, 0].sort().values, rows.norm(dim=1).sort().values
    assert torch.allclose(lengths, expected, rtol=1e-5)
    assert bool(history.losses.isnan().all())
    assert "value" not in str(monitor)
    assert "weight" in str(monitor)


def test_several_blocks_are_groups_of_one_step() -> None:
    _, monitor, _ = train(None, True, blocks=2, every=1)
    assert monitor is not None
    history = monitor.history
    assert history.groups == ("blocks.0", "blocks.1")
    assert history.steps.tolist() == list(range(8))
    assert history.weights is not None
    assert history.weights.shape == (8, 2, 3)
    assert torch.allclose(history.gramians[:, 0], history.gramians[:, 1])  # both are at the same z


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_block_that_is_passed_by_is_absent(every: int) -> None:
    model = Network(2)
    monitor = ConflictMonitor(model, every=every)
    passes = [[0, 1], [0], [0, 1], [0], [1], [0], [0, 1]]
    expected: list[dict[str, Tensor]] = []
    for number, block in enumerate(model.blocks):
        block.register_surgery_hook(
            lambda surgery, key=f"blocks.{number}": expected[-1].update({key: surgery.gramian})
        )  # type: ignore[operator]
    for count, used in enumerate(passes):
        expected.append({})
        z = model.trunk(BATCHES[0] + count)
        views = [model.blocks[number](z * (1 + number)) for number in used]
        torch.stack([view.square().mean() * k for own in views for k, view in enumerate(own)]).sum().backward()
    history = monitor.history
    assert history.groups == ("blocks.0", "blocks.1")
    assert history.steps.tolist() == list(range(0, len(passes), every))
    for step, gramians in zip(history.steps.tolist(), history.gramians, strict=True):
        for group, gramian in zip(history.groups, gramians, strict=True):
            own = expected[step].get(group)
            assert gramian.isnan().all() if own is None else torch.equal(gramian, own)


def test_blocks_that_differ() -> None:
    model = nn.ModuleDict({"one": gs.ImpartialityBlock(2, gs.Sum()), "other": gs.ImpartialityBlock(3, gs.Sum())})
    with pytest.raises(ValueError, match=r"same number of branches, got \{'one': 2, 'other': 3\}"):
        ConflictMonitor(model)
    assert ConflictMonitor(model["one"]).history.groups == ("all",)
    with pytest.raises(ValueError, match="`names` must hold one for each of the 2 branches"):
        ConflictMonitor(model["one"], names=["alone"])
    with pytest.raises(ValueError, match="`scope` must be 'all' for a model with blocks"):
        ConflictMonitor(Network(1), scope="tensor")


# --- on the way ----------------------------------------------------------------------------------------------------


class Untouchable(Tensor):
    """Raises in whatever is done with it: on a GPU, reading it would be a wait."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} of a surgery's tensor")


def test_without_loggers_no_tensor_is_touched() -> None:
    optimizer = wrapped(Network(), gs.UPGrad())
    monitor = ConflictMonitor(optimizer, every=1)
    numbers, matrix = torch.zeros(2).as_subclass(Untouchable), torch.eye(2).as_subclass(Untouchable)
    surgery = gs.Surgery(("a", "b"), numbers, numbers, matrix)
    for _ in range(100):
        monitor._seen(surgery)
    with pytest.raises(AssertionError, match="of a surgery's tensor"):
        _ = monitor.history


def test_no_graph_is_kept() -> None:
    for method in (gs.UPGrad, None, gs.scalarizers.UncertaintyWeighting):
        model = Network()
        optimizer: Any = None if method is None else wrapped(model, method())
        monitor = ConflictMonitor(model if optimizer is None else optimizer, every=1)
        losses = model.losses(BATCHES[0])
        if optimizer is None:
            monitor.record(losses)
        else:
            optimizer.backward(losses)
        ((_, surgery),) = monitor._recording._pending
        for tensor in (surgery.losses, surgery.weights, surgery.gramian):
            assert tensor is None or not tensor.requires_grad


def test_written_at_once() -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    model = Network()
    optimizer = wrapped(model, gs.UPGrad())
    monitor = ConflictMonitor(optimizer, every=2, loggers=[lambda m, s: rows.append((s, m))], prefix="conflicts/")
    for number, batch in enumerate(BATCHES):
        surgery = optimizer.backward(model.losses(batch))
        optimizer.step()
        assert len(rows) == number // 2 + 1
        if number % 2 == 0:
            expected = gs.diagnostics.surgery_metrics(surgery, "conflicts/")
            assert {name: rows[-1][1][name] for name in expected} == expected
    assert [step for step, _ in rows] == [0, 2, 4, 6]
    mean = float(monitor.averages.cosines[0, 0, 1])
    assert rows[-1][1]["conflicts/mean/cosine/a-b"] == pytest.approx(mean)
    assert rows[-1][1]["conflicts/mean/conflicting"] == pytest.approx(float(monitor.averages.conflicting_share[0]))
    lowest = min(value for name, value in rows[-1][1].items() if "mean/cosine" in name)
    assert rows[-1][1]["conflicts/mean/lowest_cosine"] == lowest


def test_written_layer_by_layer_and_with_many_losses() -> None:
    rows: list[dict[str, float]] = []
    model = Network()
    optimizer = wrapped(model, gs.UPGrad())
    ConflictMonitor(
        optimizer, every=1, scope="module", loggers=[lambda m, s: rows.append(m)], prefix="", max_losses=2
    )
    optimizer.backward(model.losses(BATCHES[0]))
    (row,) = rows
    groups = {name.rpartition("/")[0] for name in row}
    assert len(groups) == 5  # the summary, that of the means, and three modules
    assert not any("/cosine/" in name or "norm/" in name for name in row)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*treespec, LeafSpec.*:FutureWarning")
def test_a_logger_of_lightning_in_training() -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning")
    from lightning.pytorch.loggers.logger import Logger

    from gradsurgery.integrations.lightning import scalarize

    class Memory(Logger):
        name, version = "memory", 0
        rows: list[tuple[int | None, dict[str, float]]] = []  # noqa: RUF012

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.rows.append((step, metrics))

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            """There are none."""

    class Model(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()

        def configure_optimizers(self) -> Any:
            optimizer = wrapped(self.network, gs.UPGrad())
            self.monitor = ConflictMonitor(optimizer, every=2, loggers=[self.trainer.logger])
            return optimizer

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return scalarize(self, self.network.losses(batch))

    model, logger = Model(), Memory()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=logger, log_every_n_steps=1, **quiet)
    loader = torch.utils.data.DataLoader(torch.stack(BATCHES), batch_size=None)
    trainer.fit(model, loader)
    steps = [step for step, row in logger.rows if "surgery/mean/conflicting" in row]
    assert steps == list(range(0, 16, 2))
    assert model.monitor.history.steps.tolist() == steps


# --- its life ------------------------------------------------------------------------------------------------------


def test_copies_of_the_optimizer_are_not_watched() -> None:
    model = Network()
    optimizer = wrapped(model, gs.UPGrad())
    monitor = ConflictMonitor(optimizer, every=1, loggers=[lambda m, s: None])  # a lambda cannot be pickled
    optimizer.backward(model.losses(BATCHES[0]))
    for twin_model, twin in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        twin.backward(twin_model.losses(BATCHES[0]))
    assert len(monitor.history) == 1


def test_it_stops_when_it_is_closed() -> None:
    model = Network()
    optimizer = wrapped(model, gs.UPGrad())
    with ConflictMonitor(optimizer, every=1) as monitor:
        optimizer.backward(model.losses(BATCHES[0]))
    optimizer.backward(model.losses(BATCHES[0]))
    monitor.close()
    assert len(monitor.history) == 1
    with ConflictMonitor(model, every=1) as other:
        other.record(model.losses(BATCHES[0]))
    with pytest.raises(RuntimeError, match="must be open, got one after close"):
        other.record(model.losses(BATCHES[0]))
    assert len(other.history) == 1


@pytest.mark.parametrize("surgical", [True, False])
def test_it_goes_on_from_a_checkpoint(surgical: bool) -> None:
    def run(parts: list[list[Tensor]]) -> ConflictMonitor:
        model = Network()
        optimizer = wrapped(model, gs.UPGrad())
        monitor = ConflictMonitor(optimizer if surgical else model, every=2)
        torch.manual_seed(1)
        for number, part in enumerate(parts):
            if number:
                file = io.BytesIO()
                torch.save(monitor.state_dict(), file)
                monitor.close()
                monitor = ConflictMonitor(optimizer if surgical else model, every=2)
                file.seek(0)
                monitor.load_state_dict(torch.load(file, weights_only=True))
            for batch in part:
                losses = model.losses(batch)
                optimizer.zero_grad()
                if surgical:
                    optimizer.backward(losses)
                else:
                    monitor.record(losses)
                    sum(losses.values()).backward()  # type: ignore[union-attr]
                optimizer.step()
        return monitor

    whole, resumed = run([BATCHES]), run([BATCHES[:4], BATCHES[4:]])
    assert resumed.history.steps.tolist() == [4, 6]
    assert whole.history.steps.tolist() == [0, 2, 4, 6]
    assert torch.allclose(resumed.averages.cosines, whole.averages.cosines, rtol=0, atol=1e-12)
    assert str(resumed).partition("\n")[2] == str(whole).partition("\n")[2]


def test_it_says_what_it_saw() -> None:
    model = Network()
    optimizer = wrapped(model, gs.UPGrad())
    monitor = ConflictMonitor(optimizer, every=1)
    assert str(monitor) == "ConflictMonitor: nothing recorded yet"
    assert repr(monitor) == "ConflictMonitor(MultiObjectiveOptimizer, every=1, scope='all')"
    optimizer.backward(model.losses(BATCHES[0]))
    lines = str(monitor).splitlines()
    assert lines[0] == "ConflictMonitor: 1 step recorded, 1 in the history"
    cosines = [float(line.split()[3]) for line in lines[3:6]]
    assert cosines == sorted(cosines)
    assert [line.split()[0] for line in lines[7:]] == ["loss", "a", "b", "c"]
    many = nn.Parameter(torch.ones(8))
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD([many]), gs.Sum())
    monitor = ConflictMonitor(optimizer, every=1)
    optimizer.backward([many[k] - many.sum() / 4 for k in range(8)])
    assert "and 8 more that conflict less" in str(monitor)


def test_pairs_that_never_met_are_not_in_the_table() -> None:
    model = nn.Linear(3, 2)
    monitor, outputs = ConflictMonitor(model, every=1), model(torch.ones(4, 3))
    monitor.record({"alone": outputs.sum()})
    assert "No two gradients could be compared.\n\nloss" in str(monitor)
    monitor.record({"a": outputs.sum(), "b": -outputs.sum()})
    table = str(monitor).split("\n\n")[1].splitlines()
    assert [line.split()[:3] for line in table[1:]] == [["a", "-", "b"]]
    assert "nan" not in str(monitor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "`every` must be an integer >= 1, got 0"),
        ({"every": 2.0}, "`every` must be an integer >= 1, got 2.0"),
        ({"scope": "layer"}, "`scope` must be None or one of .*got 'layer'"),
        ({"decay": 1.0}, r"`decay` must be in \[0, 1\), got 1.0"),
        ({"max_losses": -1}, "`max_losses` must be at least 0, got -1"),
        ({"keep": 0}, "`keep` must be an integer >= 1, got 0"),
        ({"keep": 2.5}, "`keep` must be an integer >= 1, got 2.5"),
        ({"names": ["a", "a"]}, "`names` must be a sequence of different names"),
        ({"names": [1, "1"]}, "`names` must be a sequence of different names"),
        ({"names": "ab"}, "`names` must be a sequence of different names, got 'ab'"),
        ({"shared": nn.Linear(1, 1)}, "`shared` must be left out for an optimizer"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="ConflictMonitor: " + message):
        ConflictMonitor(wrapped(Network(), gs.UPGrad()), **options)


def test_what_can_be_watched() -> None:
    plain: Any = torch.optim.SGD(Network().parameters())
    with pytest.raises(
        TypeError, match=r"must be a MultiObjectiveOptimizer or a model, got SGD\. .*record\(losses\)"
    ):
        ConflictMonitor(plain)
    around: Any = SimpleNamespace(optimizer=wrapped(Network(), gs.UPGrad()))  # as Accelerate has it
    with pytest.raises(TypeError, match=r"got SimpleNamespace around it\. Hand over optimizer\.optimizer"):
        ConflictMonitor(around)
    with pytest.raises(TypeError, match="`loggers` must be SummaryWriters"):
        ConflictMonitor(Network(), loggers=[None])
    with pytest.raises(ValueError, match="ConflictMonitor: `model` must have parameters that require a gradient"):
        ConflictMonitor(nn.Tanh())
    with pytest.raises(ValueError, match="`shared` must be left out for a model with blocks"):
        ConflictMonitor(Network(1), shared=nn.Linear(1, 1))
