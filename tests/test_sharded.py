"""FSDP2 and tensor parallelism against one process on the whole batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from crew import Crew
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery.looking import Look

_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
pytestmark = pytest.mark.skipif(_VERSION < (2, 7), reason="FSDP2 runs on the CPU from torch 2.7 on")

Crews = Callable[[int], Crew]


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


def layouts(rank: int) -> None:
    expected = trained(made(), *batch(), gs.UPGrad(), steps=2)
    for how in ("layers", "root"):
        for after in (True, False):
            model = sharded(how=how, reshard_after_forward=after)
            model.checkpointed = after
            assert_equal(trained(model, *part(rank), gs.UPGrad(), steps=2), expected)


def test_every_layout_equals_one_process(crew: Crews) -> None:
    crew(2)(layouts)


def single(rank: int) -> None:
    results = []
    for one_loss in (True, False):
        model = sharded()
        optimizer = wrapped(model, gs.MGDA())
        loss = losses_of(model, *part(rank))[0]["b"]
        if one_loss:
            optimizer.backward([loss])
        else:
            loss.backward()
        optimizer.step()
        results.append([own.detach().to_local() for own in named(optimizer).values()])
    assert all(map(torch.equal, *results))


def test_one_loss_is_bit_identical_to_the_wrapped_optimizer(crew: Crews) -> None:
    crew(2)(single)


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


def test_mixed_precision_policy(crew: Crews) -> None:
    crew(2)(policies)


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


def test_every_kind_of_method(crew: Crews) -> None:
    crew(2)(methods)


def items(rank: int) -> None:
    (x, y), cut = batch(torch.float64), slice(0, 3) if rank == 0 else slice(3, 8)
    counts = {"a": cut.stop - cut.start, "b": cut.stop - cut.start, "c": 5.0 * rank}  # rank 0 has nothing of c
    for method in (gs.UPGrad, gs.scalarizers.STCH):
        results = []
        for model, rows in ((made(dtype=torch.float64), slice(0, 8)), (sharded(made(dtype=torch.float64)), cut)):
            optimizer = wrapped(model, method())
            losses, _ = losses_of(model, x[rows], y[rows])
            losses["c"] = (model(x[3:])["c"] - y[3:, [2]]).square().mean() * (0.0 if rows == slice(0, 3) else 1.0)
            surgery = optimizer.backward(losses, counts=counts if rows == cut else None)
            results.append({"losses": surgery.losses, **gradients(optimizer)})
        assert_equal(*results, 1e-9)


def test_batches_of_different_sizes(crew: Crews) -> None:
    crew(2)(items)


def clipped(model: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What a trainer that wants one loss has after two batches and clipping."""
    optimizer = wrapped(model, gs.UPGrad())
    for rows in (slice(0, 2), slice(2, None)):
        (optimizer.scalarize(losses_of(model, x[rows], y[rows])[0]) * 0.5).backward()
    norm = nn.utils.clip_grad_norm_(named(optimizer).values(), 0.1)
    return {"norm": whole(norm), **gradients(optimizer)}


def trainers(rank: int) -> None:
    x, y = batch()
    order = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])  # the first halves of the ranks' batches, then the second
    expected = clipped_halves(made(), x[order], y[order])
    assert_equal(clipped(sharded(), *part(rank)), expected)


