"""Steps that are recorded once and replayed, as a GPU does it; on the CPU a recording of operations is the graph."""

import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from support import assert_no_host_sync
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradsurgery as gs
from gradsurgery.aggregators import host as placement
from gradsurgery.integrations.vae import Run, Table, fit
from gradsurgery.integrations.vae.models.registry import MODELS, ModelName
from gradsurgery.integrations.vae.stacked import surgery
from gradsurgery.integrations.vae.stacked.captured_method import is_capturable, solve_in_place
from gradsurgery.integrations.vae.stacked.captured_step import WARM_UP, CapturedStep, CudaGraphs
from gradsurgery.integrations.vae.stacked.loop import StackedLoop
from gradsurgery.integrations.vae.stacked.state import StackedState
from gradsurgery.integrations.vae.stacked.surgery import StackedBlocks
from gradsurgery.integrations.vae.stacked.training import fit_seeds
from gradsurgery.integrations.vae.training.methods import build_method
from gradsurgery.integrations.vae.training.preparation import Settings, prepare

SEEDS = (0, 3)
CAPTURABLE = ("sum", "lossbalancer", "gradnorm", "upgrad")
EPOCHS, BATCH = 3, 40
META = torch.device("meta")
# What a CUDA graph cannot hold: numbers that the host reads, and numbers that it brings.
ON_THE_HOST = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "lift_fresh"}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


# --- a graph made of operations ----------------------------------------------------------------------------------


def storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    found = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {storage.data_ptr(): storage for storage in found if storage.nbytes() > 0}


class Graph(TorchDispatchMode):
    """Keeps every operation with the tensors that it was given; afterwards all is as if nothing had been computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.made: set[int] = set()
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.drawn: dict[torch.Generator, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in ON_THE_HOST:
            raise AssertionError(f"{func} cannot be captured")
        given = storages((args, kwargs))
        for place, storage in given.items():
            if place not in self.made and place not in self.before:
                self.before[place] = storage, storage.clone()
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Generator) and leaf not in self.drawn:
                self.drawn[leaf] = leaf.get_state()
        result = func(*args, **kwargs)
        self.made |= storages(result).keys() - given.keys()
        self.calls.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        for storage, content in self.before.values():
            storage.copy_(content)
        for generator, state in self.drawn.items():
            generator.set_state(state)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            if func.is_view:
                continue
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recorder:
    """Counts what it records and replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        graph = Graph()
        with graph:
            function()
        graph.undo()

        def replay() -> None:
            self.replayed += 1
            graph.replay()

        return replay


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Methods on the CPU solve where a GPU would while it captures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "_stays", lambda gramian: True)
        yield


def build(
    table: Table, name: str, model: ModelName, recorder: Recorder | None = None, device: torch.device | None = None
) -> StackedLoop:
    """A loop whose steps take the way of those on a GPU, there if one is given."""
    settings = Settings(model=model, epochs=EPOCHS, batch_size=BATCH, device=device)
    built = [prepare(table, build_method(name, seed), settings, seed) for seed in SEEDS]
    loop = StackedLoop("test", built, SEEDS, settings)
    for blocks in loop.stack.surgery:
        blocks._on_gpu = True
    loop.captured = CapturedStep(loop.step, recorder) if recorder is not None else None
    return loop


def content(loop: StackedLoop) -> list[Any]:
    """All that a training has changed."""
    stack = loop.stack
    methods = [blocks._method.state_dict() for blocks in stack.surgery if blocks._method is not None]
    models = [model.state_dict() for model in stack.models]  # type: ignore[attr-defined]
    generators = [generator.get_state() for generator in loop.generators]
    sums = [loop.total, loop.losses]
    return tree_leaves(
        [stack.weights, stack.statistics, methods, loop.optimizer.state_dict(), models, generators, sums]
    )


