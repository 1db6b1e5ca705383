"""The batched engine against the loop: the same rows and directions, in one pass or handed over to the loop."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ghosts import (
    GRAPHS,
    Built,
    Cut,
    Model,
    all_cut_off,
    assert_ends_like_loop,
    assert_like_loop,
    assert_same_surgery,
    branches,
    cut_off,
    hooked,
    mlp,
    over,
    parts_of_the_trunk,
    plain,
    run,
    scalars,
    wrap,
)
from support import assert_near, assert_same_bits
from test_engines import CASES, Problem, Square
from test_ghost_layers import LAYERS
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery.engines import batched
from gradsurgery.engines.frontier import Descent, descend

AT_ONCE = "batched: one backward pass for all losses"
ONE_BY_ONE = "loop: one backward pass a loss, as they cannot all share one"
NOT_BATCHED = "loop: one backward pass a loss, as something cannot be batched"

# --- models and graphs -------------------------------------------------------------------------------------------

ONE_BY_ONE_CASES = {"sparse embedding", "custom Function", "custom Function with a vmap rule"}


@pytest.mark.parametrize("name", CASES)
def test_the_compatibility_table(name: str) -> None:
    case = CASES[name]
    loop, other = Problem(case), Problem(case)
    by_loop, batched = loop.wrapped("loop"), other.wrapped("batched")
    for _ in range(2):
        expected, surgery = by_loop.backward(loop.losses()), batched.backward(other.losses())
        assert surgery.engine == (ONE_BY_ONE if name in ONE_BY_ONE_CASES else AT_ONCE)
        assert_same_surgery((other.model, surgery), (loop.model, expected), case.tolerance)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    """Those that cannot be batched now may be batched by another version of torch."""
    _, surgery = assert_like_loop(LAYERS[name].built, "batched", steps=2)
    assert surgery.engine == AT_ONCE or "sparse" in name or LAYERS[name].held is None, surgery.engine


GRAPHS_AT_ONCE = {
    "plain",
    "nothing_in_common",
    "separate_passes",
    "some_absent",
    "zero_row",
    "far_apart",
    "undefined_for_one_loss",
    "with_inputs",
    "functions_of_one_of_them",
    "spread_over_more_rows",
    "parts_that_use_a_weight_each",
    "two_outputs_for_all",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, dtype: torch.dtype) -> None:
    ran = AT_ONCE if name in GRAPHS_AT_ONCE else ONE_BY_ONE
    _, surgery = assert_like_loop(GRAPHS[name], "batched", dtype, steps=2)
    assert surgery.engine == ran
    _, surgery = assert_like_loop(GRAPHS[name], "batched", dtype)
    assert surgery.engine == (NOT_BATCHED if name in {"cut_off", "cut_off_above_an_infinite_derivative"} else ran)


def test_nothing_arrives_anywhere() -> None:
    _, surgery = assert_like_loop(all_cut_off, "batched", steps=2)
    assert surgery.gramian is None


def with_parts_of_their_own() -> Built:
    """Each loss has a layer of its own, the first one two, of which one table is sparse."""
    m, x = branches()
    m.append(nn.Embedding(7, 5, sparse=True))

    def losses() -> list[Tensor]:
        z = m[0](x).tanh()
        return scalars(m[1](z) + m[4](torch.arange(6)), m[2](z), m[3](z).cos())

    return m, losses


@pytest.mark.parametrize("scope", ["all", "module", "tensor"])
@pytest.mark.parametrize("name", ["plain", "nothing_in_common", "several_depths", "tied_to_a_head"])
def test_scopes_and_declared_sharing(name: str, scope: str) -> None:
    """Everything is shared: also what one loss alone reaches."""
    assert_like_loop(GRAPHS[name], "batched", scope=scope, shared=lambda module: module, steps=2)


def test_parts_that_one_loss_alone_reaches() -> None:
    _, surgery = assert_like_loop(with_parts_of_their_own, "batched", steps=2)
    assert surgery.engine == AT_ONCE
    _, surgery = assert_like_loop(with_parts_of_their_own, "batched", shared=lambda m: m[:4], steps=2)
    assert surgery.engine == AT_ONCE
    _, surgery = assert_like_loop(with_parts_of_their_own, "batched", shared=lambda m: m, steps=2)
    assert surgery.engine == ONE_BY_ONE


@pytest.mark.parametrize("name", ["plain", "several_depths", "parts_of_the_trunk"])
def test_what_several_losses_reach_and_is_not_shared_gets_the_plain_sum(name: str) -> None:
    for place in (0, 2):
        _, surgery = assert_like_loop(GRAPHS[name], "batched", shared=lambda module, at=place: module[at])
        assert surgery.engine == ONE_BY_ONE


@pytest.mark.parametrize("losses", [1, 2, 20])
def test_any_number_of_losses(losses: int) -> None:
    _, surgery = assert_like_loop(lambda: over(mlp(), torch.randn(7, 5), losses, 2.0), "batched", steps=2)
    assert surgery.engine == (AT_ONCE if losses > 1 else "loop: one backward pass a loss, as there is only one")


def test_mixed_precision_where_losses_part() -> None:
    def build() -> Built:
        m, x = nn.Linear(5, 4).bfloat16(), torch.randn(6, 5).bfloat16()
        c = torch.randn(6, 4)

        def losses() -> list[Tensor]:
            z = m(x)
            return [(z * c).sum(), z.float().sin().sum(), (z + c.double()).square().sum(), z.float().max()]

        return m, losses

    _, surgery = assert_like_loop(build, "batched", torch.float32, 1e-2, steps=2)
    assert surgery.engine == AT_ONCE


# --- rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*GRAPHS, "with_parts_of_their_own"])
def test_jacobians(name: str) -> None:
    results = []
    for engine in ("batched", "loop"):
        torch.manual_seed(0)
        module, losses = {**GRAPHS, "with_parts_of_their_own": with_parts_of_their_own}[name]()
        optimizer = wrap(module, engine)
        for _ in range(2):
            rows = optimizer.jacobian(losses())
        results.append([*rows, *(parameter.grad for parameter in module.parameters() if parameter.grad is not None)])
    assert len(results[0]) == len(results[1])
    for found, wanted in zip(*results, strict=True):
        assert torch.equal(found.isfinite(), wanted.isfinite())
        assert_near(found.nan_to_num(), wanted.nan_to_num(), 1e-5)


def drawing() -> gs.Aggregator:
    return gs.GradDrop(generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["plain", "several_depths", "functions_of_one_of_them"])
def test_methods_over_the_jacobian(name: str) -> None:
    module, surgery = run(GRAPHS[name], "batched", torch.float64, aggregator=drawing(), steps=2)
    reference, expected = run(GRAPHS[name], "loop", torch.float64, aggregator=drawing(), steps=2)
    assert_same_surgery((module, surgery), (reference, expected), 1e-10)
    assert surgery.engine == (AT_ONCE if name in GRAPHS_AT_ONCE else ONE_BY_ONE)


def test_methods_that_look_at_several_batches() -> None:
    states = []
    for engine in ("batched", "loop"):
        torch.manual_seed(0)
        module, losses = plain()
        optimizer = wrap(module, engine, gs.aggregators.MoDo())
        optimizer.observe(losses(), losses())
        states.append(torch.cat([value.flatten() for value in optimizer.aggregator.state_dict().values()]))
    assert_near(states[0], states[1], 1e-5)


# --- what is asked for beside the losses -------------------------------------------------------------------------

SOME = [("plain", "batched"), ("with_inputs", "batched"), ("several_depths", "loop"), ("parts_of_the_trunk", "loop")]


@pytest.mark.parametrize(("name", "ran"), SOME)
def test_an_extra_loss(name: str, ran: str) -> None:
    def total(optimizer: Any, module: Any, losses: Any) -> None:
        for _ in range(2):
            found = losses()
            optimizer.backward(found, extra_loss=sum(own.square().sum() for own in module.parameters()))
            optimizer.backward(losses(), extra_loss=torch.tensor(1.0))
            optimizer.backward((found := losses()), extra_loss=found[0] * 2)

    assert_ends_like_loop(GRAPHS[name], total, "batched", ran)


@pytest.mark.parametrize(("name", "ran"), SOME)
def test_the_graph_may_be_kept(name: str, ran: str) -> None:
    def steps(optimizer: Any, module: Any, losses: Any) -> None:
        optimizer.backward(losses())
        found = losses()
        optimizer.backward(found, retain_graph=True)
        optimizer.backward(found, retain_graph=True)
        optimizer.backward(found)
        with pytest.raises(RuntimeError, match="second time"):
            torch.stack(found).sum().backward()

    assert_ends_like_loop(GRAPHS[name], steps, "batched", ran)


def test_gradients_add_up_over_batches_and_steps() -> None:
    def steps(optimizer: Any, module: Any, losses: Any) -> None:
        for _ in range(3):
            optimizer.backward(losses())
            optimizer.backward(losses())
            optimizer.step()
        optimizer.zero_grad()
        optimizer.backward(losses())

    assert_ends_like_loop(plain, steps, "batched")
    assert_ends_like_loop(with_parts_of_their_own, steps, "batched")


def test_what_a_step_has_given_is_not_written_over_by_the_next() -> None:
    torch.manual_seed(0)
    module, losses = with_parts_of_their_own()
    optimizer = wrap(module, "batched", shared=module[:4])
    surgery = optimizer.backward(losses())
    rows = optimizer.jacobian(losses())
    given = [surgery.gramian, *rows, *(parameter.grad.to_dense() for parameter in module.parameters())]  # type: ignore[union-attr]
    copies = copy.deepcopy(given)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    optimizer.zero_grad()
    optimizer.backward(losses())
    optimizer.jacobian(losses())
    assert_same_bits(given, copies)


def test_a_scale_of_powers_of_two_changes_no_bit() -> None:
    gradients = []
    for scale in (1.0, 2.0**16):
        torch.manual_seed(0)
        module, losses = with_parts_of_their_own()
        optimizer = wrap(module, "batched")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        surgery = optimizer.backward(losses(), grad_scaler=scaler)
        scaler.unscale_(optimizer)
        assert surgery.engine == AT_ONCE
        gradients.append([surgery.gramian, *(parameter.grad.to_dense() for parameter in module.parameters())])  # type: ignore[union-attr]
    assert_same_bits(gradients[1], gradients[0])


@pytest.mark.parametrize("name", ["plain", "functions_of_one_of_them"])
def test_a_grad_scaler_closures_and_scalarize(name: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0)
    extra = GRAPHS[name]
    for steps in (
        lambda o, m, losses: o.backward(losses(), grad_scaler=scaler),
        lambda o, m, losses: (5 * o.scalarize(losses(), extra_loss=m[0].weight.sum())).backward(),
        lambda o, m, losses: o.step(lambda: (o.zero_grad(), losses())[1]),
        lambda o, m, losses: o.backward(losses),
    ):
        assert_ends_like_loop(extra, steps, "batched")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite(bad: float) -> None:
    def build() -> Built:
        m, x = mlp(), torch.randn(4, 5)

        def losses() -> list[Tensor]:
            z = m(x)
            return [z.sin().sum(), (z * bad).sum(), z.square().sum()]

        return m, losses

    _, surgery = assert_like_loop(build, "batched", steps=2)
    assert surgery.engine == AT_ONCE
    assert surgery.gramian is not None
    assert bool(surgery.gramian[::2, ::2].isfinite().all())


# --- hooks and user code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(5))
def test_hooks_on_tensors_are_applied(place: int) -> None:
    """The last place is where the losses part."""
    for hook in (
        lambda gradient: 2 * gradient,
        lambda gradient: gradient.mul_(2),
        lambda gradient: None,
        lambda gradient: gradient.clamp(-0.5, 0.5),
        lambda gradient: gradient / gradient.norm(),
    ):
        _, surgery = assert_like_loop(hooked(place, hook), "batched", steps=2)
        assert surgery.engine == AT_ONCE


def test_hooks_fire_once_and_where_losses_part_once_more() -> None:
    counts = [0] * 5
    for place in range(5):

        def count(gradient: Tensor, at: int = place) -> None:
            counts[at] += 1

        run(hooked(place, count), "batched", torch.float64, steps=2)
    assert counts == [2, 2, 2, 2, 4]


def test_hooks_on_nodes_modules_and_parameters_are_applied() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        for layer in m.s:
            x = layer(x)
            if x.grad_fn is not None:
                x.grad_fn.register_prehook(lambda outputs: (2 * outputs[0],))
                x.grad_fn.register_hook(lambda inputs, outputs: tuple(None if g is None else 3 * g for g in inputs))
        return 2 * x

    def build() -> Built:
        m = mlp()
        m[0].weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
        m[4].bias.register_hook(lambda gradient: gradient / gradient.norm())
        m[2].register_full_backward_hook(lambda module, inputs, outputs: tuple(2 * one for one in inputs))
        m[3].register_full_backward_pre_hook(lambda module, outputs: tuple(3 * one for one in outputs))
        return over(Model(forward, s=m), torch.randn(7, 5))

    assert_like_loop(build, "batched", steps=2)


def test_hooks_in_parts_that_one_loss_alone_reaches() -> None:
    seen: list[Tensor] = []

    def build() -> Built:
        m, x = branches()
        m[1].weight.register_hook(lambda gradient: 3 * gradient)

        def losses() -> list[Tensor]:
            z = m[0](x)
            y = m[1](z)
            y.register_hook(lambda gradient: seen.append(gradient))
            y.grad_fn.register_prehook(lambda outputs: (outputs[0] / float(outputs[0].norm()),))  # type: ignore[union-attr]
            return scalars(y, m[2](z).cos(), z)

        return m, losses

    _, surgery = assert_like_loop(build, "batched", steps=2)
    assert surgery.engine == AT_ONCE
    assert_same_bits(seen[2:], seen[:2])


def test_custom_functions() -> None:
    """Before the losses part there is a pass for each; behind that they are passed once as it is."""

    def inside() -> Built:
        return over(
            Model(lambda m, x: m.b(Square.apply(m.a(x))), a=nn.Linear(5, 6), b=nn.Linear(6, 4)), torch.ones(7, 5)
        )

    def outside() -> Built:
        m, x = branches()

        def losses() -> list[Tensor]:
            z = m[0](x)
            return scalars(Square.apply(m[1](z)), Square.apply(z), Square.apply(z * m[2](x)))

        return m, losses

    assert assert_like_loop(inside, "batched", steps=2)[1].engine == ONE_BY_ONE
    assert assert_like_loop(outside, "batched", steps=2)[1].engine == AT_ONCE


@pytest.mark.parametrize("random", [False, True])
def test_checkpointed_regions_are_recomputed_once(random: bool) -> None:
    """What is drawn again cannot be batched: then once a loss."""
    calls = []

    def forward(m: Any, x: Tensor) -> Tensor:
        def region(u: Tensor) -> Tensor:
            calls.append(torch.is_grad_enabled())
            return m.b(functional.dropout(m.a(u), 0.5, training=random))  # type: ignore[no-any-return]

        return checkpoint(region, x, use_reentrant=False)  # type: ignore[no-any-return]

    def build() -> Built:
        return over(Model(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 4)), torch.randn(7, 5))

    _, surgery = assert_like_loop(build, "batched", steps=2)
    assert surgery.engine == (ONE_BY_ONE if random else AT_ONCE)
    if not random:
        calls.clear()
        run(build, "batched", torch.float64)
        assert sum(calls) == 2


def test_sparse_gradients() -> None:
    tokens = torch.arange(24).view(3, 8) % 10
    modules: list[Callable[[], nn.Module]] = [
        lambda: nn.EmbeddingBag(10, 5, mode="sum", sparse=True),
        lambda: nn.Embedding(10, 5, sparse=True),
        lambda: Model(lambda m, x: functional.embedding(x, 2 * m.w, sparse=True), w=torch.randn(10, 5)),
    ]
    for make in modules:
        _, surgery = assert_like_loop(lambda own=make: over(own(), tokens), "batched", steps=2)
        assert surgery.engine == ONE_BY_ONE


# --- what cannot be batched --------------------------------------------------------------------------------------


def test_what_cannot_be_batched_is_passed_once_a_loss_from_then_on() -> None:
    calls = []

    def refuse(gradient: Tensor) -> Tensor:
        calls.append(gradient.shape)
        return gradient / float(gradient.norm())  # not to be had while several gradients are passed at once

    _, surgery = assert_like_loop(hooked(1, refuse), "batched")
    assert surgery.engine == NOT_BATCHED
    assert len(calls) == 3 + 1 + 3
    _, surgery = assert_like_loop(hooked(1, refuse), "batched", steps=2)
    assert surgery.engine == ONE_BY_ONE
    assert len(calls) == 7 + 6 + 1 + 6


def test_what_could_be_batched_and_no_longer_can_says_so_once() -> None:
    torch.manual_seed(0)
    hooks = [lambda gradient: None]
    module, losses = hooked(1, lambda gradient: hooks[0](gradient))()
    optimizer = wrap(module, "batched")
    assert optimizer.backward(losses()).engine == AT_ONCE
    optimizer.zero_grad()
    hooks[0] = lambda gradient: gradient * float(gradient.norm())  # type: ignore[assignment, return-value]
    with pytest.raises(RuntimeError, match=r"(?s)all of them at once.*item.*Run the forward pass again"):
        optimizer.backward(losses())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert optimizer.backward(losses()).engine == ONE_BY_ONE


def test_gradients_that_a_loss_does_not_pass_on() -> None:
    """A zero in their place would become NaN below; see also the graphs that are cut off."""
    assert assert_like_loop(cut_off, "batched")[1].engine == NOT_BATCHED

    torch.manual_seed(0)
    module, losses = plain()
    optimizer = wrap(module, "batched")
    assert optimizer.backward(losses()).engine == AT_ONCE
    z = module(torch.randn(7, 5))
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"(?s)at once.*some of the losses do not pass on.*Run the forward pass"):
        optimizer.backward([*scalars(z, z.cos()), Cut.apply(z).sum()])
    assert all(parameter.grad is None for parameter in module.parameters())
    assert optimizer.backward(losses()).engine == ONE_BY_ONE


def test_an_error_in_a_hook_is_the_users() -> None:
    def broken(gradient: Tensor) -> Tensor:
        raise KeyError("the user's own")

    for place in range(5):
        module, losses = hooked(place, broken)()
        with pytest.raises(KeyError, match="the user's own"):
            wrap(module, "batched").backward(losses())
        module, losses = hooked(place, lambda gradient: gradient[:1])()
        with pytest.raises(RuntimeError, match="size|shape"):
            wrap(module, "batched").backward(losses())
        assert all(parameter.grad is None for parameter in module.parameters())


def test_a_graph_that_is_gone_says_so() -> None:
    module, losses = plain()
    optimizer = wrap(module, "batched")
    for _ in range(2):
        found = losses()
        torch.stack(found).sum().backward()
        before = [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]
        with pytest.raises(RuntimeError, match="second time"):
            optimizer.backward(found)
        assert_same_bits([parameter.grad for parameter in module.parameters()], before)
        optimizer.backward(losses())


def test_hooks_of_the_engine_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    descents: list[Descent] = []

    def noted(*arguments: Any, **options: Any) -> Descent:
        descents.append(descend(*arguments, **options))
        return descents[-1]

    monkeypatch.setattr(batched, "descend", noted)
    torch.manual_seed(0)
    module, losses = plain()
    found = losses()
    wrap(module, "batched").backward(found, retain_graph=True)
    (arrived,) = [list(own.values()) for own in descents[0].arrived.values()]
    torch.stack(found).sum().backward()
    (again,) = [list(own.values()) for own in descents[0].arrived.values()]
    assert len(arrived) == 3
    assert all(one is other for one, other in zip(arrived, again, strict=True))


def test_tags_and_frozen_parameters() -> None:
    def build() -> Built:
        module, losses = parts_of_the_trunk()
        gs.tag_shared(module[0])
        module[0].bias.requires_grad_(False)
        module[1].weight.requires_grad_(False)
        return module, losses

    assert_like_loop(build, "batched", steps=2)