def clipped_halves(model: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    optimizer = wrapped(model, gs.UPGrad())
    for rows in (slice(0, 4), slice(4, 8)):
        (optimizer.scalarize(losses_of(model, x[rows], y[rows])[0]) * 0.5).backward()
    norm = nn.utils.clip_grad_norm_(named(optimizer).values(), 0.1)
    return {"norm": norm, **gradients(optimizer)}


def test_accumulation_and_clipping(crew: Crews) -> None:
    crew(2)(trainers)


def scaled(rank: int) -> None:
    model, method, plain = sharded(), gs.GradNorm(), made()
    optimizer, scaler = wrapped(model, method), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    expected = wrapped(plain, gs.GradNorm())
    x, y = part(rank)
    for broken in (False, rank == 1):
        optimizer.zero_grad()
        before = {name: value.clone() for name, value in method.state_dict().items() if isinstance(value, Tensor)}
        stale = {name: whole(own.detach()).clone() for name, own in named(optimizer).items()}
        optimizer.backward(losses_of(model, x, y * 1e30 if broken else y)[0], grad_scaler=scaler)
        scaler.unscale_(optimizer)
        if not before:
            expected.backward(losses_of(plain, *batch())[0])
            assert_equal(gradients(optimizer), gradients(expected))
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert before
    assert before.keys() == method.state_dict().keys()
    assert all(torch.equal(method.state_dict()[name], value) for name, value in before.items())
    assert all(torch.equal(whole(own.detach()), stale[name]) for name, own in named(optimizer).items())


def test_an_overflow_on_one_rank_skips_the_step_on_all(crew: Crews) -> None:
    crew(2)(scaled)


def wires(rank: int) -> None:
    model = sharded()
    optimizer, sent = wrapped(model, gs.UPGrad()), []
    losses, _ = losses_of(model, *part(rank))
    usual = dist.all_reduce

    def counting(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sent.append(tensor.numel())
        return usual(tensor, *args, **options)

    dist.all_reduce = counting
    try:
        optimizer.backward(losses)
    finally:
        dist.all_reduce = usual
    assert sorted(sent) == [3, 9], sent  # the losses, and the Gramian


def test_the_gramian_is_all_that_is_sent(crew: Crews) -> None:
    crew(2)(wires)


def mixtures(rank: int) -> None:
    """Whole parameters beside sharded ones, gradients that are there already, checkpoints, jacobian()."""

    def some_sharded(dtype: torch.dtype = torch.float32) -> Any:
        model = made(dtype=dtype)
        return sharded(model, "root", ignored_params={model.trunk[0].weight, model.heads["b"].bias})

    plain, own = made(), some_sharded()
    expected, found = wrapped(plain, gs.UPGrad()), wrapped(own, gs.UPGrad())
    for optimizer, model, data in ((expected, plain, batch()), (found, own, part(rank))):
        for _ in range(2):
            optimizer.backward(losses_of(model, *data)[0])
        optimizer.step()
    assert_equal(gradients(found), gradients(expected))
    rows, reference = found.jacobian(losses_of(own, *part(rank))[0]), expected.jacobian(losses_of(plain, *batch())[0])
    assert_equal(dict(enumerate(map(whole, rows))), dict(enumerate(reference)), 1e-5)  # type: ignore[arg-type]
    results = []
    for model, data in (
        (made(dtype=torch.float64), batch(torch.float64)),
        (some_sharded(torch.float64), part(rank, 2, torch.float64)),
    ):
        drop = gs.GradDrop(generator=torch.Generator().manual_seed(1))
        results.append(trained(model, *data, gs.Chain(gs.IMTLG(), drop), steps=2))
    assert_equal(*results, 1e-9)
    again = wrapped(own, gs.UPGrad())
    again.load_state_dict(found.state_dict())
    moments = [whole(again.state[parameter]["exp_avg"]) for parameter in named(again).values()]
    reference = [expected.state[parameter]["exp_avg"] for parameter in named(expected).values()]
    assert_equal(dict(enumerate(moments)), dict(enumerate(reference)))  # type: ignore[arg-type]


def test_parameters_that_are_not_sharded_beside_others(crew: Crews) -> None:
    crew(2)(mixtures)


def interrupted(gradient: Tensor) -> None:
    raise ZeroDivisionError


def refusals(rank: int) -> None:
    x, y = part(rank)
    model = sharded()
    optimizer, few = wrapped(model, gs.UPGrad()), list(model.trunk.parameters())
    optimizer.backward(losses_of(model, x, y)[0])
    before = gradients(optimizer)

    def refused(words: str, wrapper: gs.MultiObjectiveOptimizer, **other: Any) -> None:
        losses = {**losses_of(model, x, y)[0], **other}
        with pytest.raises(RuntimeError, match=words):
            wrapper.backward(losses)

    if rank == 0:
        refused("each rank must have each loss", optimizer)
        refused("on all ranks or on none where .* got \\['c'\\]", optimizer)
    else:
        refused("each rank must have each loss", optimizer, c=None)
        refused("on all ranks or on none where .* got \\['c'\\]", optimizer, c=torch.ones(()))
    losses, _ = losses_of(model, x, y)
    losses["c"].register_hook(interrupted)
    with pytest.raises(ZeroDivisionError):
        optimizer.backward(losses)
    assert_equal(gradients(optimizer), before, 0.0)
    refused("`engine` must be 'sharded'", wrapped(model, gs.UPGrad(), engine="loop"))
    refused("part of each gradient", wrapped(model, gs.aggregators.MoCo()))
    with pytest.raises(RuntimeError, match="can do with one batch"):
        wrapped(model, gs.aggregators.SDMGrad()).observe({}, {})
    handle = model.trunk[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    refused("post-accumulate-grad hooks", wrapped(model, gs.UPGrad()))
    handle.remove()
    model.set_requires_gradient_sync(False)
    refused("whose gradients are reduced", wrapped(model, gs.UPGrad()))
    model.set_requires_gradient_sync(True)
    model.set_reshard_after_backward(False)
    refused("set_reshard_after_backward", wrapped(model, gs.UPGrad(), shared=model.trunk))
    gs.tag_shared(model.trunk)
    refused("set_reshard_after_backward", gs.MultiObjectiveOptimizer(optimizer.optimizer, gs.UPGrad()))
    gs.untag_shared(model.trunk)
    assert_equal(gradients(optimizer), before, 0.0)
    refused("the optimizer holds, and", gs.MultiObjectiveOptimizer(torch.optim.SGD(few, lr=0.1), gs.UPGrad()))


def test_what_would_go_wrong_is_refused_on_all_ranks(crew: Crews) -> None:
    crew(2)(refusals)


def reached_on_one_rank(rank: int) -> None:
    class Routed(Net):
        gated = True

        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.linspace(0.5, 1.5, 7))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            z = self.trunk(x)
            if self.gated:  # the first half of the batch
                z = torch.cat([z[:4] * self.gate, z[4:]])
            return {name: head(z) for name, head in self.heads.items()}

    dtype = torch.float64
    for method in (gs.UPGrad, gs.scalarizers.STCH):
        model, own = made(Routed, dtype), made(Routed, dtype)
        own.gated = rank == 0
        own = sharded(own, "root", ignored_params={own.gate})
        found, expected = wrapped(own, method()), wrapped(model, method())
        for optimizer, each, data in ((found, own, part(rank, 2, dtype)), (expected, model, batch(dtype))):
            losses, extra = losses_of(each, *data)
            optimizer.backward(losses, extra_loss=extra)
        assert_equal(gradients(found), gradients(expected), 1e-9)


def test_whole_parameters_that_only_one_rank_reaches(crew: Crews) -> None:
    crew(2)(reached_on_one_rank)


def compiled(rank: int) -> None:
    expected = trained(made(), *batch(), gs.UPGrad())

    def compiled_forward(after: bool) -> Any:
        torch._dynamo.reset()
        model = made()
        model.forward = torch.compile(model.forward, backend="aot_eager")
        return sharded(model, "root", reshard_after_forward=after)

    for after in (True, False):
        model = compiled_forward(after)
        optimizer = wrapped(model, gs.UPGrad())
        with pytest.raises(RuntimeError, match="`shared` must be declared .* got a parameter of shape"):
            optimizer.backward(losses_of(model, *part(rank))[0])
        assert all(parameter.grad is None for parameter in model.parameters())
        assert_equal(trained(model, *part(rank), gs.UPGrad(), shared=model.trunk), expected)
    model = made()
    model.trunk.compile(backend="aot_eager")
    assert_equal(trained(sharded(model), *part(rank), gs.UPGrad()), expected)
    torch._dynamo.reset()


def test_compiled_models_that_are_sharded(crew: Crews) -> None:
    crew(2)(compiled)


PLAN = {"up": ColwiseParallel(), "down": RowwiseParallel()}
WHOLE_PLAN = {
    "up": ColwiseParallel(),
    "down": RowwiseParallel(output_layouts=Shard(0)),
    "norm": SequenceParallel(sequence_dim=0),
    **{f"heads.{name}": ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()) for name in "abc"},
}


def tensor_parallel(rank: int) -> None:
    expected = trained(made(Parallel), *batch(), gs.UPGrad(), steps=2)
    for plan in (PLAN, WHOLE_PLAN):
        model = parallelize_module(made(Parallel), init_device_mesh("cpu", (2,)), plan)
        assert_equal(trained(model, *batch(), gs.UPGrad(), steps=2), expected)
        dist.barrier()


def test_tensor_parallel(crew: Crews) -> None:
    crew(2)(tensor_parallel)


def loss_parallel_training(rank: int) -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    cut = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    plan = {**PLAN, **{f"heads.{name}": cut for name in "abc"}}
    own = parallelize_module(made(Parallel), init_device_mesh("cpu", (2,)), plan)
    whole_model = made(Parallel)
    optimizers = wrapped(whole_model, gs.UPGrad()), wrapped(own, gs.UPGrad())

    def stepped(scalarized: bool, model: Any, optimizer: gs.MultiObjectiveOptimizer) -> dict[str, Tensor]:
        optimizer.zero_grad()
        losses = {
            name: nn.functional.cross_entropy(output, labels) * 10**k
            for k, (name, output) in enumerate(model(batch()[0]).items())
        }
        if scalarized:
            optimizer.scalarize(losses).backward()
        else:
            optimizer.backward(losses)
        with pytest.raises(TypeError, match="full_tensor"):
            optimizer.backward(losses, extra_loss=DTensor.from_local(torch.ones(()), own.up.weight.device_mesh))
        return gradients(optimizer)

    for scalarized in (False, True):
        expected = stepped(scalarized, whole_model, optimizers[0])
        with loss_parallel():
            assert_equal(stepped(scalarized, own, optimizers[1]), expected)


def test_losses_that_are_spread_over_ranks(crew: Crews) -> None:
    crew(2)(loss_parallel_training)


def two_dimensions(rank: int) -> None:
    expected = trained(made(), *batch(), gs.UPGrad(), steps=2)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    assert_equal(trained(sharded(mesh=mesh), *part(rank, 4), gs.UPGrad(), steps=2), expected)
    expected = trained(made(Parallel), *batch(), gs.UPGrad(), steps=2)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = sharded(parallelize_module(made(Parallel), mesh["tensor"], WHOLE_PLAN), "root", mesh=mesh["data"])
    assert_equal(trained(model, *part(rank // 2), gs.UPGrad(), steps=2), expected)
    with pytest.raises(RuntimeError, match="cut once along a dimension"):
        wrapped(model, gs.UPGrad()).jacobian(losses_of(model, *part(rank // 2))[0])
    model = sharded(parallelize_module(made(Parallel), mesh["tensor"], PLAN), "root", mesh=mesh["data"])
    with pytest.raises(RuntimeError, match="spread over all ranks, \\[0, 1, 2, 3\\], got parameter 'norm.weight'"):
        wrapped(model, gs.UPGrad()).backward(losses_of(model, *part(rank // 2))[0])


def test_two_dimensions_of_ranks(crew: Crews) -> None:
    crew(4)(two_dimensions)


def _watched(rank: int, kind: str) -> tuple[list[Tensor], list[Tensor]]:
    model = sharded(how="layers")
    x, y = part(rank)
    seen: list[Any] = []
    if kind == "look":
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    else:
        method = gs.UPGrad() if kind == "gramian" else gs.scalarizers.Sum()
        optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.named_parameters(), lr=0.1), method)
        optimizer.register_surgery_hook(seen.append, scope="tensor")
    for _ in range(2):
        optimizer.zero_grad()
        losses, _ = losses_of(model, x, y)
        if kind == "look":
            seen.append(Look(model).gramian(losses, scope="tensor"))
            sum(losses.values()).backward()
        else:
            optimizer.backward(losses)
        optimizer.step()
    return [surgery.gramian for surgery in seen], [each.full_tensor().detach() for each in model.parameters()]


@pytest.mark.parametrize("kind", ["gramian", "scalarizer", "look"])
def test_what_is_seen_where_parameters_are_sharded(crew: Crews, kind: str) -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = gs.UPGrad() if kind == "gramian" else gs.scalarizers.Sum()
    if kind != "look":
        optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.named_parameters(), lr=0.1), method)
    x, y = batch()
    expected = []
    for _ in range(2):
        optimizer.zero_grad()
        losses, _ = losses_of(model, x, y)
        expected.append(Look(model).gramian(losses, scope="tensor").gramian)
        optimizer.backward(losses) if kind != "look" else sum(losses.values()).backward()
        optimizer.step()
    for gramians, parameters in crew(2)(_watched, kind):
        for found, gramian in zip(gramians, expected, strict=True):
            torch.testing.assert_close(found, gramian, rtol=1e-4, atol=1e-6)
        for one, two in zip(parameters, model.parameters(), strict=True):
            torch.testing.assert_close(one, two.detach(), rtol=1e-4, atol=1e-6)
