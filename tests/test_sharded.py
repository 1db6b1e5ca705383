"""FSDP2 and tensor parallelism against one process on the whole batch."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from crew import Crew
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs

_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
pytestmark = pytest.mark.skipif(_VERSION < (2, 7), reason="FSDP2 runs on the CPU from torch 2.7 on")


@pytest.fixture(scope="module")
def pair() -> Iterator[Crew]:
    crew = Crew(2)
    yield crew
    crew.stop()


@pytest.fixture(scope="module")
def four() -> Iterator[Crew]:
    crew = Crew(4)
    yield crew
    crew.stop()


class Net(nn.Module):
    """Seven units do not divide evenly; one output leaves ranks without entries."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(7, 1) for name in "abc"})
        self.checkpointed = False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = checkpoint(self.trunk, x, use_reentrant=False) if self.checkpointed else self.trunk(x)
        return {name: head(z) for name, head in self.heads.items()}


class Parallel(nn.Module):
    """One layer to cut by rows, one by columns, and some that need not be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(5, 8), nn.Linear(8, 6), nn.LayerNorm(6)
        self.heads = nn.ModuleDict({name: nn.Linear(6, 2) for name in "abc"})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.norm(self.down(torch.tanh(self.up(x))))
        return {name: head(z) for name, head in self.heads.items()}


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 5, generator=generator, dtype=dtype), torch.randn(8, 3, generator=generator, dtype=dtype)


def part(rank: int, ranks: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return tuple(tensor.chunk(ranks)[rank] for tensor in batch(dtype))


def made(kind: type[nn.Module] = Net, dtype: torch.dtype = torch.float32) -> Any:
    """The same model whenever it is called."""
    torch.manual_seed(0)
    return kind().to(dtype)


def sharded(model: Any = None, how: str = "layers", **options: Any) -> Any:
    """Shards a model: each layer is a unit of its own, or all of it is one."""
    model = made() if model is None else model
    for layer in list(model.modules()) if how == "layers" else ():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def losses_of(model: Callable[[Tensor], dict[str, Tensor]], x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Three losses of very different scale, and an extra one."""
    outputs = {name: output.to(y.dtype) for name, output in model(x).items()}
    places = enumerate(outputs.items())
    losses = {name: (output - y[:, [place]]).square().mean() * 10.0**place for place, (name, output) in places}
    return losses, outputs["a"].abs().mean()


def wrapped(model: nn.Module, method: Any, **options: Any) -> gs.MultiObjectiveOptimizer:
    return gs.MultiObjectiveOptimizer(torch.optim.Adam(list(model.named_parameters()), lr=0.01), method, **options)


def whole(tensor: Any) -> Tensor:
    """A tensor with the entries of all ranks."""
    result: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return result


def named(optimizer: gs.MultiObjectiveOptimizer) -> dict[str, Any]:
    (group,) = optimizer.param_groups
    return dict(zip(group["param_names"], group["params"], strict=True))


def gradients(optimizer: gs.MultiObjectiveOptimizer) -> dict[str, Tensor]:
    return {name: whole(own.grad) for name, own in named(optimizer).items()}


