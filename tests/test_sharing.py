"""What is shared: tags, ``shared=`` and discovery, and what the rest receives."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery import sharing


class TwoHeads(nn.Module):
    """A trunk, two heads, a connection around the trunk and a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.skip = nn.Linear(3, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.trunk(x)
        return [self.heads[0](z + self.skip(x)), self.heads[1](z)]


def losses_of(model: TwoHeads, x: Tensor) -> list[Tensor]:
    first, second = model(x)
    return [first.square().mean(), (second - 3).square().mean() * 50]


def wrapped(
    model: nn.Module, aggregator: gs.Aggregator | None = None, **options: object
) -> gs.MultiObjectiveOptimizer:
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    return gs.MultiObjectiveOptimizer(plain, aggregator or gs.MGDA(), **options)


def plain_gradients(model: TwoHeads, x: Tensor) -> dict[str, Tensor | None]:
    twin = copy.deepcopy(model)
    sum(losses_of(twin, x)).backward()
    return {name: parameter.grad for name, parameter in twin.named_parameters()}


X = torch.linspace(-1, 1, 15).view(5, 3)


def names(model: nn.Module) -> list[str]:
    ids = {id(parameter) for parameter in gs.shared_parameters(model)}
    return [name for name, parameter in model.named_parameters() if id(parameter) in ids]


# --- tags ----------------------------------------------------------------------------------------------------


def test_tags_on_modules_and_parameters() -> None:
    model = TwoHeads()
    assert gs.shared_parameters(model) == []
    gs.tag_shared(model.trunk, model.skip.bias)
    assert names(model) == ["trunk.0.weight", "trunk.0.bias", "skip.bias"]
    gs.tag_shared(model.trunk)  # again: no effect
    gs.untag_shared(model.trunk, model.skip.bias, model.unused)
    assert names(model) == []


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_module_tag_survives_copies(how: str) -> None:
    model = TwoHeads()
    gs.tag_shared(model.trunk)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        stream = io.BytesIO()
        torch.save(model, stream)
        stream.seek(0)
        twin = torch.load(stream, weights_only=False)
    assert names(twin) == ["trunk.0.weight", "trunk.0.bias"]
    assert not {id(p) for p in gs.shared_parameters(twin)} & {id(p) for p in gs.shared_parameters(model)}
    optimizer = wrapped(twin)
    optimizer.backward(losses_of(twin, X))
    assert torch.equal(twin.skip.weight.grad, plain_gradients(model, X)["skip.weight"])
    gs.untag_shared(twin.trunk)
    assert names(model) == ["trunk.0.weight", "trunk.0.bias"]


def test_a_module_tag_covers_replaced_parameters() -> None:
    model = TwoHeads()
    gs.tag_shared(model.trunk)
    old = model.trunk[0].weight
    model.trunk[0].weight = nn.Parameter(old.detach() * 2)
    optimizer = wrapped(model)
    surgery = optimizer.backward(losses_of(model, X))
    assert surgery.gramian is not None
    assert old.grad is None
    assert not torch.equal(model.trunk[0].weight.grad, plain_gradients(model, X)["trunk.0.weight"])


def test_tags_do_not_keep_models_alive() -> None:
    """Not even until the garbage collector comes by: on a GPU their memory is needed at once."""
    model = TwoHeads()
    gs.tag_shared(model.trunk, model.skip.bias)
    watch = weakref.ref(model.trunk)
    counts = len(sharing._shared_modules), len(sharing._shared_parameters)
    gc.disable()
    try:
        del model
        assert watch() is None
        assert (len(sharing._shared_modules), len(sharing._shared_parameters)) == (counts[0] - 1, counts[1] - 1)
    finally:
        gc.enable()


def test_tags_of_another_model_do_not_matter() -> None:
    other, model = TwoHeads(), TwoHeads()
    gs.tag_shared(other.trunk)
    optimizer = wrapped(model)
    assert optimizer.backward(losses_of(model, X)).gramian is not None  # discovered
    assert torch.equal(model.heads[0].weight.grad, plain_gradients(model, X)["heads.0.weight"])


def test_tagging_something_else_raises() -> None:
    model = TwoHeads()
    with pytest.raises(
        TypeError, match="tag_shared: `modules_or_parameters` must be modules or parameters, got list"
    ):
        gs.tag_shared(list(model.trunk.parameters()))
    with pytest.raises(ValueError, match="must be parameters .* use ImpartialityBlock"):
        gs.tag_shared(model.trunk(X))
    with pytest.raises(ValueError, match="must name at least one"):
        gs.tag_shared()
    assert names(model) == []


# --- which are shared ------------------------------------------------------------------------------------------


def expected_direction(model: TwoHeads, shared: list[str]) -> dict[str, Tensor]:
    rows = []
    for k in range(2):
        twin = copy.deepcopy(model)
        losses_of(twin, X)[k].backward()
        found = dict(twin.named_parameters())
        parts = [torch.zeros_like(found[n]) if found[n].grad is None else found[n].grad for n in shared]
        rows.append(torch.cat([part.flatten() for part in parts]))
    direction = gs.MGDA()(torch.stack(rows))
    sizes = [dict(model.named_parameters())[name].shape for name in shared]
    pieces = direction.split([size.numel() for size in sizes])
    return {name: piece.view(size) for name, piece, size in zip(shared, pieces, sizes, strict=True)}


@pytest.mark.parametrize("declare", ["discovery", "tag", "module", "parameters"])
def test_shared_gets_the_direction_and_the_rest_the_sum(declare: str) -> None:
    model = TwoHeads()
    shared = ["trunk.0.weight", "trunk.0.bias"]
    options: dict[str, object] = {}
    if declare == "tag":
        gs.tag_shared(model.trunk)
    elif declare == "module":
        options["shared"] = model.trunk
    elif declare == "parameters":
        options["shared"] = model.trunk.parameters()
    optimizer = wrapped(model, **options)
    optimizer.backward(losses_of(model, X))
    expected = {**plain_gradients(model, X), **expected_direction(model, shared)}
    for name, parameter in model.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_explicit_goes_before_tags_and_tags_before_discovery() -> None:
    model = TwoHeads()
    gs.tag_shared(model.skip)
    optimizer = wrapped(model)
    surgery = optimizer.backward(losses_of(model, X))
    assert surgery.gramian is not None
    assert surgery.gramian[1, 1] == 0  # the second loss does not reach the skip connection
    torch.testing.assert_close(model.trunk[0].weight.grad, plain_gradients(model, X)["trunk.0.weight"])
    model.zero_grad()
    wrapped(model, shared=model.trunk).backward(losses_of(model, X))
    assert not torch.allclose(model.trunk[0].weight.grad, plain_gradients(model, X)["trunk.0.weight"])


def test_discovery_remembers() -> None:
    """Once found shared, a parameter stays so when only one loss is left."""
    model = TwoHeads()
    optimizer = wrapped(model, gs.GradNorm(alpha=0.0))
    first = optimizer.backward(losses_of(model, X)[:1])
    assert first.gramian is None
    optimizer.backward(losses_of(model, X))
    again = optimizer.backward([losses_of(model, X)[0], None])
    assert again.gramian is not None
    assert again.gramian.shape == (1, 1)
    twin_model, twin = copy.deepcopy((model, optimizer))
    assert twin.backward([losses_of(twin_model, X)[0], None]).gramian is not None


def test_wrong_shared_warns_once() -> None:
    model = TwoHeads()
    optimizer = wrapped(model, shared=copy.deepcopy(model.trunk))
    with pytest.warns(UserWarning, match="no loss reaches any of the parameters given as `shared`"):
        optimizer.backward(losses_of(model, X))
    optimizer.backward(losses_of(model, X))


def test_frozen_trunk_is_no_mistake() -> None:
    model = TwoHeads()
    model.trunk.requires_grad_(False)
    surgery = wrapped(model, shared=model.trunk).backward(losses_of(model, X))
    assert surgery.gramian is None
    assert surgery.weights is not None
    assert surgery.weights.tolist() == [1.0, 1.0]
    assert model.trunk[0].weight.grad is None
    torch.testing.assert_close(model.heads[0].weight.grad, plain_gradients(model, X)["heads.0.weight"])


def test_partly_frozen_trunk() -> None:
    model = TwoHeads()
    model.trunk[0].bias.requires_grad_(False)
    wrapped(model, shared=model.trunk).backward(losses_of(model, X))
    assert model.trunk[0].bias.grad is None
    torch.testing.assert_close(
        model.trunk[0].weight.grad, expected_direction(model, ["trunk.0.weight"])["trunk.0.weight"]
    )


# --- what a step may contain -----------------------------------------------------------------------------------


def test_unreached_parameters_keep_their_gradient() -> None:
    model = TwoHeads()
    model.unused.weight.grad = torch.full((2, 2), 7.0)
    wrapped(model).backward(losses_of(model, X))
    assert torch.equal(model.unused.weight.grad, torch.full((2, 2), 7.0))
    assert model.unused.bias.grad is None


def test_extra_loss_reaches_shared_and_specific() -> None:
    model = TwoHeads()
    wrapped(model).backward(losses_of(model, X))
    before = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    penalty = model.trunk[0].weight.square().sum() + model.heads[0].weight.sum() + model.unused.bias.sum()
    surgery = wrapped(model).backward(losses_of(model, X), extra_loss=penalty)
    assert len(surgery.names) == 2
    torch.testing.assert_close(
        model.trunk[0].weight.grad, before["trunk.0.weight"] + 2 * model.trunk[0].weight.detach()
    )
    torch.testing.assert_close(model.heads[0].weight.grad, before["heads.0.weight"] + 1)
    torch.testing.assert_close(model.unused.bias.grad, torch.ones(2))
    torch.testing.assert_close(model.heads[1].weight.grad, before["heads.1.weight"])


@pytest.mark.parametrize("declare", [False, True])
def test_parameters_outside_the_optimizer_get_gradients_too(declare: bool) -> None:
    """Found by themselves, only parameters of this optimizer are shared; another's get the plain sum."""
    model = TwoHeads()
    plain = torch.optim.SGD(model.heads.parameters(), lr=0.1)
    optimizer = gs.MultiObjectiveOptimizer(plain, gs.MGDA(), shared=model.trunk if declare else None)
    surgery = optimizer.backward(losses_of(model, X))
    expected = expected_direction(model, ["trunk.0.weight", "trunk.0.bias"]) if declare else plain_gradients(model, X)
    torch.testing.assert_close(model.trunk[0].weight.grad, expected["trunk.0.weight"])
    assert (surgery.gramian is not None) == declare


def test_the_discriminator_does_not_count_in_the_generators_surgery() -> None:
    torch.manual_seed(0)
    generator, discriminator = nn.Linear(3, 4), nn.Linear(4, 2)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(generator.parameters(), lr=0.1), gs.MGDA())
    outputs = discriminator(generator(X))
    losses = [outputs[:, 0].square().mean(), (outputs[:, 1] - 1).square().mean()]
    rows = [
        torch.cat([g.double().flatten() for g in torch.autograd.grad(x, generator.parameters(), retain_graph=True)])
        for x in losses
    ]
    surgery = optimizer.backward(losses)
    torch.testing.assert_close(surgery.gramian, torch.stack(rows) @ torch.stack(rows).T)
    assert discriminator.weight.grad is not None


