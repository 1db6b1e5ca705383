"""Hooks on surgeries, and looks at gradients: they see what is there, and change nothing."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.looking import Look
from gradsurgery.scope import Scope

METHODS: dict[str, Callable[[], Any]] = {
    "gramian": gs.UPGrad,
    "random": gs.PCGrad,
    "rows": gs.GradDrop,
    "remembering": gs.aggregators.MConFIG,
    "scalarizer": gs.scalarizers.Sum,
    "learning scalarizer": gs.scalarizers.UncertaintyWeighting,
}


class Model(nn.Module):
    """A trunk of two layers with dropout, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 4))
        self.heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        z = self.trunk(batch)
        return {
            name: (head(z) * 10**k - k).square().mean()
            for k, (name, head) in enumerate(zip("ab", self.heads, strict=True))
        }


def build(method: Any, scope: Scope = "all") -> tuple[Model, gs.MultiObjectiveOptimizer]:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.01)
    return model, gs.MultiObjectiveOptimizer(optimizer, method, scope=scope)


def train(model: Model, optimizer: gs.MultiObjectiveOptimizer, steps: int = 4) -> list[gs.Surgery]:
    torch.manual_seed(1)
    surgeries = []
    for _ in range(steps):
        optimizer.zero_grad()
        surgeries.append(optimizer.backward(model.losses(torch.randn(6, 3))))
        optimizer.step()
    return surgeries


def shared_rows(model: Model, batch: Tensor, seed: int) -> dict[str, Tensor]:
    """Per-loss gradients of the trunk by a plain loop."""
    torch.manual_seed(seed)
    losses = model.losses(batch)
    named = dict(model.trunk.named_parameters(prefix="trunk"))
    rows = [torch.autograd.grad(loss, list(named.values()), retain_graph=True) for loss in losses.values()]
    return {name: torch.stack([row[place] for row in rows]) for place, name in enumerate(named)}


@pytest.mark.parametrize("scope", ["all", "module", "tensor"])
@pytest.mark.parametrize("kind", METHODS)
def test_hooks_change_no_number(kind: str, scope: Scope) -> None:
    model, optimizer = build(METHODS[kind]())
    plain = train(model, optimizer)
    watched, other = build(METHODS[kind]())
    seen: list[gs.Surgery] = []
    other.register_surgery_hook(seen.append, every=2, scope=scope)
    surgeries = train(watched, other)
    for one, two in zip(model.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, two)
    for before, after in zip(plain, surgeries, strict=True):
        assert before.weights is None or torch.equal(before.weights, after.weights)  # type: ignore[arg-type]
    assert optimizer.state_dict().keys() == other.state_dict().keys()
    assert len(seen) == 2
    for surgery in seen:
        assert surgery.gramian is not None
        assert surgery.gramian.shape[-2:] == (2, 2)
        assert len(surgery.groups) == {"all": 0, "module": 2, "tensor": 4}[scope]


@pytest.mark.parametrize("kind", METHODS)
def test_the_gramian_is_that_of_the_rows_in_every_scope(kind: str) -> None:
    model, optimizer = build(METHODS[kind]())
    seen: dict[Scope, gs.Surgery] = {}
    scopes: tuple[Scope, ...] = ("all", "module", "tensor")
    for scope in scopes:
        optimizer.register_surgery_hook(lambda surgery, scope=scope: seen.__setitem__(scope, surgery), scope=scope)
    batch = torch.randn(6, 3)
    rows = shared_rows(copy.deepcopy(model), batch, seed=3)
    torch.manual_seed(3)
    optimizer.backward(model.losses(batch))
    products = {name: own.flatten(1).double() @ own.flatten(1).double().T for name, own in rows.items()}
    by_module = {
        module: sum(own for name, own in products.items() if name.startswith(module))
        for module in ("trunk.0", "trunk.3")
    }
    expected = {
        "all": torch.stack(list(products.values())).sum(0),
        "module": torch.stack([torch.as_tensor(own) for own in by_module.values()]),
        "tensor": torch.stack(list(products.values())),
    }
    for scope in scopes:
        assert seen[scope].gramian is not None
        torch.testing.assert_close(seen[scope].gramian, expected[scope], rtol=1e-5, atol=1e-9)
    assert seen["module"].groups == ("trunk.0", "trunk.3")
    assert seen["tensor"].groups == tuple(products)


