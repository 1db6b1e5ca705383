"""The ghost engine on graphs of losses of every shape, among hooks and user code, and what it holds in memory."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ghosts
import pytest
import torch
from ghosts import (
    GRAPHS,
    Built,
    Equal,
    Model,
    all_cut_off,
    assert_agrees,
    assert_ends_like_loop,
    assert_like_loop,
    default_dtype,
    hooked,
    mlp,
    over,
    parts_of_the_trunk,
    plain,
    undefined_for_one_loss,
    wrap,
)
from support import assert_near, assert_same_bits
from test_engines import Square
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery.engines import ghost, passes
from gradsurgery.engines.graph import reach
from gradsurgery.engines.matching import matched_uses

form, mode = ghosts.form, ghosts.mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, dtype: torch.dtype, mode: str) -> None:
    _, surgery = assert_agrees(GRAPHS[name], dtype)
    if name == "plain":
        assert ("packs of parameters and a last pass" in surgery.engine) == (mode == "dropped")


def test_weights_from_another_device_are_not_matched() -> None:
    m = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5, device="meta")])
    z = functional.linear(torch.randn(6, 5, device="meta"), m[0].weight.to("meta"))
    root = m[1](z).sum()
    uses = matched_uses(reach([root, root * 2]), list(m.parameters()), 2)
    assert set(uses) == {m[1].weight, m[1].bias}


def test_nothing_arrives_anywhere(mode: str) -> None:
    torch.manual_seed(0)
    module, losses = all_cut_off()
    wrap(module, "ghost", Equal()).backward(losses())
    assert all(parameter.grad is None or not bool(parameter.grad.any()) for parameter in module.parameters())


@pytest.mark.parametrize("scope", ["all", "module", "tensor"])
@pytest.mark.parametrize(
    "name", ["plain", "nothing_in_common", "several_depths", "parts_of_the_trunk", "tied_to_a_head"]
)
def test_scopes_and_declared_sharing(name: str, scope: str, mode: str) -> None:
    """Everything is shared: also what one loss alone reaches."""
    forms, _ = assert_agrees(GRAPHS[name], torch.float64, scope=scope, shared=lambda module: module)
    if mode == "kept" and name == "parts_of_the_trunk":
        assert forms["3.weight"] == "Alone"


@pytest.mark.parametrize("name", ["plain", "several_depths", "parts_of_the_trunk"])
def test_what_several_losses_reach_and_is_not_shared_gets_the_plain_sum(name: str, mode: str) -> None:
    assert_agrees(GRAPHS[name], torch.float64, shared=lambda module: module[0])
    forms, _ = assert_agrees(GRAPHS[name], torch.float64, shared=lambda module: module[2])
    if mode == "kept":
        assert all(key.startswith("2.") for key in forms)


def test_a_row_that_is_undefined_leaves_the_others() -> None:
    _, surgery = assert_agrees(undefined_for_one_loss)
    assert surgery.gramian is not None
    assert bool(surgery.gramian[:2, :2].isfinite().all())
    assert not bool(surgery.gramian[2].isfinite().any())


def test_tags_and_frozen_parameters() -> None:
    def build() -> Built:
        module, losses = parts_of_the_trunk()
        gs.tag_shared(module[0])
        module[0].bias.requires_grad_(False)
        module[1].weight.requires_grad_(False)
        return module, losses

    assert set(assert_agrees(build)[0]) == {"0.weight"}


# --- hooks and user code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(5))
def test_hooks_on_tensors_are_applied_once_a_loss(place: int, mode: str) -> None:
    assert_agrees(hooked(place, lambda gradient: 2 * gradient), torch.float64)
    assert_agrees(hooked(place, lambda gradient: gradient.mul_(2)), torch.float64)
    assert_agrees(hooked(place, lambda gradient: None), torch.float64)


@pytest.mark.parametrize("place", range(5))
def test_hooks_may_treat_the_losses_differently(place: int) -> None:
    assert_agrees(hooked(place, lambda gradient: gradient.clamp(-0.5, 0.5)), torch.float64)
    assert_agrees(hooked(place, lambda gradient: gradient / float(gradient.norm())), torch.float64)


@pytest.mark.parametrize("scope", ["all", "tensor"])
@pytest.mark.parametrize("place", range(5))
def test_hooks_that_do_so_are_refused_where_gradients_are_dropped(
    place: int, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last pass would hand them the sum."""
    monkeypatch.setattr(ghost, "_ALWAYS_KEPT", 0)
    for hook in (lambda gradient: gradient.clamp(-0.5, 0.5), lambda gradient: gradient / float(gradient.norm())):
        torch.manual_seed(0)
        module, losses = hooked(place, hook)()
        with pytest.raises(RuntimeError, match=r"Ghost: `losses` must have hooks .* linear .*engine='loop'"):
            wrap(module, "ghost", scope=scope).backward(losses())
        assert all(parameter.grad is None for parameter in module.parameters())