def test_absent_and_constant_losses() -> None:
    """None lowers K; a loss without a gradient is a row of zeros, which counts in an average."""
    model = TwoHeads()
    optimizer = wrapped(model, gs.Mean(), shared=model.trunk)
    surgery = optimizer.backward({"a": losses_of(model, X)[0], "b": None})
    assert surgery.names == ("a",)
    assert surgery.weights is not None
    assert surgery.weights.tolist() == [1.0]
    whole = model.trunk[0].weight.grad.clone()
    model.zero_grad()
    surgery = optimizer.backward({"a": losses_of(model, X)[0], "b": torch.tensor(5.0)})
    assert surgery.losses.tolist()[1] == 5.0
    torch.testing.assert_close(model.trunk[0].weight.grad, whole / 2)


def test_separate_forward_passes() -> None:
    model, other = TwoHeads(), X.flip(0)
    wrapped(model, gs.Sum()).backward([losses_of(model, X)[0], losses_of(model, other)[1]])
    twin = copy.deepcopy(model)
    twin.zero_grad()
    (losses_of(twin, X)[0] + losses_of(twin, other)[1]).backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_a_loss_that_is_a_parameter() -> None:
    scale = nn.Parameter(torch.tensor(2.0))
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD([scale], lr=0.1), gs.Sum())
    optimizer.backward([scale, scale * 3])
    assert scale.grad == 4.0


