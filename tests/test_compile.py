"""torch.compile: compiled trunks, models and steps, and what compiled graphs do with what they have saved."""

import copy
import gc
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import assert_near, assert_same_bits
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config

import gradsurgery as gs
from gradsurgery.engines import donation
from gradsurgery.engines.graph import reach

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning"),  # inductor imports it
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # dynamo does
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # dynamo looks at it
    pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles:UserWarning"),  # torch 2.6's inductor
]

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler"
)
ENGINES = ["loop", "batched", "ghost", "auto"]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Sine(nn.Module):
    """Of its gradient inductor makes one kernel, which writes over the input if it may."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class Model(nn.Module):
    """A trunk and one head a loss; returns the losses."""

    def __init__(self, heads: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 8), Sine(), nn.Linear(8, 8), Sine()).double()
        self.heads = nn.ModuleList(nn.Linear(8, 2) for _ in range(heads)).double()

    def outputs(self, x: Tensor) -> list[Tensor]:
        z = self.trunk(x)
        return [head(z) for head in self.heads]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [10.0**k * (output - k).square().mean() for k, output in enumerate(self.outputs(x))]


class Outputs(Model):
    """The same, losses left to the caller."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.outputs(x)


class Forked(nn.Module):
    """Two representations in one trunk."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.left, self.right = (nn.Linear(4, 4).double() for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.below(x).sin()
        return self.left(z).sin(), self.right(z).sin()


def inputs() -> Tensor:
    return torch.linspace(-1, 1, 28, dtype=torch.float64).view(7, 4)


def optimizer_of(model: nn.Module, **options: Any) -> gs.MultiObjectiveOptimizer:
    return gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.UPGrad(), **options)


def gradients(model: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


def rows(model: Model, losses: list[Tensor]) -> list[Tensor]:
    """The rows of the trunk, by one pass a loss with nothing to protect it."""
    parameters, last = list(model.trunk.parameters()), len(losses) - 1
    found = [torch.autograd.grad(loss, parameters, retain_graph=k < last) for k, loss in enumerate(losses)]
    return [torch.stack(each) for each in zip(*found, strict=True)]


def assert_all_near(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        assert_near(got, wanted, tolerance)


# --- a compiled trunk --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "engine"),
    [*(("aot_eager", engine) for engine in ENGINES), pytest.param("inductor", "loop", marks=needs_compiler)],
)
def test_compiled_trunk_has_the_gradients_of_the_trunk(backend: str, engine: str) -> None:
    model = Model()
    gramian = optimizer_of(model, engine="loop").backward(model(inputs())).gramian
    expected = gradients(model)
    other = Model()
    other.trunk = torch.compile(other.trunk, backend=backend)
    assert len(reach(other(inputs())).compiled) == 1
    surgery = optimizer_of(other, engine=engine).backward(other(inputs()))
    assert_near(surgery.gramian, gramian, 1e-12)  # of the trunk, which was discovered, and of nothing else
    assert_all_near(gradients(other), expected)


def test_the_engine_func_runs_a_compiled_model_and_leaves_it_compiled() -> None:
    model = Model()
    expected = optimizer_of(model, shared=model.trunk).jacobian(model(inputs()))
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = optimizer_of(model, shared=model.trunk, engine="func")
    for _ in range(2):
        assert_all_near(optimizer.jacobian(lambda: compiled(inputs())), expected)
        assert compiled(inputs())[0].grad_fn.name() == "CompiledFunctionBackward"


def test_functional_jacobian_compiles_as_one_graph() -> None:
    model = Model()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def jacobian(parameters: dict[str, Tensor], chunk_size: int | None) -> tuple[Tensor, dict[str, Tensor], Any]:
        def losses(parameters: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
            return torch.stack(torch.func.functional_call(model, parameters, (inputs(),))), []

        return gs.functional_jacobian(losses, parameters, chunk_size=chunk_size)

    values, expected, _ = jacobian(parameters, None)
    for chunk_size in (None, 1):
        compiled = torch.compile(jacobian, backend="aot_eager", fullgraph=True)
        found = compiled(parameters, chunk_size)
        assert_near(found[0], values, 1e-12)
        assert_all_near(list(found[1].values()), list(expected.values()))


# --- a compiled model: what is shared cannot be seen -------------------------------------------------------------


@pytest.mark.parametrize("kind", [Model, Outputs])
def test_compiled_model_needs_tags_and_says_so(kind: type[Model]) -> None:
    model = kind()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = optimizer_of(model)
    with pytest.raises(RuntimeError, match=r"'trunk.0.weight'|shape \(8, 4\)") as caught:
        optimizer.backward([output.square().mean() for output in compiled(inputs())])
    for cure in ("gs.tag_shared(model.trunk)", "shared=model.trunk", "compile that part alone"):
        assert cure in str(caught.value)
    assert all(parameter.grad is None for parameter in model.parameters())
    shared = optimizer.jacobian([output.square().mean() for output in model(inputs())])
    assert len(shared) == 4  # and nothing was discovered on the way: only the trunk is shared


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tagged", [True, False])
def test_compiled_model_with_tags_has_the_gradients_of_the_model(engine: str, tagged: bool) -> None:
    model = Model()
    optimizer_of(model, engine="loop").backward(model(inputs()))
    expected = gradients(model)
    if tagged:
        gs.tag_shared(model.trunk)
    optimizer = optimizer_of(model, engine=engine, shared=None if tagged else model.trunk)
    optimizer.backward(torch.compile(model, backend="aot_eager")(inputs()))
    assert_all_near(gradients(model), expected)


def test_heads_compiled_together_need_tags() -> None:
    model = Model()
    optimizer_of(model).backward(model(inputs()))
    expected = gradients(model)
    heads = torch.compile(lambda z: [head(z).square().mean() for head in model.heads], backend="aot_eager")
    with pytest.raises(RuntimeError, match="tag_shared"):
        optimizer_of(model).backward(heads(model.trunk(inputs())))
    one = torch.compile(lambda z, head, k: 10.0**k * (head(z) - k).square().mean(), backend="aot_eager")
    z = model.trunk(inputs())
    optimizer_of(model).backward([one(z, head, k) for k, head in enumerate(model.heads)])  # a graph for each head
    assert_all_near(gradients(model), expected)


def test_trunk_of_two_outputs_needs_tags_only_where_losses_use_different_ones() -> None:
    model = Forked()
    compiled = torch.compile(model, backend="aot_eager")

    def together(left: Tensor, right: Tensor) -> list[Tensor]:
        return [(left * right).mean(), (left + right).square().mean()]

    def apart(left: Tensor, right: Tensor) -> list[Tensor]:
        return [left.mean(), right.square().mean()]

    optimizer = optimizer_of(model)
    expected = optimizer.jacobian(together(*model(inputs())))
    assert_all_near(optimizer.jacobian(together(*compiled(inputs()))), expected)
    with pytest.raises(RuntimeError, match="tag_shared"):
        optimizer_of(model).backward(apart(*compiled(inputs())))
    expected = optimizer_of(model).jacobian(apart(*model(inputs())))
    tagged = optimizer_of(model, shared=model.below)
    assert_all_near(tagged.jacobian(apart(*compiled(inputs()))), expected)


def test_a_function_that_is_only_called_like_a_compiled_one_is_none() -> None:
    class CompiledFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
            return z * 2, z * 3

        @staticmethod
        def backward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
            return 2 * left + 3 * right

    model = Model(heads=2)
    left, right = CompiledFunction.apply(model.trunk(inputs()))
    found = optimizer_of(model).jacobian([left.mean(), right.square().mean()])
    assert len(found) == 4


# --- compiled steps ----------------------------------------------------------------------------------------------


def test_compiled_optimizer_step_is_the_step() -> None:
    plain, model, other = Model(), Model(), Model()
    for each, compiles in ((model, False), (other, True)):
        optimizer = gs.MultiObjectiveOptimizer(
            torch.optim.SGD(each.parameters(), lr=1e-3, momentum=0.9), gs.UPGrad(), shared=each.trunk
        )
        step = torch.compile(optimizer.step, backend="aot_eager") if compiles else optimizer.step
        for _ in range(3):
            optimizer.zero_grad()
            optimizer.backward(each(inputs()))
            step()
    assert_all_near(list(other.parameters()), list(model.parameters()))
    assert not torch.equal(model.trunk[0].weight, plain.trunk[0].weight)


def test_compiled_adam_is_compiled_adam() -> None:
    model, other = Model(), Model()
    wrapped = gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters()), gs.Sum())
    steps = [torch.compile(wrapped.step, backend="aot_eager")]
    steps.append(torch.compile(torch.optim.Adam(other.parameters()).step, backend="aot_eager"))
    for _ in range(2):
        sum(model(inputs())).backward()
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            its.grad = mine.grad.clone()
        for step in steps:
            step()
        model.zero_grad()
    assert_same_bits(list(model.parameters()), list(other.parameters()))


def _backward(model: Model, optimizer: gs.MultiObjectiveOptimizer) -> None:
    optimizer.zero_grad()
    optimizer.backward(model(inputs()))
    optimizer.step()


def _scalarize(model: Model, optimizer: gs.MultiObjectiveOptimizer) -> None:
    optimizer.zero_grad()
    optimizer.scalarize(model(inputs())).backward()
    optimizer.step()


def _closure(model: Model, optimizer: gs.MultiObjectiveOptimizer) -> None:
    def losses() -> list[Tensor]:
        optimizer.zero_grad()
        return model(inputs())

    optimizer.step(losses)


def _callable(model: Model, optimizer: gs.MultiObjectiveOptimizer) -> None:
    optimizer.zero_grad()
    optimizer.backward(lambda: model(inputs()))
    optimizer.step()


@pytest.mark.parametrize(
    ("step", "engine"), [(_backward, "auto"), (_scalarize, "auto"), (_closure, "auto"), (_callable, "func")]
)
def test_compiled_training_step_is_the_step(step: Callable[..., None], engine: str) -> None:
    model, other = Model(), Model()
    optimizers = [optimizer_of(each, shared=each.trunk, engine=engine) for each in (model, other)]
    compiled = torch.compile(step, backend="aot_eager")
    for _ in range(3):
        step(model, optimizers[0])
        compiled(other, optimizers[1])
    assert_all_near(list(other.parameters()), list(model.parameters()))


# --- donated buffers ---------------------------------------------------------------------------------------------


def test_graph_that_torch_frees_after_one_pass_is_differentiated_once_a_loss() -> None:
    model = Model()
    expected = optimizer_of(model).jacobian(model(inputs()))
    model.trunk = torch.compile(model.trunk, backend="aot_eager")
    sum(model(inputs())).backward()  # compiles the backward pass for one pass only
    with pytest.raises(RuntimeError, match="donated buffers"):
        rows(model, model(inputs()))
    assert_all_near(optimizer_of(model).jacobian(model(inputs())), expected)
    losses = model(inputs())
    for _ in range(2):
        model.zero_grad()
        optimizer_of(model).backward(losses, retain_graph=True)
    assert_all_near(optimizer_of(model).jacobian(losses), expected)
    with pytest.raises(RuntimeError, match="donated buffers"):  # torch's own check is still there
        rows(model, model(inputs()))


def test_refusal_of_torch_is_explained() -> None:
    model = Model()
    model.trunk = torch.compile(model.trunk, backend="aot_eager")
    sum(model(inputs())).backward()
    with pytest.raises(RuntimeError) as caught, donation.donation_explained():
        rows(model, model(inputs()))
    for setting in (
        "torch._functorch.config.donated_buffer = False",
        "torch._inductor.config.fx_graph_cache = False",
    ):
        assert setting in str(caught.value)
    with pytest.raises(RuntimeError, match="^other$"), donation.donation_explained():
        raise RuntimeError("other")


@needs_compiler
def test_cached_graph_that_writes_over_what_it_has_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = Model()
    expected = rows(model, model(inputs()))
    optimizer_of(model).backward(model(inputs()))
    directions = gradients(model)

    def compiled() -> Model:
        torch._dynamo.reset()
        fresh = copy.deepcopy(model)
        fresh.trunk = torch.compile(fresh.trunk)
        return fresh

    with inductor_config.patch(fx_graph_cache=True):
        earlier = compiled()
        sum(earlier(inputs())).backward()  # an earlier run, with an ordinary loop, leaves a graph in the cache
        with functorch_config.patch(donated_buffer=False):
            trapped = compiled()
            assert _error(rows(trapped, trapped(inputs())), expected) > 1e-3  # silently wrong
            for engine in ENGINES:
                again = compiled()
                optimizer = optimizer_of(again, engine=engine)
                for _ in range(2):  # while it is not known that the graph writes, and when it is
                    optimizer.backward(again(inputs()))
                    assert_all_near(gradients(again), directions)
    with functorch_config.patch(donated_buffer=False), inductor_config.patch(fx_graph_cache=False):
        cured = compiled()
        assert _error(rows(cured, cured(inputs())), expected) < 1e-12


@needs_compiler
def test_cached_graph_whose_saved_tensors_are_kept_by_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = Model()
    expected = rows(model, model(inputs()))
    trunk = model.trunk
    with inductor_config.patch(fx_graph_cache=True):
        model.trunk = torch.compile(trunk)
        sum(model(inputs())).backward()
        torch._dynamo.reset()
        with functorch_config.patch(donated_buffer=False):
            model.trunk = torch.compile(trunk)
            with torch.autograd.graph.saved_tensors_hooks(lambda saved: (saved,), lambda packed: packed[0]):
                losses = model(inputs())
            assert_all_near(optimizer_of(model, engine="loop", shared=trunk).jacobian(losses), expected)


def _error(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((got - wanted).norm() / wanted.norm()) for got, wanted in pairs)


def test_no_graph_is_kept_alive() -> None:
    model = Model()
    model.trunk = torch.compile(model.trunk, backend="aot_eager")
    optimizer = optimizer_of(model)
    gc.collect()
    gc.disable()
    try:
        losses = model(inputs())
        optimizer.backward(losses, retain_graph=True)
        node = weakref.ref(reach(losses).compiled[0])
        assert node() is not None
        del losses
        assert node() is None
    finally:
        gc.enable()


class _Graph:
    """What torch says of a compiled graph."""

    compiled_bw: object = None

    class metadata:  # noqa: N801
        bw_donated_idxs: list[int] | None = None


class _Node:
    """A compiled node that has saved one tensor."""

    def __init__(self, saved: Tensor, graph: type | None = None) -> None:
        self._forward_cls = type("Fresh", (_Graph,), {}) if graph is None else graph
        self.saved_tensors = (saved,)
        self._raw_saved_tensors = ()


def _pass(guard: Any, saved: Tensor, gradient: Tensor, *, fails: bool = False) -> None:
    guard.before((gradient,))
    saved.mul_(gradient)
    if not fails:
        guard.after((), (gradient,))


@pytest.fixture
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(donation, "_keeps_graph", lambda: True)


@pytest.mark.usefixtures("_kept")
def test_pass_that_failed_is_undone_before_the_next() -> None:
    saved = torch.arange(4.0)
    node = _Node(saved)
    guard = donation._Guard(node, frozenset())
    _pass(guard, saved, torch.full((4,), 2.0), fails=True)
    assert saved[-1] == 6.0
    _pass(guard, saved, torch.full((4,), 3.0))
    assert_same_bits(saved, torch.arange(4.0))


@pytest.mark.usefixtures("_kept")
@pytest.mark.parametrize("factor", [0.0, 2.0])  # the latter may have come by another output than what was saved
def test_zeros_written_over_zeros_prove_nothing(factor: float) -> None:
    saved = torch.zeros(4)
    node = _Node(saved)
    guard = donation._Guard(node, frozenset())
    _pass(guard, saved, torch.full((4,), factor))
    assert node._forward_cls not in donation._writes
    saved.copy_(torch.arange(4.0))
    _pass(guard, saved, torch.full((4,), 2.0))
    assert donation._writes[node._forward_cls]
    assert_same_bits(saved, torch.arange(4.0))


@pytest.mark.usefixtures("_kept")
@pytest.mark.parametrize("saved", [torch.arange(4.0), torch.ones(1).expand(5)])
def test_torch_knows_of_donated_buffers_again(saved: Tensor) -> None:
    class Graph(_Graph):
        compiled_bw = "some code"

        class metadata:  # noqa: N801
            bw_donated_idxs: list[int] | None = [0]  # noqa: RUF012

    first, second = _Node(saved, Graph), _Node(saved, Graph)
    donation._Guard(first, frozenset()).before(())  # a pass that fails
    assert Graph.metadata.bw_donated_idxs == []
    guard = donation._Guard(second, frozenset())
    guard.before(())
    assert Graph.metadata.bw_donated_idxs == []
    guard.after((), ())
    assert Graph.metadata.bw_donated_idxs == [0]


@pytest.mark.usefixtures("_kept")
def test_versions_of_torch_that_show_less() -> None:
    saved = torch.arange(4.0)
    bare = _Node(saved, type("Bare", (), {}))  # neither compiled_bw nor metadata
    _pass(donation._Guard(bare, frozenset()), saved, torch.full((4,), 2.0))
    assert_same_bits(saved, torch.arange(4.0))
    del bare._raw_saved_tensors
    with functorch_config.patch(donated_buffer=True), inductor_config.patch(fx_graph_cache=False):
        donation._writes.clear()
        with pytest.raises(RuntimeError, match="that does not") as caught:
            donation._Guard(bare, frozenset()).before(())
        assert donation.CURE in str(caught.value)
    with functorch_config.patch(donated_buffer=False), inductor_config.patch(fx_graph_cache=False):
        donation._Guard(bare, frozenset()).before(())


@pytest.mark.usefixtures("_kept")
def test_parameters_and_what_has_no_memory_of_its_own_are_not_copied() -> None:
    weight = torch.ones(3)
    for saved in (weight, weight[1:], torch.ones(1).expand(5), torch.ones(3).to_sparse()):
        assert donation._saved(_Node(saved), frozenset({weight.untyped_storage().data_ptr()})) == []
    kept = torch.ones(3)
    assert donation._saved(_Node(kept), frozenset()) == [kept]