def with_hook_on(*places: int, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], Built]:
    """A hook on the weights of some layers."""

    def build() -> Built:
        m = mlp()
        for place in places:
            m[place].weight.register_hook(hook)  # type: ignore[operator, union-attr]
        return over(m, torch.randn(7, 5))

    return build


def test_hooks_on_parameters_are_applied(mode: str) -> None:
    forms, _ = assert_agrees(with_hook_on(0, hook=lambda gradient: 3 * gradient), torch.float64)
    assert mode == "dropped" or [name for name, kind in forms.items() if kind == "Held"] == ["0.weight"]
    assert_agrees(with_hook_on(2, 4, hook=lambda gradient: gradient.clamp(-0.1, 0.1)), torch.float64)
    assert_agrees(with_hook_on(0, 4, hook=lambda gradient: gradient / float(gradient.norm())), torch.float64)


def test_hooks_on_modules_are_applied(mode: str) -> None:
    def build() -> Built:
        m = mlp()
        m[2].register_full_backward_hook(lambda module, inputs, outputs: tuple(2 * one for one in inputs))
        m[3].register_full_backward_pre_hook(lambda module, outputs: tuple(3 * one for one in outputs))
        return over(m, torch.randn(7, 5))

    assert_agrees(build, torch.float64)


def test_hooks_on_nodes_that_run_are_applied(mode: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        for layer in m.s:
            x = layer(x)
            if isinstance(layer, nn.Tanh) and x.grad_fn is not None:
                x.grad_fn.register_prehook(lambda outputs: (2 * outputs[0],))
                x.grad_fn.register_hook(lambda inputs, outputs: (3 * inputs[0],))
        return x

    assert_agrees(lambda: over(Model(forward, s=mlp()), torch.randn(7, 5)), torch.float64)


def seen_by_hooks(engine: str) -> dict[str, list[Tensor]]:
    """What hooks that keep their argument have kept, what module hooks were called with, and ``retain_grad``."""
    torch.manual_seed(0)
    m, x, seen = mlp(), torch.randn(7, 5), dict[str, list[Tensor]]()
    m[2].register_full_backward_hook(
        lambda module, inputs, outputs: seen.setdefault("module", []).extend([*inputs, *outputs])  # type: ignore[func-returns-value]
    )
    retained = []
    for position, layer in enumerate(m):
        x = layer(x)
        x.register_hook(lambda gradient, at=str(position): seen.setdefault(at, []).append(gradient))
        x.retain_grad()
        retained.append(x)
    losses = [x.sin().sum(), x.cos().sum(), x.square().sum()]
    surgery = wrap(m, engine).backward(losses)
    assert surgery.engine.startswith(engine)
    seen["retained"] = [tensor.grad for tensor in retained if tensor.grad is not None]
    return seen


def test_hooks_see_the_gradients_of_each_loss() -> None:
    seen, expected = seen_by_hooks("ghost"), seen_by_hooks("loop")
    assert {key: len(value) for key, value in expected.items()} == {
        "0": 3, "1": 3, "2": 3, "3": 3, "4": 3, "module": 6, "retained": 5
    }  # fmt: skip
    assert_same_bits(seen, expected)


class Normalized(torch.autograd.Function):
    """Passes on gradients of unit length, each noted in a list."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: list[Tensor]) -> Tensor:
        ctx.seen = seen
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.seen.append(gradient)
        return gradient / float(gradient.norm()), None


def test_custom_functions_are_passed_once_a_loss(mode: str) -> None:
    layers = {"a": nn.Linear(5, 6), "b": nn.Linear(6, 4)}
    assert_agrees(
        lambda: over(Model(lambda m, x: m.b(Square.apply(m.a(x))), **copy.deepcopy(layers)), torch.ones(7, 5))
    )
    seen: list[Tensor] = []
    own = Model(lambda m, x: m.b(Normalized.apply(m.a(x), seen)), **layers)
    if mode == "kept":
        assert_agrees(lambda: over(copy.deepcopy(own), torch.ones(7, 5)), torch.float32)
        assert len(seen) == 3 + 3
        assert_same_bits(seen[3:], seen[:3])
    else:
        module, losses = over(own, torch.ones(7, 5))
        with pytest.raises(RuntimeError, match="linear in the gradient"):
            wrap(module, "ghost").backward(losses())


def test_hooks_of_the_engine_are_removed(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[dict[int, Tensor | None]] = []

    @contextmanager
    def arrivals(inputs: Any) -> Iterator[dict[int, Tensor | None]]:
        with watched(inputs) as arrived:
            noted.append(arrived)
            yield arrived

    watched = passes._arrivals
    monkeypatch.setattr(passes, "_arrivals", arrivals)
    torch.manual_seed(0)
    module, losses = plain()
    found = losses()
    wrap(module, "ghost").backward(found, retain_graph=True)
    before = [dict(arrived) for arrived in noted]
    assert any(before)
    torch.stack(found).sum().backward()
    assert all(one.items() == other.items() for one, other in zip(noted, before, strict=True))


def test_the_graph_is_freed(mode: str) -> None:
    module, losses = plain()
    optimizer, found = wrap(module, "ghost"), losses()
    optimizer.backward(found, retain_graph=True)
    optimizer.backward(found)
    for loss in found:
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
    x, layer = torch.randn(3, 6, 5), nn.Linear(5, 4)
    apart = [layer(part).sin().sum() for part in x]
    wrap(layer, "ghost").backward(apart)
    for loss in apart:
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_what_a_step_has_given_is_not_written_over_by_the_next(form: str, mode: str) -> None:
    torch.manual_seed(0)
    module, losses = over(mlp(32, 16), torch.randn(7, 16))
    optimizer = wrap(module, "ghost", shared=module)
    surgery = optimizer.backward(losses())
    given = [surgery.gramian, *(parameter.grad for parameter in module.parameters())]
    copies = copy.deepcopy(given)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    optimizer.zero_grad()
    optimizer.backward(losses())
    assert_same_bits(given, copies)


def test_an_error_in_a_hook_is_the_users() -> None:
    def broken(gradient: Tensor) -> Tensor:
        raise KeyError("the user's own")

    module, losses = hooked(1, broken)()
    with pytest.raises(KeyError, match="the user's own"):
        wrap(module, "ghost").backward(losses())
    assert all(parameter.grad is None for parameter in module.parameters())

    module, losses = hooked(1, lambda gradient: gradient[:1])()
    with pytest.raises(RuntimeError, match="size|shape"):
        wrap(module, "ghost").backward(losses())


# --- saved tensors -----------------------------------------------------------------------------------------------


class Counted(nn.Sequential):
    """Counts its forward passes."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)  # type: ignore[no-any-return]


def in_checkpoints(extra: Callable[[], nn.Module]) -> Built:
    """Two checkpointed regions."""

    def forward(m: Any, x: Tensor) -> Tensor:
        for region in m.i:
            x = checkpoint(region, x, use_reentrant=False)
        return x

    inner: Any = nn.Sequential(*(Counted(nn.Linear(n, 6), extra(), nn.Linear(6, 6)) for n in (5, 6)))
    return over(Model(forward, i=inner), torch.randn(7, 5))


@pytest.mark.parametrize("extra", [nn.Tanh, lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(6)])
def test_checkpointed_regions_are_recomputed_once_a_loss_and_once_to_be_read(
    extra: Callable[[], nn.Module], mode: str
) -> None:
    assert_agrees(lambda: in_checkpoints(extra))
    torch.manual_seed(0)
    module, losses = in_checkpoints(extra)
    for region in module.i:  # type: ignore[union-attr]
        region.calls = 0  # type: ignore[union-attr, assignment]
    wrap(module, "ghost").backward(losses())
    if mode == "kept":
        assert [region.calls for region in module.i] == [1 + 1 + 3, 1 + 1 + 3]  # type: ignore[union-attr]


def test_checkpoints_within_checkpoints_and_around_custom_functions(mode: str) -> None:
    def nested(m: Any, x: Tensor) -> Tensor:
        return checkpoint(lambda u: checkpoint(m.s, m.t(u), use_reentrant=False).tanh(), x, use_reentrant=False)

    def around(m: Any, x: Tensor) -> Tensor:
        return checkpoint(lambda u: Square.apply(m.s(u)), x, use_reentrant=False)

    assert_agrees(lambda: over(Model(nested, s=mlp(), t=nn.Linear(5, 5)), torch.randn(7, 5)))
    assert_agrees(lambda: over(Model(around, s=nn.Sequential(mlp(), nn.Dropout(0.5))), torch.randn(7, 5)))


@pytest.mark.parametrize(
    "hooks",
    [
        torch.autograd.graph.save_on_cpu,
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: [t.clone()], lambda packed: packed[0]),
    ],
    ids=["save_on_cpu", "saved_tensors_hooks"],
)
def test_hooks_on_saved_tensors(hooks: Callable[[], Any], mode: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with hooks():
            return m.s(x)  # type: ignore[no-any-return]

    assert_agrees(lambda: over(Model(forward, s=mlp()), torch.randn(7, 5)), torch.float64)


# --- what is asked for beside the losses


@pytest.mark.parametrize("name", ["plain", "several_depths", "parts_of_the_trunk", "nothing_in_common"])
def test_an_extra_loss(name: str, mode: str) -> None:
    def steps(optimizer: Any, module: Any, losses: Any) -> None:
        extra = sum(parameter.square().sum() for parameter in module.parameters())
        optimizer.backward(losses(), extra_loss=extra)

    assert_ends_like_loop(GRAPHS[name], steps)
    assert_ends_like_loop(GRAPHS[name], lambda o, m, losses: o.backward(losses(), extra_loss=m[0].weight.sum()))
    assert_ends_like_loop(GRAPHS[name], lambda o, m, losses: o.backward(losses(), extra_loss=torch.tensor(1.0)))
    assert_ends_like_loop(GRAPHS[name], lambda o, m, losses: o.backward((found := losses()), extra_loss=found[0] * 2))


@pytest.mark.parametrize("name", ["plain", "several_depths", "parts_of_the_trunk", "inner_losses"])
def test_the_graph_may_be_kept(name: str, mode: str) -> None:
    def steps(optimizer: Any, module: Any, losses: Any) -> None:
        found = losses()
        optimizer.backward(found, retain_graph=True)
        optimizer.backward(found, retain_graph=True)
        optimizer.backward(found)

    assert_ends_like_loop(GRAPHS[name], steps)


def test_gradients_add_up_over_batches_and_steps(mode: str) -> None:
    def steps(optimizer: Any, module: Any, losses: Any) -> None:
        for _ in range(3):
            optimizer.backward(losses())
            optimizer.backward(losses())
            optimizer.step()
        optimizer.zero_grad()
        optimizer.backward(losses())

    assert_ends_like_loop(plain, steps)


def test_a_scale_of_powers_of_two_changes_no_bit(form: str, mode: str) -> None:
    gradients = []
    for scale in (1.0, 2.0**16):
        torch.manual_seed(0)
        module, losses = plain()
        optimizer = wrap(module, "ghost")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        surgery = optimizer.backward(losses(), grad_scaler=scaler)
        scaler.unscale_(optimizer)
        gradients.append([surgery.gramian, *(parameter.grad for parameter in module.parameters())])
    assert_same_bits(gradients[1], gradients[0])


def test_a_grad_scaler_and_scalarize(mode: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0)
    assert_ends_like_loop(plain, lambda o, m, losses: o.backward(losses(), grad_scaler=scaler))
    assert_ends_like_loop(
        plain, lambda o, m, losses: (5 * o.scalarize(losses(), extra_loss=m[0].weight.sum())).backward()
    )


def test_closures(mode: str) -> None:
    assert_ends_like_loop(plain, lambda o, m, losses: o.step(lambda: (o.zero_grad(), losses())[1]))
    assert_ends_like_loop(plain, lambda o, m, losses: o.backward(losses))

    results = []
    for engine in ("ghost", "loop"):
        with default_dtype(torch.float64):
            torch.manual_seed(0)
            module, losses = over(mlp(), torch.randn(7, 5), scales=1.0)
            plain_optimizer = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=4)
            optimizer = gs.MultiObjectiveOptimizer(plain_optimizer, gs.MGDA(), engine=engine)

            def closure(optimizer: Any = optimizer, losses: Any = losses) -> Any:
                optimizer.zero_grad()
                return losses()

            for _ in range(2):
                optimizer.step(closure)
        results.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    assert_near(results[0], results[1], 1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rows", [3, 80])
def test_numbers_that_are_not_finite(bad: float, rows: int, form: str, mode: str) -> None:
    torch.manual_seed(0)
    module, x = mlp(96, 96), torch.randn(rows, 96)
    x[1, 2] = bad
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(module.parameters(), 0.1), gs.NashMTL(), engine="ghost")
    y = module(torch.randn(rows, 96))
    optimizer.backward([y.sin().sum(), y.cos().sum(), y.square().sum()])
    state = copy.deepcopy(optimizer.aggregator.state_dict())
    optimizer.zero_grad()
    y = module(x)
    surgery = optimizer.backward([y.sin().sum(), y.cos().sum(), y.square().sum()])
    assert surgery.engine.startswith("ghost")
    assert all(bool(parameter.grad.isnan().any()) for parameter in module[0].parameters())  # type: ignore[union-attr]
    assert_same_bits(dict(optimizer.aggregator.state_dict()), dict(state))