class Embedded(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 3, sparse=sparse)
        self.heads = nn.ModuleList(nn.Embedding(20, 2, sparse=sparse) for _ in range(2))

    def losses(self, dense_too: bool = False) -> list[Tensor]:
        first, second = torch.tensor([1, 4, 4, 7]), torch.tensor([4, 9])
        losses = [
            self.table(first).square().sum() + self.heads[0](first).sum(),
            (self.table(second) - 1).square().sum() * 9 + self.heads[1](second).square().sum(),
        ]
        return [*losses, self.table.weight.square().sum()] if dense_too else losses


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sparse_gradients_stay_sparse(accumulate: int) -> None:
    sparse, dense = Embedded(sparse=True), Embedded(sparse=False)
    for model in (sparse, dense):
        for _ in range(accumulate):
            wrapped(model, gs.MGDA()).backward(model.losses())
    for (name, a), (_, b) in zip(sparse.named_parameters(), dense.named_parameters(), strict=True):
        assert a.grad.is_sparse, name
        torch.testing.assert_close(a.grad.to_dense(), b.grad, msg=name)
    assert sparse.table.weight.grad.coalesce().indices().tolist() == [[1, 4, 7, 9]]
    plain = torch.optim.SparseAdam(list(sparse.parameters()), lr=0.1)
    gs.MultiObjectiveOptimizer(plain, gs.MGDA()).step()