def trained(model: Any, x: Tensor, y: Tensor, method: Any, *, steps: int = 1, **options: Any) -> dict[str, Tensor]:
    """What the last of some steps found, and the parameters after it."""
    optimizer = wrapped(model, method, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        losses, extra = losses_of(model, x, y)
        surgery = optimizer.backward(losses, extra_loss=extra)
        optimizer.step()
    found = {"losses": surgery.losses, **gradients(optimizer)}
    found |= {f"{name}, stepped": whole(own.detach()) for name, own in named(optimizer).items()}
    several = {"weights": surgery.weights, "gramian": surgery.gramian}
    return found | {name: value for name, value in several.items() if value is not None}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """By norm, relative."""
    assert found.keys() == expected.keys(), f"{sorted(found)} and {sorted(expected)}"
    for name, value in expected.items():
        error = float((found[name] - value).norm() / value.norm())
        assert error <= tolerance, f"{name} is off by {error}"


@contextmanager
def raises(kind: type[Exception], *words: str) -> Iterator[None]:
    with pytest.raises(kind) as caught:
        yield
    assert all(word in str(caught.value) for word in words), str(caught.value)


def layouts(rank: int) -> None:
    expected = trained(made(), *batch(), gs.UPGrad(), steps=2)
    for how in ("layers", "root"):
        for after in (True, False):
            model = sharded(how=how, reshard_after_forward=after)
            model.checkpointed = after
            assert_equal(trained(model, *part(rank), gs.UPGrad(), steps=2), expected)


def test_every_layout_equals_one_process(pair: Crew) -> None:
    pair(layouts)


def policies(rank: int) -> None:
    model = made()

    def in_bfloat16(x: Tensor) -> dict[str, Tensor]:
        cast = {name: own.bfloat16() for name, own in model.named_parameters()}
        outputs: dict[str, Tensor] = functional_call(model, cast, x.bfloat16())
        return outputs

    optimizer = wrapped(model, gs.UPGrad())
    losses, extra = losses_of(in_bfloat16, *batch())
    optimizer.backward(losses, extra_loss=extra)
    for how in ("layers", "root"):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        own = sharded(how=how, mp_policy=policy)
        found = trained(own, *part(rank), gs.UPGrad())
        assert_equal({name: found[name] for name in gradients(optimizer)}, gradients(optimizer), 1e-2)


def test_mixed_precision_policy(pair: Crew) -> None:
    pair(policies)


METHODS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "Sum": (gs.Sum, {}),
    "NashMTL": (gs.NashMTL, {}),
    "module": (gs.MGDA, {"scope": "module"}),
    "tensor": (gs.PCGrad, {"scope": "tensor"}),
    "GradNorm": (gs.GradNorm, {}),
    "TrimmedMean": (lambda: gs.aggregators.TrimmedMean(trim_number=1), {}),
    "GradDrop": (lambda: gs.GradDrop(generator=torch.Generator().manual_seed(1)), {}),
    "STCH": (gs.scalarizers.STCH, {}),
    "UncertaintyWeighting": (gs.scalarizers.UncertaintyWeighting, {}),
}


def methods(rank: int) -> None:
    dtype = torch.float64
    for method, options in METHODS.values():
        model, own = made(dtype=dtype), sharded(made(dtype=dtype))
        if options.get("scope") == "module":
            gs.tag_shared(model.trunk, own.trunk)
        expected = trained(model, *batch(dtype), method(), steps=3, **options)
        assert_equal(trained(own, *part(rank, 2, dtype), method(), steps=3, **options), expected, 1e-9)


def test_every_kind_of_method(pair: Crew) -> None:
    pair(methods)


def items(rank: int) -> None:
    dtype = torch.float64
    (x, y), cut = batch(dtype), slice(0, 3) if rank == 0 else slice(3, 8)
    counts = {"a": cut.stop - cut.start, "b": cut.stop - cut.start, "c": 4.0 if rank else 0.0}
    for method in (gs.UPGrad(), gs.scalarizers.STCH()):
        model, own = made(dtype=dtype), sharded(made(dtype=dtype))
        expected, found = wrapped(model, copy.deepcopy(method)), wrapped(own, method)
        losses, _ = losses_of(model, x, y)
        _, (_, c) = model(x), (None, (model(x[4:])["c"] - y[4:, [2]]).square().mean() * 100)
        first = expected.backward({**losses, "c": c})
        losses, _ = losses_of(own, x[cut], y[cut])
        c = (own(x[4:])["c"] - y[4:, [2]]).square().mean() * 100 if rank else own(x[:0])["c"].mean()
        second = found.backward({**losses, "c": c}, counts=counts)
        assert_equal({"losses": second.losses, **gradients(found)}, {"losses": first.losses, **gradients(expected)}, 1e-9)


def test_batches_of_different_sizes(pair: Crew) -> None:
    pair(items)


def trainers(rank: int) -> None:
    expected, found = wrapped(made(), gs.UPGrad()), wrapped(sharded(), gs.UPGrad())
    (x, y), (ours, theirs) = batch(), part(rank)
    for optimizer, model, own in ((expected, made(), (x, y)), (found, sharded(), (ours, theirs))):
        optimizer = wrapped(model, gs.UPGrad())
        for _ in range(2):
            (optimizer.scalarize(losses_of(model, *own)[0]) * 0.5).backward()
        norm = nn.utils.clip_grad_norm_([*named(optimizer).values()], 0.1)
        if model is found:
            pass