def test_without_a_scope_the_surgery_itself_is_shown() -> None:
    model, optimizer = build(gs.MGDA(), "module")
    seen: list[gs.Surgery] = []
    optimizer.register_surgery_hook(seen.append)
    assert train(model, optimizer) == seen
    assert optimizer.last_surgery is seen[-1]


def test_a_hook_sees_the_first_surgery_then_every_so_many_until_it_is_removed() -> None:
    model, optimizer = build(gs.Sum())
    train(model, optimizer, 2)
    seen: list[gs.Surgery] = []
    handle = optimizer.register_surgery_hook(seen.append, every=3)
    surgeries = train(model, optimizer, 7)
    assert seen == [surgeries[0], surgeries[3], surgeries[6]]
    handle.remove()
    train(model, optimizer, 4)
    assert len(seen) == 3


def test_a_failed_surgery_is_not_counted() -> None:
    model, optimizer = build(gs.Sum())
    seen: list[gs.Surgery] = []
    optimizer.register_surgery_hook(seen.append, every=2)
    with pytest.raises(ValueError, match="scalar"):
        optimizer.backward({"a": torch.ones(2, 2, requires_grad=True), "b": torch.ones(2, requires_grad=True)})
    train(model, optimizer, 1)
    assert len(seen) == 1


def test_hooks_are_not_copied() -> None:
    model, optimizer = build(gs.Sum())
    optimizer.register_surgery_hook(lambda surgery: pytest.fail("called"))
    for twin in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        train(*twin, steps=1)
    block = gs.ImpartialityBlock(2, gs.Sum())
    block.register_surgery_hook(lambda surgery: pytest.fail("called"))
    for twin_block in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        z = torch.ones(2, requires_grad=True)
        sum(view.sum() for view in twin_block(z)).backward()


@pytest.mark.parametrize("what", ["hook", "every", "scope"])
def test_wrong_hooks_are_refused(what: Literal["hook", "every", "scope"]) -> None:
    _, optimizer = build(gs.Sum())
    arguments: dict[str, Any] = {"hook": print, "every": 1, "scope": None}
    arguments[what] = {"hook": 3, "every": 0, "scope": "layer"}[what]
    with pytest.raises((TypeError, ValueError), match=f"`{what}` must be"):
        optimizer.register_surgery_hook(**arguments)