def test_sparse_and_dense_gradients_of_one_parameter() -> None:
    sparse, dense = Embedded(sparse=True), Embedded(sparse=False)
    for model in (sparse, dense):
        wrapped(model, gs.MGDA()).backward(model.losses(dense_too=True))
    for (name, a), (_, b) in zip(sparse.named_parameters(), dense.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad.to_dense(), b.grad, msg=name)


def test_extra_loss_on_a_sparse_parameter() -> None:
    sparse, dense = Embedded(sparse=True), Embedded(sparse=False)
    for model in (sparse, dense):
        wrapped(model, gs.MGDA()).backward(model.losses(), extra_loss=model.table.weight.sum())
    torch.testing.assert_close(sparse.table.weight.grad.to_dense(), dense.table.weight.grad)


def test_no_gradient_is_added_to_twice_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused kernel would race with itself: accumulation, and an extra loss on the shared parameters."""
    calls = []
    plain = torch._foreach_add_

    def watched(targets: list[Tensor], sources: list[Tensor]) -> None:
        calls.append([target.data_ptr() for target in targets])
        plain(targets, sources)

    monkeypatch.setattr(torch, "_foreach_add_", watched)
    model = TwoHeads()
    optimizer = wrapped(model, gs.Sum())
    for _ in range(2):
        optimizer.backward(losses_of(model, X), extra_loss=model.trunk[0].weight.sum())
    assert len(calls) == 1
    assert len(set(calls[0])) == len(calls[0])
    expected = plain_gradients(model, X)["trunk.0.weight"]
    torch.testing.assert_close(model.trunk[0].weight.grad, 2 * (expected + 1))


def test_parameters_of_several_dtypes() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3).double()
    both = [*first.parameters(), *second.parameters()]

    def losses() -> list[Tensor]:
        z = second(first(X).double())
        return [z.sum(), z.square().sum()]

    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(both, lr=0.1), gs.MGDA())
    optimizer.backward(losses())
    rows = []
    for k in range(2):
        rows.append(torch.cat([g.double().flatten() for g in torch.autograd.grad(losses()[k], both)]))
    expected = gs.MGDA()(torch.stack(rows))
    actual = torch.cat([parameter.grad.double().flatten() for parameter in both])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_gradients_do_not_share_memory() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD([a, b], lr=0.1), gs.Sum())
    optimizer.backward([(a + b).sum()])
    a.grad.mul_(5)
    assert b.grad.tolist() == [1.0, 1.0, 1.0]
    optimizer.zero_grad()
    optimizer.backward([(a + b).sum(), (a * b).sum()])
    assert a.grad.untyped_storage().data_ptr() != b.grad.untyped_storage().data_ptr()
    a.grad.add_(a, alpha=0.1)  # as weight decay by hand, with autograd on
    assert b.grad.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("engine", ["loop", "func"])
@pytest.mark.parametrize("method", [gs.Sum, gs.GradDrop])
def test_gradients_lie_in_memory_like_their_parameters(method: type[gs.Aggregator], engine: str) -> None:
    """Fused optimizers walk raw memory."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last)
    trunk.register_parameter("scale", nn.Parameter(torch.randn(5, 6).t()))
    x = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    plain = torch.optim.Adam(trunk.parameters(), lr=0.1, fused=True)
    optimizer = gs.MultiObjectiveOptimizer(plain, method(), shared=trunk, engine=engine)

    def losses() -> list[Tensor]:
        z = trunk(x)
        return [z.square().mean() + trunk.scale.square().sum(), (z - 1).exp().mean() + trunk.scale[0].sum()]

    surgery = optimizer.backward(losses)
    assert len(surgery.names) == 2
    for parameter in trunk.parameters():
        assert parameter.grad.stride() == parameter.stride()
    by_hand = torch.autograd.grad(torch.stack(losses()).sum(), list(trunk.parameters()))
    if method is gs.Sum:
        for parameter, gradient in zip(trunk.parameters(), by_hand, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


# --- scope -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["module", "tensor"])
def test_scope_is_one_surgery_a_group(scope: str) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def losses() -> list[Tensor]:
        z = trunk(X)
        return [z[:, 0].square().mean(), (z.sum(1) - 3).square().mean() * 5]

    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.SGD(trunk.parameters(), lr=0.1), gs.MGDA(), shared=trunk, scope=scope
    )
    surgery = optimizer.backward(losses())
    groups = [[layer.weight, layer.bias] for layer in (trunk[0], trunk[2])]
    if scope == "tensor":
        groups = [[parameter] for group in groups for parameter in group]
    assert surgery.gramian is not None
    assert surgery.weights is not None
    assert surgery.gramian.shape == (len(groups), 2, 2)
    assert len(surgery.groups) == len(groups)
    assert surgery.groups[0] == ("Sequential.0" if scope == "module" else "Sequential.0.weight")
    for group, weights in zip(groups, surgery.weights, strict=True):
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(losses()[k], group)]) for k in range(2)]
        jacobian = torch.stack(rows)
        torch.testing.assert_close(weights, gs.MGDA().solve(jacobian.double() @ jacobian.double().T))
        actual = torch.cat([parameter.grad.flatten() for parameter in group])
        torch.testing.assert_close(actual, gs.MGDA()(jacobian))