def test_methods_over_the_jacobian_are_refused() -> None:
    module, losses = plain()
    with pytest.raises(ValueError, match=r"`engine` must deliver .* GradDrop, got Ghost.*engine='auto'"):
        wrap(module, "ghost", gs.GradDrop())
    for method in (None, gs.aggregators.MoDo()):
        optimizer = wrap(module, "ghost", method)
        with pytest.raises(RuntimeError, match=r"Ghost: `engine` must deliver .*engine='auto' or engine='loop'"):
            optimizer.observe(losses(), losses()) if method else optimizer.jacobian(losses())
    assert all(parameter.grad is None for parameter in module.parameters())


def hooked_table() -> nn.Module:
    module = nn.Embedding(10, 5, sparse=True)
    module.weight.register_hook(lambda gradient: 2 * gradient)
    return module


SPARSE: dict[str, Callable[[], nn.Module]] = {
    "bag": lambda: nn.EmbeddingBag(10, 5, mode="sum", sparse=True),
    "table that is no leaf": lambda: Model(
        lambda m, x: functional.embedding(x, 2 * m.w, sparse=True), w=torch.randn(10, 5)
    ),
    "hooked table": hooked_table,
}


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_gradients_of_other_modules_are_the_loops(name: str) -> None:
    module, surgery = assert_like_loop(lambda: over(SPARSE[name](), torch.randint(0, 10, (3, 8))), "ghost")
    assert surgery.engine.endswith("as there are sparse gradients that 'ghost' does not know")
    assert all(parameter.grad.is_sparse for parameter in module.parameters())  # type: ignore[union-attr]