def test_a_hook_that_raises_ends_backward_after_the_gradients_were_written() -> None:
    model, optimizer = build(gs.Sum())
    optimizer.register_surgery_hook(lambda surgery: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.backward(model.losses(torch.randn(6, 3)))
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("method", [gs.UPGrad, gs.GradDrop])
def test_a_block_shows_what_it_did(method: Callable[[], gs.Aggregator]) -> None:
    rows = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
    results = []
    for hooked in (False, True):
        block = gs.ImpartialityBlock(2, method())
        seen: list[gs.Surgery] = []
        if hooked:
            block.register_surgery_hook(seen.append, every=2)
        z = torch.ones(2, requires_grad=True)
        for _ in range(3):
            sum((view @ row for view, row in zip(block(z), rows, strict=True)), torch.zeros(())).backward()
        results.append(z.grad)
    assert torch.equal(results[0], results[1])  # type: ignore[arg-type]
    assert len(seen) == 2
    assert seen[0].gramian is not None
    torch.testing.assert_close(seen[0].gramian, (rows @ rows.T).double())
    assert seen[0].names == ("0", "1")
    assert (seen[0].weights is None) == (method is gs.GradDrop)


@pytest.mark.parametrize("scope", ["all", "module"])
def test_a_look_changes_nothing_and_leaves_the_graph(scope: Scope) -> None:
    torch.manual_seed(0)
    model = Model()
    batch = torch.randn(6, 3)
    rows = shared_rows(copy.deepcopy(model), batch, seed=5)
    torch.manual_seed(5)
    losses = model.losses(batch)
    state = torch.get_rng_state()
    surgery = Look(model).gramian(losses, scope=scope)
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    total = sum(own.flatten(1).double() @ own.flatten(1).double().T for own in rows.values())
    assert surgery.gramian is not None
    found = surgery.gramian if scope == "all" else surgery.gramian.sum(0)
    torch.testing.assert_close(found, total, rtol=1e-5, atol=1e-9)
    sum(losses.values()).backward()


def test_a_look_hands_out_rows_by_name() -> None:
    torch.manual_seed(0)
    model = Model()
    batch = torch.randn(6, 3)
    expected = shared_rows(copy.deepcopy(model), batch, seed=5)
    torch.manual_seed(5)
    look = Look(model)
    surgery, rows = look.rows(model.losses(batch))
    assert surgery.names == ("a", "b")
    assert rows.keys() == expected.keys()
    for name, own in rows.items():
        torch.testing.assert_close(own, expected[name])
    assert look.groups(list(rows), "module") == ([0, 0, 1, 1], ("trunk.0", "trunk.3"))


def test_a_look_respects_what_is_declared_and_refuses_what_is_none() -> None:
    model = Model()
    _, rows = Look(model, shared=model.trunk[3]).rows(model.losses(torch.randn(6, 3)))
    assert list(rows) == ["trunk.3.weight", "trunk.3.bias"]
    with pytest.raises(ValueError, match="^diagnose: `shared` must name at least one module"):
        Look(model, shared=[], caller="diagnose")
    with pytest.raises(ValueError, match="must have parameters that require a gradient"):
        Look(model.requires_grad_(False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules say that they are new
        lazy = nn.LazyLinear(2)
    with pytest.raises(ValueError, match="'weight' of a lazy module"):
        Look(lazy)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module"):
        Look(model.parameters())  # type: ignore[arg-type]


def _several_ranks(rank: int, kind: str, hooked: int) -> list[Tensor | str]:
    model, optimizer = build(METHODS[kind]())
    model.eval()
    seen: list[gs.Surgery] = []
    if rank < hooked:
        optimizer.register_surgery_hook(seen.append, every=2, scope="module")
    torch.manual_seed(7)
    try:
        for _ in range(3):
            batch = torch.randn(8, 3).chunk(2)[rank]
            optimizer.zero_grad()
            optimizer.backward(model.losses(batch))
            optimizer.step()
    except RuntimeError as error:
        return [str(error)]
    return [surgery.gramian for surgery in seen if surgery.gramian is not None] + list(model.parameters())


@pytest.mark.parametrize("kind", ["gramian", "rows", "scalarizer"])
def test_on_two_ranks_hooks_see_the_whole_batch(crew: Any, kind: str) -> None:
    first, second = crew(2)(_several_ranks, kind, 2)
    assert len(first) == 2 + 8
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two)
    model, optimizer = build(METHODS[kind]())
    model.eval()
    torch.manual_seed(7)
    seen: list[gs.Surgery] = []
    optimizer.register_surgery_hook(seen.append, every=2, scope="module")
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.backward(model.losses(torch.randn(8, 3)))
        optimizer.step()
    for found, expected in zip(first, [*(surgery.gramian for surgery in seen), *model.parameters()], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_ranks_that_look_differently_fail_together(crew: Any) -> None:
    (first,), (second,) = crew(2)(_several_ranks, "gramian", 1)
    assert "`hooks`" in first
    assert "`hooks`" in second