def test_scope_module_needs_to_know_the_modules() -> None:
    model = TwoHeads()
    with pytest.raises(ValueError, match="`scope` must be 'all' or 'tensor' unless the shared modules are known"):
        wrapped(model, scope="module").backward(losses_of(model, X))
    assert all(parameter.grad is None for parameter in model.parameters())
    named = torch.optim.SGD(model.named_parameters(), lr=0.1)
    surgery = gs.MultiObjectiveOptimizer(named, gs.MGDA(), scope="module").backward(losses_of(model, X))
    assert surgery.groups == ("trunk.0",)


def test_scope_with_a_method_that_needs_the_jacobian() -> None:
    model = TwoHeads()
    surgery = wrapped(model, gs.GradDrop(), scope="tensor").backward(losses_of(model, X))
    assert surgery.weights is None
    assert surgery.gramian is None
    assert len(surgery.groups) == 2


def test_groups_keep_the_order_of_the_optimizer() -> None:
    """Whichever loss reaches them first: a state kept for each group must stay with it."""
    layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
    plain = torch.optim.SGD(layers.parameters(), lr=0.1)
    optimizer = gs.MultiObjectiveOptimizer(plain, gs.GradNorm(alpha=0.0), shared=list(layers), scope="module")
    x = torch.ones(2, 3)
    first = optimizer.backward({"a": layers[1](x).sum(), "b": layers[1](layers[0](x)).square().sum()})
    again = optimizer.backward({"b": layers[1](layers[0](x)).square().sum(), "a": layers[1](x).sum()})
    assert first.groups == again.groups == ("Linear[0]", "Linear[1]")
    with pytest.raises(ValueError, match="`scope` must be 'all' for a method with a state where the groups change"):
        optimizer.backward({"a": layers[1](x).sum(), "b": layers[1](x).square().sum()})


def test_scope_and_a_state_over_the_jacobian() -> None:
    model = TwoHeads()
    method = gs.Chain(gs.GradNorm(alpha=0.0), gs.GradDrop())
    with pytest.raises(ValueError, match="`scope` must be 'all' for a method over the Jacobian that has a state"):
        wrapped(model, method, scope="tensor").backward(losses_of(model, X))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scope_labels_do_not_depend_on_other_models() -> None:
    model = TwoHeads()
    gs.tag_shared(model.trunk)
    alone = wrapped(model, scope="module").backward(losses_of(model, X)).groups
    others = [copy.deepcopy(model) for _ in range(3)]
    assert wrapped(model, scope="module").backward(losses_of(model, X)).groups == alone
    assert len(others) == 3