def test_sparse_gradients_that_nothing_announces_are_refused() -> None:
    class Sparse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient.to_sparse()

    module, losses = over(Model(lambda m, x: x * Sparse.apply(m.w), w=torch.randn(5)), torch.randn(7, 5))
    with pytest.raises(RuntimeError, match=r"Ghost: `losses` must have dense gradients .*engine='loop'"):
        wrap(module, "ghost").backward(losses())


def test_a_graph_that_is_gone_says_so() -> None:
    module, losses = plain()
    found = losses()
    sum(found).backward()
    before = [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="second time"):
        wrap(module, "ghost").backward(found)
    assert_same_bits([parameter.grad for parameter in module.parameters()], before)


def test_parameters_changed_since_the_forward_pass_say_so() -> None:
    module, losses = plain()
    found = losses()
    with torch.no_grad():
        module[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        wrap(module, "ghost").backward(found)


# --- memory ------------------------------------------------------------------------------------------------------


class Live(TorchDispatchMode):
    """The largest number of bytes alive that operations inside have brought forth."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors_in((args, kwargs))}
        for tensor in _tensors_in(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and tensor.layout == torch.strided:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: own for key, own in self.alive.items() if not own[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def _tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_of(engine: str, rows: int, width: int, losses: int, depth: int) -> float:
    """What a surgery holds at its peak, in units of K x P."""
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
    y = module(torch.randn(rows, width))
    roots = [(y * torch.randn(width)).sum() for _ in range(losses)]
    with Live() as live:
        surgery = wrap(module, engine).backward(roots)
    assert surgery.engine.startswith(engine)
    return live.peak / (4 * losses * sum(parameter.numel() for parameter in module.parameters()))


def test_memory_never_reaches_that_of_the_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_of("loop", 16, 128, 8, 12) > 1
    assert peak_of("ghost", 16, 256, 8, 12) < 0.6
    monkeypatch.setattr(ghost, "_ALWAYS_KEPT", 0)
    assert peak_of("ghost", 16, 256, 8, 12) < 0.6
    assert peak_of("ghost", 128, 128, 8, 12) < 0.9
    assert peak_of("ghost", 256, 128, 8, 12) < 0.9


def test_layers_with_few_outputs_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few numbers arrive at such layers, and many are formed of them."""
    monkeypatch.setattr(ghost, "_ALWAYS_KEPT", 0)
    module = nn.ModuleList(nn.Linear(4000, 8) for _ in range(12))
    x = torch.randn(60, 4000)
    y = torch.cat([layer(x) for layer in module], 1)
    roots = [(y * torch.randn(96)).sum() for _ in range(8)]
    with Live() as live:
        wrap(module, "ghost").backward(roots)
    assert live.peak / (4 * 8 * sum(parameter.numel() for parameter in module.parameters())) < 0.9