def assert_same(one: Sequence[Any], other: Sequence[Any]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        if isinstance(mine, Tensor):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine.nan_to_num(), theirs.nan_to_num())
        else:
            assert mine == theirs


@pytest.mark.parametrize("name", CAPTURABLE)
@pytest.mark.parametrize("model", MODELS)
def test_replays_are_steps(table: Table, model: ModelName, name: str) -> None:
    """Bit for bit, and so is what the methods, Adam, BatchNorm and the generators remember."""
    recorder = Recorder()
    with as_on_a_gpu():
        eager, replayed = build(table, name, model), build(table, name, model, recorder)
        losses = [[loop.train_epoch() for _ in range(EPOCHS)] for loop in (eager, replayed)]
    assert losses[0] == losses[1]
    assert_same(content(eager), content(replayed))
    whole, rest = divmod(eager.rows, BATCH)
    assert rest > 1, "choose another batch size"
    phases = {eager.stack.phase(epoch) for epoch in range(EPOCHS)}
    assert recorder.recorded == len(phases)
    assert recorder.replayed == EPOCHS * whole - WARM_UP


def test_the_comparison_can_fail(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that replaces what it remembers, as methods do, is stale in a graph."""
    monkeypatch.setattr(surgery, "solve_in_place", lambda method, gramians: method.weights(gramians))
    eager, replayed = build(table, "lossbalancer", "vae"), build(table, "lossbalancer", "vae", Recorder())
    losses = [[loop.train_epoch() for _ in range(2)] for loop in (eager, replayed)]
    assert losses[0] != losses[1]
    with pytest.raises(AssertionError):
        assert_same(content(eager), content(replayed))


@pytest.mark.parametrize("read", [lambda x: float(x.sum()), lambda x: bool(x.any()), lambda x: torch.tensor([1.0])])
def test_what_the_host_reads_is_not_recorded(read: Callable[[Tensor], object]) -> None:
    with pytest.raises(AssertionError, match="cannot be captured"):
        Recorder().record(lambda: read(torch.ones(2)))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("name", CAPTURABLE)
@pytest.mark.parametrize("model", MODELS)
def test_nothing_of_a_step_is_read_on_the_host(
    table: Table, model: ModelName, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the step of Adam, which torch has no fused one of on the meta device."""
    plain = functools.partial(torch.optim.SGD, lr=0.1)
    monkeypatch.setattr(torch.optim, "Adam", lambda weights, **_: plain(list(weights)))
    loop = build(table, name, model, device=META)
    for blocks in loop.stack.surgery:
        if blocks._method is not None:  # what a method remembers is created in the first step
            blocks._method.weights(torch.empty(len(SEEDS), 6, 6, dtype=torch.float64, device=META))
    with assert_no_host_sync():
        loop.step(torch.zeros(len(SEEDS), BATCH, dtype=torch.int64, device=META))


@pytest.mark.parametrize("name", CAPTURABLE)
def test_rows_say_what_products_say(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    delta, weight, z = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 7, 6), (2, 6, 4), (2, 7, 4))
    )
    found = []
    for on_gpu in (False, True):
        blocks = StackedBlocks(
            [gs.ImpartialityBlock(3, build_method(name)) for _ in SEEDS], (1, 3, 2), [1, 2, 3, 0, 4, 5]
        )
        blocks._on_gpu = on_gpu
        found.append([blocks.aggregate(delta, weight, z) for _ in range(3)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


# --- when a step is recorded -------------------------------------------------------------------------------------


def test_batches_of_another_size_are_not_recorded() -> None:
    """The first steps of the usual size warm up; another phase is recorded anew, other tensors start over."""
    recorder, total, seen = Recorder(), torch.zeros(1, dtype=torch.int64), []

    def step(rows: Tensor) -> None:
        seen.append(tuple(rows.shape))
        total.add_(rows.sum())

    captured = CapturedStep(step, recorder)
    batches = [torch.full((1, size), size) for size in (4, 4, 3, 4, 4, 4, 2)]
    captured.take(batches, 0.0)
    assert seen == [(1, size) for size in (4, 4, 3, 4, 4, 2)]  # one of them while recording
    assert (recorder.recorded, recorder.replayed) == (1, 2)
    captured.take(batches, 0.0)
    assert (recorder.recorded, recorder.replayed) == (1, 7)
    captured.take(batches, 0.5)
    assert (recorder.recorded, recorder.replayed) == (2, 12)
    captured.forget()
    captured.take(batches, 0.5)
    assert (recorder.recorded, recorder.replayed) == (3, 14)
    assert int(total) == 4 * (5 * 16 + 9 + 4)


def test_a_training_that_goes_on_records_anew(table: Table) -> None:
    """What is loaded stands in other tensors than those that were recorded."""
    recorder = Recorder()
    loop = build(table, "lossbalancer", "vae", recorder)
    state = StackedState(loop, loop.stack.models, [])  # type: ignore[attr-defined]
    loop.train_epoch()
    before = state.state_dict()
    losses, expected = loop.train_epoch(), content(loop)
    state.load_state_dict(before)
    assert loop.train_epoch() == losses
    assert_same(content(loop), expected)
    assert recorder.recorded == 2


class FakeStream:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls, self.device = name, calls, torch.device("cuda", 0)

    def wait_stream(self, other: "FakeStream") -> None:
        self.calls.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def register_generator_state(self, generator: torch.Generator) -> None:
        warnings.warn("this happens by itself", stacklevel=2)
        self.calls.append("registers")

    def replay(self) -> None:
        self.calls.append("replays")


def test_cuda_graphs_are_recorded_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order that torch asks for; its calls are stand-ins, with the arguments that it takes."""
    calls: list[str] = []
    side, outside, graph = FakeStream("side", calls), FakeStream("outside", calls), FakeGraph(calls)
    inspect.signature(torch.cuda.graph).bind(graph, stream=side)

    @contextmanager
    def within(what: str) -> Iterator[None]:
        calls.append(f"enters {what}")
        yield
        calls.append(f"leaves {what}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: outside)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda own, stream: within(f"capture on {stream.name}"))
    graphs = CudaGraphs(torch.device("cuda"), [torch.Generator()])
    with graphs.aside():
        warnings.warn("This instance was constructed with capturable=True, but", stacklevel=1)
        graphs.record(lambda: calls.append("steps"))()
    capture = ["registers", "enters capture on side", "steps", "leaves capture on side", "replays"]
    assert calls == ["side waits for outside", "enters side", *capture, "leaves side", "outside waits for side"]


# --- methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "methods"),
    [
        (True, [gs.Sum(), gs.UPGrad(), gs.IMTLG(), gs.MGDA(), gs.LossBalancer(), gs.GradNorm(alpha=0.0)]),
        (False, [gs.PCGrad(), gs.GradDrop(), gs.NashMTL(), gs.CAGrad(), gs.Chain(gs.LossBalancer(), gs.UPGrad())]),
    ],
)
def test_which_methods_can_be_captured(expected: bool, methods: Sequence[gs.Aggregator]) -> None:
    class Own(gs.UPGrad):
        """Of which nothing is known."""

    assert [is_capturable(method) for method in methods] == [expected] * len(methods)
    assert not is_capturable(Own())
    for method in methods:
        blocks = StackedBlocks([gs.ImpartialityBlock(2, method)], [1, 1], [0, 1])
        assert blocks.is_capturable is expected


@pytest.mark.parametrize(
    "make",
    [gs.LossBalancer, gs.UPGrad, lambda: gs.GradNorm(alpha=0.0), lambda: gs.GradNorm(progress="gradient")],
)
def test_solving_in_place_is_solving(make: Callable[[], gs.GramianAggregator]) -> None:
    """Also what is remembered, also where numbers are not finite or zero; in the tensors of the first call."""
    plain, in_place, generator = make(), make(), torch.Generator().manual_seed(0)
    tensors: list[dict[str, int]] = []
    for call in range(6):
        rows = torch.randn(3, 4, 9, generator=generator, dtype=torch.float64)
        rows[1] = {3: torch.nan, 4: 0.0}.get(call, rows[1])
        gramians = rows @ rows.mT
        assert_same([plain.solve(gramians)], [solve_in_place(in_place, gramians)])
        assert_same(list(plain.state_dict().values()), list(in_place.state_dict().values()))
        tensors.append({name: own.data_ptr() for name, own in in_place.named_buffers()})
    assert all(one == other for one, other in itertools.pairwise(tensors))


# --- devices -----------------------------------------------------------------------------------------------------


def numbers(run: Run) -> list[Any]:
    errors = run.evaluate().errors
    return [*run.model.state_dict().values(), *((own.loss, own.validation_error) for own in run.history), errors]


def test_no_device_is_the_cpu(table: Table) -> None:
    runs = [fit(table, gs.LossBalancer(), epochs=2, device=device) for device in (None, "cpu", torch.device("cpu"))]
    runs += fit_seeds(table, lambda seed: gs.LossBalancer(), seeds=[0], epochs=2, device="cpu")
    for run in runs[1:]:
        assert_same(numbers(runs[0]), numbers(run))


@pytest.mark.parametrize(
    ("error", "device", "message"),
    [
        (TypeError, 0, r"^fit: `device` must be a name or a torch\.device, got 0\. Try 'cuda'\.$"),
        (ValueError, "gpu", r"^fit: `device` must be 'cpu' or 'cuda', got 'gpu'\. Pass one of them\.$"),
        (ValueError, "cuda:x", r"^fit: `device` must be a torch\.device, got 'cuda:x'\. Try 'cuda'\.$"),
        (ValueError, "meta", r"^fit: `device` must be 'cpu' or 'cuda', got 'meta'\. Pass one of them\.$"),
        (
            ValueError,
            "cuda:64",
            r"^fit: `device` must be one that torch can use, got 'cuda:64' with \d+ CUDA devices\. ",
        ),
        pytest.param(
            ValueError,
            torch.device("cuda"),
            r"^fit: `device` must be one that torch can use, got 'cuda' with 0 CUDA devices\. Pass 'cpu', or install",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_devices_that_are_not_there(table: Table, error: type[Exception], device: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fit(table, device=device)


@needs_gpu
@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable=True")
@pytest.mark.parametrize("name", [*CAPTURABLE, "pcgrad", "graddrop"])
@pytest.mark.parametrize("model", MODELS)
def test_a_gpu_trains(table: Table, model: ModelName, name: str) -> None:
    """Captured steps are those that are not; the run is one that could have been trained on the CPU."""
    gpu = torch.device("cuda")
    eager, captured = build(table, name, model, device=gpu), build(table, name, model, device=gpu)
    assert all(blocks.is_capturable is (name in CAPTURABLE) for blocks in captured.stack.surgery)
    if name in CAPTURABLE:
        captured.captured = CapturedStep(captured.step, CudaGraphs(gpu, captured.drawing))
    losses = [[loop.train_epoch() for _ in range(EPOCHS)] for loop in (eager, captured)]
    torch.testing.assert_close(*[torch.tensor(own) for own in losses], rtol=1e-4, atol=1e-4)
    run = fit(table, build_method(name), model=model, epochs=EPOCHS, batch_size=BATCH, device="cuda")
    assert {own.device.type for own in run.model.state_dict().values()} == {"cpu"}
    assert run.evaluate("validation").error == pytest.approx(run.history[run.best_epoch].validation_error, rel=1e-3)
    assert run.evaluate().error == pytest.approx(
        Run(run.model.cuda(), *list(vars(run).values())[1:]).evaluate().error, rel=1e-3
    )