def test_losses_are_numbered_where_they_stand() -> None:
    """A loss that is absent at first has its number all the same."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.SGD([weight], lr=0.1), gs.GradDrop(leak=[0.0, 1.0]), shared=weight
    )
    for losses in ([None, (-2 * weight).sum()], [(3 * weight).sum(), (-2 * weight).sum()]):
        optimizer.zero_grad()
        optimizer.backward(losses)
    # The second loss leaks whole; the first is let through where its sign is drawn, which is all or nothing.
    assert all(value in (-2.0, 1.0) for value in weight.grad.tolist())


def test_tensors_keep_their_state_whichever_are_reached() -> None:
    tensors = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    plain = torch.optim.SGD(tensors, lr=0.1)
    optimizer = gs.MultiObjectiveOptimizer(plain, gs.GradNorm(alpha=0.0), shared=tensors, scope="tensor")

    def losses(*chosen: int) -> list[Tensor]:
        return [(tensors[i] * k).sum() + (tensors[j] * k).sum() for k in (1.0, 5.0) for i, j in [chosen]]

    assert optimizer.backward(losses(0, 1)).groups == ("tensor 0", "tensor 1")
    for target in (optimizer, copy.deepcopy((tensors, optimizer))[1]):
        with pytest.raises(
            ValueError, match=r"GradNorm over \['tensor 1', 'tensor 2'\] after \['tensor 0', 'tensor 1'\]"
        ):
            target._run.perform(target._request(_of(target, losses(1, 2), tensors)))
    resumed = gs.MultiObjectiveOptimizer(plain, gs.GradNorm(alpha=0.0), shared=tensors, scope="tensor")
    resumed.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="the groups change from step to step"):
        resumed.backward(losses(1, 2))
    resumed.backward(losses(0, 1))


def _of(optimizer: gs.MultiObjectiveOptimizer, losses: list[Tensor], tensors: list[nn.Parameter]) -> list[Tensor]:
    """The same losses over the optimizer's own parameters."""
    own = optimizer.param_groups[0]["params"]
    if own[0] is tensors[0]:
        return losses
    return [((own[1] + own[2]) * k).sum() for k in (1.0, 5.0)]


def test_tags_on_another_optimizers_parameters_are_pointed_out() -> None:
    model = TwoHeads()
    gs.tag_shared(model.trunk)
    plain = torch.optim.SGD(model.heads.parameters(), lr=0.1)
    optimizer = gs.MultiObjectiveOptimizer(plain, gs.MGDA())
    with pytest.warns(UserWarning, match="tagged as shared of which this optimizer holds none"):
        optimizer.backward(losses_of(model, X))
    optimizer.backward(losses_of(model, X))  # once
    torch.testing.assert_close(model.trunk[0].weight.grad / 2, plain_gradients(model, X)["trunk.0.weight"])


def test_shallow_copies_of_tagged_modules_can_be_pickled() -> None:
    module = nn.Linear(2, 2)
    gs.tag_shared(module)
    shallow = copy.copy(module)
    del module
    twin = pickle.loads(pickle.dumps(shallow))
    assert torch.equal(twin.weight, shallow.weight)


def test_heads_stay_task_specific_when_untagged() -> None:
    heads = gs.FusedHeads(4, [1, 2])
    gs.untag_shared(heads)
    twin = copy.deepcopy(heads)
    optimizer = wrapped(twin)
    first, second = twin(torch.ones(3, 4))
    assert optimizer.backward([first.sum(), second.sum()]).gramian is None


def test_gradients_that_cannot_be_written_leave_everything() -> None:
    model = TwoHeads()
    optimizer = wrapped(model, gs.GradNorm(alpha=0.0))
    model.trunk[0].bias.grad = torch.zeros(1).expand(4)
    before = optimizer.state_dict()["gradsurgery"]["aggregator"]
    with pytest.raises(RuntimeError, match="single memory location|more than one element"):
        optimizer.backward(losses_of(model, X))
    assert model.heads[0].weight.grad is None
    assert optimizer.state_dict()["gradsurgery"]["aggregator"] == before == {}


def test_sparse_gradients_of_another_form_are_refused_by_name() -> None:
    weight = nn.Parameter(torch.eye(3).to_sparse())
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD([weight], lr=0.1), gs.Sum())
    with pytest.raises(
        RuntimeError, match="sparse gradients over whole rows.* got 2 sparse dimensions for a parameter"
    ):
        optimizer.backward([torch.sparse.mm(weight, torch.ones(3, 1)).sum() * k for k in (1.0, 2.0)])
