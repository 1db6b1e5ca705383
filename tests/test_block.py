"""Surgery inside the network: the block, and the heads that evaluate in one go behind it."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from support import DIFFICULT, assert_near, assert_same_bits
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery import aggregators
from gradsurgery.aggregators import CONTRACTS, Aggregator

CONFLICT = DIFFICULT["two in conflict"]


class Model(nn.Module):
    """A trunk, a block, and one head a branch."""

    def __init__(self, aggregator: Aggregator, *, branches: int = 3, rescale: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
        self.block = gs.ImpartialityBlock(branches, aggregator, rescale=rescale)
        self.heads = nn.ModuleList(nn.Linear(5, 2) for _ in range(branches)).double()

    def forward(self, x: Tensor) -> list[Tensor]:
        views = self.block(self.trunk(x))
        pairs = zip(self.heads, views, strict=True)
        return [10.0**k * (head(view) - k).square().mean() for k, (head, view) in enumerate(pairs)]


def inputs(step: int = 0) -> Tensor:
    return torch.linspace(-1, 1, 28, dtype=torch.float64).view(7, 4).roll(step, 0) * (1 + 0.1 * step)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def pull(aggregator: Aggregator, rows: Tensor, *, rescale: bool = False, z: Tensor | None = None) -> Tensor:
    """The gradient that a block passes on where its branches send back ``rows``."""
    z = (torch.ones_like(rows[0]) if z is None else z.clone()).requires_grad_()
    views = gs.ImpartialityBlock(len(rows), aggregator, rescale=rescale)(z)
    sum((view * row).sum() for view, row in zip(views, rows, strict=True)).backward()
    assert z.grad is not None
    return z.grad


# --- the gradient that is passed on ------------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", [True, False])
def test_with_sum_it_is_the_plain_sum(rescale: bool) -> None:
    model = Model(gs.Sum(), rescale=rescale)
    sum(model(inputs())).backward()
    found = gradients(model)
    model.zero_grad()
    z = model.trunk(inputs())
    sum(10.0**k * (head(z) - k).square().mean() for k, head in enumerate(model.heads)).backward()
    for name, gradient in gradients(model).items():
        assert_near(found[name], gradient, 1e-12)
    assert len(found) == 10


def test_two_branches_by_hand() -> None:
    shortest = torch.tensor([-0.2, 0.6], dtype=torch.float64)
    assert_near(pull(gs.MGDA(), CONFLICT), shortest, 1e-12)
    plain = CONFLICT.sum(0)
    assert_near(pull(gs.MGDA(), CONFLICT, rescale=True), shortest * plain.norm() / shortest.norm(), 1e-12)
    projected = torch.tensor([-0.4, 2.8], dtype=torch.float64)
    assert_near(pull(gs.PCGrad(), CONFLICT), projected, 1e-12)
    assert_near(pull(gs.PCGrad(), CONFLICT, rescale=True), projected * plain.norm() / projected.norm(), 1e-12)


REFUSED: list[tuple[str, Callable[[], Aggregator]]] = [
    ("needs no losses", gs.GradNorm),
    ("needs no losses", lambda: gs.MGDA("loss")),
    ("needs no losses", lambda: gs.MGDA("loss+")),
    ("needs no losses", aggregators.DBMTL),
    ("needs no losses", lambda: aggregators.MoCo(normalization="loss")),
    ("needs no losses", lambda: gs.Chain(gs.Mean(), gs.MGDA("loss"))),
    ("needs no losses", lambda: aggregators.CRMOGM(gs.GradNorm())),
    ("remembers no gradients", aggregators.MoCo),
    ("remembers no gradients", aggregators.MConFIG),
    ("remembers no gradients", aggregators.ExcessMTL),
    ("remembers no gradients", lambda: gs.Chain(gs.Mean(), aggregators.MConFIG())),
]


@pytest.mark.parametrize(("rule", "build"), REFUSED)
def test_methods_that_cannot_work_in_a_block(rule: str, build: Callable[[], Aggregator]) -> None:
    method = build()
    message = f"^ImpartialityBlock: `aggregator` must be a method that {rule}.* got {type(method).__name__}"
    with pytest.raises(ValueError, match=message):
        gs.ImpartialityBlock(2, method)
    with pytest.raises(ValueError, match=message):
        gs.RotoGrad(2, 3, method)


def _refused(method: Aggregator) -> bool:
    return method.uses_losses or method.remembers_gradients


@pytest.mark.parametrize(
    "build", [contract.build for contract in CONTRACTS.values() if not _refused(contract.build())]
)
def test_every_other_method_works_with_batches_of_any_size(build: Callable[[], Aggregator]) -> None:
    block = gs.ImpartialityBlock(2, build())
    for size in (5, 3):
        z = torch.linspace(-1, 1, 2 * size).view(size, 2).requires_grad_()
        first, second = block(z)
        (first.square().sum() - second.sum()).backward()
        assert z.grad is not None
        assert bool(z.grad.isfinite().all())


GRAMIAN_METHODS: list[Callable[[], Aggregator]] = [
    gs.MGDA,
    gs.UPGrad,
    gs.IMTLG,
    gs.Mean,
    lambda: gs.PCGrad(generator=torch.Generator().manual_seed(1)),
    lambda: gs.GradNorm(alpha=0.0),
    lambda: gs.Chain(gs.GradNorm(alpha=0.0), gs.MGDA("l2")),
]


@pytest.mark.parametrize("build", GRAMIAN_METHODS)
def test_it_is_the_method_on_the_flattened_rows(build: Callable[[], Aggregator]) -> None:
    rows = DIFFICULT["six, wide"].reshape(6, 5, 10)
    assert_near(pull(build(), rows).flatten(), build()(rows.flatten(1)), 1e-12)


def test_a_method_that_needs_the_jacobian_sees_the_point() -> None:
    rows = DIFFICULT["six, wide"].reshape(6, 5, 10)
    z = DIFFICULT["six, wide"].flip(0)[0].reshape(5, 10)
    method, same, other = (gs.GradDrop(generator=torch.Generator().manual_seed(1)) for _ in range(3))
    found = pull(method, rows, z=z)
    assert_near(found, same([rows], at=z)[0], 1e-12)
    assert float((found - other([rows])[0]).norm()) > 0.1


@pytest.mark.parametrize("method", [gs.MGDA, gs.UPGrad, gs.PCGrad, gs.IMTLG, gs.Mean])
def test_rescaled_gradient_has_the_norm_of_the_sum(method: type[Aggregator]) -> None:
    rows = DIFFICULT["five"]
    rescaled, plain = pull(method(), rows, rescale=True), pull(method(), rows)
    assert float(rescaled.norm()) == pytest.approx(float(rows.sum(0).norm()), rel=1e-12)
    assert_near(rescaled / rescaled.norm(), plain / plain.norm(), 1e-9)


def test_rescaling_leaves_zero_alone() -> None:
    opposed = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert_same_bits(pull(gs.MGDA(), opposed, rescale=True), torch.zeros(2))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 3)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    rows = torch.arange(1.0, 3.0).view(2, *[1] * len(shape)).expand(2, *shape)
    assert_near(pull(gs.UPGrad(), rows), rows.mean(0), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    found = pull(gs.MGDA(), CONFLICT.to(dtype), rescale=True)
    assert found.dtype == dtype
    assert_near(found, pull(gs.MGDA(), CONFLICT, rescale=True), 4 * torch.finfo(dtype).eps)


def test_half_precision_is_rounded_to_once() -> None:
    """Where rows nearly cancel, the method's direction is so short that float16 would have few digits of it."""
    source = torch.Generator().manual_seed(1)
    row, noise = torch.randn(2, 64, generator=source)
    rows = (0.01 * torch.stack([row, -0.5 * row + 1e-3 * noise])).half()
    found = {}
    for dtype in (torch.float16, torch.float64):
        z = torch.zeros(64, dtype=dtype, requires_grad=True)
        torch.stack(gs.ImpartialityBlock(2, gs.MGDA())(z)).backward(rows.to(dtype))
        found[dtype] = z.grad
    assert_near(found[torch.float16], found[torch.float64].half(), 1e-5)


@pytest.mark.parametrize("rescale", [True, False])
def test_one_branch_is_the_identity(rescale: bool) -> None:
    row = torch.tensor([[0.1, -7.0, 3e-5]])
    assert_near(pull(gs.MGDA(), row, rescale=rescale), row[0], 1e-7 if rescale else 0.0)


def test_forward_is_the_identity() -> None:
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    views = gs.ImpartialityBlock(4, gs.MGDA())(z)
    assert len(views) == 4
    assert_same_bits(list(views), [z] * 4)
    assert gs.ImpartialityBlock(4, gs.MGDA()).expand(z).shape == (4, 3, 2)


def test_heads_keep_their_own_gradients() -> None:
    surgery, plain = Model(gs.MGDA(), rescale=False), Model(gs.Sum())
    for model in (surgery, plain):
        sum(model(inputs())).backward()
    found, expected = gradients(surgery), gradients(plain)
    for name in expected:
        if name.startswith("heads"):
            assert_same_bits(found[name], expected[name])
        else:
            assert float((found[name] - expected[name]).norm()) > 1e-3


def test_gradient_of_the_trunk_is_that_of_the_direction() -> None:
    model = Model(gs.UPGrad(), rescale=False)
    z = model.trunk(inputs())
    losses = [10.0**k * (head(z) - k).square().mean() for k, head in enumerate(model.heads)]
    rows = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in losses])
    direction = gs.UPGrad()(rows.flatten(1)).view_as(z)
    expected = torch.autograd.grad(z, list(model.trunk.parameters()), direction)
    sum(model(inputs())).backward()
    for parameter, gradient in zip(model.trunk.parameters(), expected, strict=True):
        assert_near(parameter.grad, gradient, 1e-12)


def test_unused_branch_is_a_row_of_zeros() -> None:
    for method, padded in ((gs.MGDA, 1.0), (gs.UPGrad, 2 / 3), (gs.PCGrad, 1.0)):
        z = torch.ones(2, dtype=torch.float64, requires_grad=True)
        first, _, third = gs.ImpartialityBlock(3, method(), rescale=False)(z)
        (first @ CONFLICT[0] + third @ CONFLICT[1]).backward()
        assert_near(z.grad, padded * method()(CONFLICT), 1e-12)


def test_no_branch_used_leaves_nothing() -> None:
    z = torch.ones(2, requires_grad=True)
    gs.ImpartialityBlock(2, gs.MGDA())(z)
    (3 * z).sum().backward()
    assert_same_bits(z.grad, torch.full((2,), 3.0))


def test_without_gradients_it_does_nothing() -> None:
    block = gs.ImpartialityBlock(2, gs.GradNorm(alpha=0.0))
    z = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert not (2 * block(z)[0]).requires_grad
    assert not block(z.detach())[0].requires_grad


# --- what it refuses and what passes through ---------------------------------------------------------------------


def test_double_backward_raises() -> None:
    z = torch.ones(2, requires_grad=True)
    first, second = gs.ImpartialityBlock(2, gs.MGDA())(z)
    (gradient,) = torch.autograd.grad(first.square().sum() + second.sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("build", [lambda: gs.GradNorm(alpha=0.0), gs.PCGrad, gs.GradDrop, gs.MGDA])
def test_nonfinite_gradients_pass_through_and_leave_the_state(build: Callable[[], Aggregator], bad: float) -> None:
    method = build()
    pull(method, CONFLICT)
    before = copy.deepcopy(dict(method.state_dict()))
    broken = CONFLICT.clone()
    broken[1, 0] = bad
    for rescale in (True, False):
        assert not bool(pull(method, broken, rescale=rescale).isfinite().any())
    assert_same_bits(dict(method.state_dict()), before)


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: gs.ImpartialityBlock(0, gs.Sum()), ValueError, "`num_branches` must be an integer >= 1, got 0"),
        (lambda: gs.ImpartialityBlock(2.0, gs.Sum()), ValueError, "`num_branches` must be an integer >= 1, got 2.0"),
        (lambda: gs.ImpartialityBlock(2, gs.Sum), TypeError, r"`aggregator` must be .* such as gs.PCGrad\(\), got"),
        (lambda: gs.ImpartialityBlock(2, nn.Identity()), TypeError, r"`aggregator` must be .*, got Identity\(\)"),
    ],
)
def test_bad_arguments(build: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^ImpartialityBlock: {message}"):
        build()


# --- in training -------------------------------------------------------------------------------------------------


class _Inhomogeneous(gs.GramianAggregator):
    """Looks at the size of the gradients."""

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return gramian.diagonal(dim1=-2, dim2=-1)


@pytest.mark.parametrize("scale", [1.0, 1024.0, 3.0])
def test_grad_scaler_is_taken_out_and_put_back(scale: float) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    z = torch.ones(2, dtype=torch.float64, requires_grad=True)
    block = gs.ImpartialityBlock(2, _Inhomogeneous(), rescale=False, grad_scaler=scaler)
    first, second = block(z)
    scaler.scale(first @ CONFLICT[0] + second @ CONFLICT[1]).backward()
    assert_near(z.grad, scale * _Inhomogeneous()(CONFLICT), 1e-12)


def test_homogeneous_methods_do_not_need_the_scaler() -> None:
    expected = pull(gs.UPGrad(), CONFLICT, rescale=True)
    assert_near(pull(gs.UPGrad(), 65536.0 * CONFLICT, rescale=True), 65536.0 * expected, 1e-12)


def stateful() -> Aggregator:
    return gs.Chain(gs.GradNorm(alpha=0.0, lr=0.3), gs.PCGrad(generator=torch.Generator().manual_seed(3)))


def train(model: Model, steps: range) -> list[dict[str, Tensor]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    seen = []
    for step in steps:
        optimizer.zero_grad()
        sum(model(inputs(step))).backward()
        seen.append(gradients(model))
        optimizer.step()
    return seen


def _through_state_dict(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Model(stateful())
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def _through_pickle(model: Model) -> Model:
    other: Model = pickle.loads(pickle.dumps(model))
    return other


@pytest.mark.parametrize("copied", [copy.deepcopy, _through_pickle, _through_state_dict])
def test_copies_continue_identically(copied: Callable[[Model], Model]) -> None:
    model = Model(stateful())
    first = train(model, range(4))
    other = copied(model)
    assert other.block.aggregator is not model.block.aggregator
    expected = train(model, range(4, 8))
    assert_same_bits(train(other, range(4, 8)), expected)
    assert_same_bits(dict(other.block.aggregator.state_dict()), dict(model.block.aggregator.state_dict()))
    assert float((expected[0]["trunk.0.weight"] - first[0]["trunk.0.weight"]).norm()) > 0


def test_a_fresh_state_would_not_continue_identically() -> None:
    model = Model(stateful())
    train(model, range(4))
    other = copy.deepcopy(model)
    other.block.aggregator.reset()
    with pytest.raises(AssertionError):
        assert_same_bits(train(other, range(4, 8)), train(model, range(4, 8)))


def test_state_survives_a_change_of_dtype() -> None:
    model = Model(stateful())
    train(model, range(2))
    before = copy.deepcopy(dict(model.block.aggregator.state_dict()))
    model.bfloat16()
    assert_same_bits(dict(model.block.aggregator.state_dict()), before)
    assert next(model.trunk.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
def test_compiled_model_has_the_same_gradients(backend: str) -> None:
    model = Model(gs.UPGrad())
    expected = train(copy.deepcopy(model), range(3))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    found = []
    for step in range(3):
        model.zero_grad()
        sum(compiled(inputs(step))).backward()
        found.append(gradients(model))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-3 * parameter.grad
    for got, wanted in zip(found, expected, strict=True):
        for name, gradient in wanted.items():
            assert_near(got[name], gradient, 1e-10)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does
def test_compiled_fused_heads_know_views(backend: str) -> None:
    model = _Fused()
    sum(output.sin().sum() for output in model(inputs())).backward()
    expected = gradients(model)
    model.zero_grad()
    torch._dynamo.reset()
    outputs = torch.compile(model, backend=backend)(inputs())
    assert [output.shape for output in outputs] == [(7, 2), (7, 3)]
    sum(output.sin().sum() for output in outputs).backward()
    for name, gradient in gradients(model).items():
        assert_near(gradient, expected[name], 1e-10)


class _Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, 5).double()
        self.block = gs.ImpartialityBlock(2, gs.MGDA())
        self.heads = gs.FusedHeads(5, [2, 3]).double()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.heads(self.trunk(x), self.block)
        return outputs


# --- fused heads -------------------------------------------------------------------------------------------------

WIDTHS = [[1], [1, 2], [3, 1, 2], [1, 2, 3, 4, 5, 6, 7], [2, 2, 2]]


def separate(heads: gs.FusedHeads) -> list[nn.Linear]:
    """One ``nn.Linear`` a head, with the same weights."""
    layers = []
    for rows in heads.head_slices():
        layer = nn.Linear(heads.in_features, rows.stop - rows.start, bias=heads.bias is not None)
        layer.weight.data = heads.weight.detach()[rows].clone()
        if heads.bias is not None:
            layer.bias.data = heads.bias.detach()[rows].clone()
        layers.append(layer)
    return layers


def objective(outputs: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return sum(((k + 1.0) * output.sin() + output.square()).sum() for k, output in enumerate(outputs))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4,), (7, 4), (2, 7, 4), (1, 4)])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("views", [True, False])
def test_fused_heads_are_linear_layers(widths: list[int], shape: tuple[int, ...], bias: bool, views: bool) -> None:
    torch.manual_seed(0)
    heads = gs.FusedHeads(4, widths, bias=bias).double()
    layers = [layer.double() for layer in separate(heads)]
    fused = torch.randn(shape, dtype=torch.float64).requires_grad_()
    plain = fused.detach().clone().requires_grad_()
    block, other = (gs.ImpartialityBlock(len(widths), gs.UPGrad(), rescale=False) for _ in range(2))
    outputs = heads(fused, block) if views else heads(fused)
    branches = other(plain) if views else [plain] * len(widths)
    expected = [layer(branch) for layer, branch in zip(layers, branches, strict=True)]
    assert [output.shape for output in outputs] == [(*shape[:-1], width) for width in widths]
    for output, reference in zip(outputs, expected, strict=True):
        assert_near(output, reference, 1e-13)
    objective(outputs).backward()
    objective(expected).backward()
    assert_near(fused.grad, plain.grad, 1e-9)
    assert_near(heads.weight.grad, torch.cat([layer.weight.grad for layer in layers]), 1e-12)
    if bias:
        assert_near(heads.bias.grad, torch.cat([layer.bias.grad for layer in layers]), 1e-12)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("views", [True, False])
def test_fused_heads_gradcheck(widths: list[int], views: bool) -> None:
    torch.manual_seed(0)
    heads = gs.FusedHeads(3, widths).double()
    block = gs.ImpartialityBlock(len(widths), gs.Sum(), rescale=False)  # the sum is what finite differences see

    def run(z: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        parameters = {"weight": weight, "bias": bias}
        arguments = (z, block) if views else (z,)
        outputs: tuple[Tensor, ...] = torch.func.functional_call(heads, parameters, arguments)
        return outputs

    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(run, (z, heads.weight, heads.bias))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_fused_heads_do_not_take_a_batch_for_views(rows: int) -> None:
    """A batch may have as many rows as there are heads, and equal rows share memory."""
    heads = gs.FusedHeads(4, [2, 1])
    batch = torch.arange(4.0).expand(rows, 4)
    assert [output.shape for output in heads(batch)] == [(rows, 2), (rows, 1)]
    assert_near(heads(batch)[0], heads(batch.clone())[0], 1e-6)


def test_fused_heads_on_views_without_gradients() -> None:
    heads, block = gs.FusedHeads(4, [2, 1]), gs.ImpartialityBlock(2, gs.MGDA())
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_same_bits(list(heads(z, block)), list(heads(z)))


def test_fused_heads_with_frozen_parts() -> None:
    heads, block = gs.FusedHeads(4, [2, 1]), gs.ImpartialityBlock(2, gs.Sum())
    heads.bias.requires_grad_(False)
    z = torch.ones(5, 4)
    objective(heads(z, block)).backward()
    assert heads.bias.grad is None
    assert heads.weight.grad is not None
    heads.weight.requires_grad_(False)
    z.requires_grad_()
    objective(heads(z, block)).backward()
    assert float(z.grad.norm()) > 0


class _Seen(gs.GramianAggregator):
    """Keeps what it was given: whether the gradients were formed shows in their number of calls alone."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        self.seen.append(gramian)
        return torch.arange(1.0, 1 + len(gramian), dtype=torch.float64)


def behind(
    heads: gs.FusedHeads, z: Tensor, received: Tensor, aggregator: Aggregator, *, rescale: bool = True
) -> Tensor:
    """The gradient with respect to z where the outputs of all heads receive ``received``."""
    z = z.detach().clone().requires_grad_()
    outputs = heads(z, gs.ImpartialityBlock(len(heads.out_features), aggregator, rescale=rescale))
    torch.cat(outputs, dim=-1).backward(received)
    assert z.grad is not None
    return z.grad


def rows_of(heads: gs.FusedHeads, received: Tensor) -> Tensor:
    """The gradient with respect to z of each head by itself, in float64."""
    weight = heads.weight.detach().double()
    return torch.stack([received[..., own].double() @ weight[own] for own in heads.head_slices()])


@pytest.mark.parametrize("widths", [[1], [1, 1, 1], [2, 1, 3], [4] * 6, [60, 2], [40] * 3], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_heads_find_the_gramian_of_their_gradients(widths: list[int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    heads, method = gs.FusedHeads(7, widths).to(dtype), _Seen()
    received = torch.randn(2, 9, sum(widths), generator=generator, dtype=dtype)
    found = behind(heads, torch.zeros(2, 9, 7, dtype=dtype), received, method, rescale=False)
    rows, tolerance = rows_of(heads, received).flatten(1), 1e-6 if dtype == torch.float32 else 1e-13
    assert_near(method.seen[0], rows @ rows.mT, tolerance)
    expected = torch.arange(1.0, 1 + len(widths), dtype=torch.float64) @ rows
    assert_near(found.flatten(), expected, tolerance)


@pytest.mark.parametrize("build", GRAMIAN_METHODS)
@pytest.mark.parametrize("rescale", [True, False])
def test_fused_heads_are_the_method_on_their_gradients(build: Callable[[], Aggregator], rescale: bool) -> None:
    heads = gs.FusedHeads(6, [2, 1, 3]).double()
    received = torch.randn(8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = rows_of(heads, received)
    expected = build()(rows.flatten(1))
    if rescale:
        expected = expected * rows.sum(0).norm() / expected.norm()
    found = behind(heads, torch.zeros(8, 6).double(), received, build(), rescale=rescale)
    assert_near(found.flatten(), expected, 1e-11)


@pytest.mark.parametrize("scale", [2.0**-200, 2.0**-40, 2.0**40])
def test_fused_heads_do_not_depend_on_the_scale(scale: float) -> None:
    heads, z = gs.FusedHeads(6, [2, 1, 3]).double(), torch.zeros(8, 6).double()
    received = torch.randn(8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for build in (gs.MGDA, gs.UPGrad):
        expected = behind(heads, z, received, build())
        assert_same_bits(behind(heads, z, scale * received, build()), scale * expected)


def test_fused_heads_whose_terms_cancel_form_their_gradients() -> None:
    """All weights of the first head are equal and what it receives adds up to zero: products would leave noise."""
    heads, noise = gs.FusedHeads(20, [4, 2]).double(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        heads.weight[:4] = heads.weight[:1].clone()
    received = torch.randn(50, 6, generator=noise, dtype=torch.float64)
    received[:, 3] = -received[:, :3].sum(1)
    for _ in range(5):
        received = received.roll(1, 0) / 3
        method = _Seen()
        behind(heads, torch.zeros(50, 20).double(), received, method)
        length = float(method.seen[0][0, 0])
        assert 0 <= length <= 1e-28 * float(received[:, :4].square().sum())
        assert float(method.seen[0][0, 1]) ** 2 <= length * float(method.seen[0][1, 1]) * (1 + 1e-12)


def test_fused_heads_with_opposed_gradients() -> None:
    heads = gs.FusedHeads(5, [2, 2]).double()
    with torch.no_grad():
        heads.weight[2:] = heads.weight[:2]
    received = torch.randn(9, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    opposed = torch.cat([received, -received], dim=1)
    assert float(behind(heads, torch.zeros(9, 5).double(), opposed, gs.MGDA()).norm()) < 1e-14
    third = torch.cat([received, -received / 2], dim=1)
    assert float(behind(heads, torch.zeros(9, 5).double(), third, gs.MGDA(), rescale=False).norm()) < 1e-14


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("build", [lambda: gs.GradNorm(alpha=0.0), gs.GradDrop, gs.MGDA])
def test_fused_heads_pass_on_nonfinite_gradients(build: Callable[[], Aggregator], bad: float) -> None:
    heads, method, z = gs.FusedHeads(5, [2, 2]), build(), torch.ones(9, 5)
    behind(heads, z, torch.ones(9, 4), method)
    before = copy.deepcopy(dict(method.state_dict()))
    received = torch.ones(9, 4)
    received[3, 1] = bad
    for rescale in (True, False):
        assert not bool(behind(heads, z, received, method, rescale=rescale).isfinite().all())
    assert_same_bits(dict(method.state_dict()), before)


def test_fused_heads_give_the_jacobian_to_methods_that_need_it() -> None:
    heads, z = gs.FusedHeads(5, [2, 1]).double(), torch.linspace(-1, 1, 20).double().view(4, 5)
    received = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    method, same = (gs.GradDrop(generator=torch.Generator().manual_seed(1)) for _ in range(2))
    expected = same([rows_of(heads, received)], at=z)[0]
    assert_near(behind(heads, z, received, method, rescale=False), expected, 1e-12)


@pytest.mark.parametrize("scale", [1024.0, 3.0])
def test_fused_heads_know_the_grad_scaler(scale: float) -> None:
    heads = gs.FusedHeads(5, [2, 1]).double()
    z = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    block = gs.ImpartialityBlock(2, _Inhomogeneous(), rescale=False, grad_scaler=scaler)
    received = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.cat(heads(z, block), dim=-1).backward(scale * received)
    expected = _Inhomogeneous()(rows_of(heads, received).flatten(1))
    assert_near(z.grad.flatten(), scale * expected, 1e-12)


def test_fused_heads_under_autocast() -> None:
    heads, trunk = gs.FusedHeads(16, [2, 1]), nn.Linear(3, 16)
    gradient = {}
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = heads(trunk(torch.linspace(-1, 1, 24).view(8, 3)), gs.ImpartialityBlock(2, gs.UPGrad()))
        assert outputs[0].dtype == (torch.bfloat16 if enabled else torch.float32)
        trunk.zero_grad()
        objective(outputs).backward()
        gradient[enabled] = trunk.weight.grad.clone()
    assert_near(gradient[True], gradient[False], 0.05)


def test_fused_heads_in_low_precision() -> None:
    heads, z = gs.FusedHeads(16, [2, 1]), torch.linspace(-1, 1, 128).view(8, 16)
    received = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    expected = behind(heads, z, received, gs.UPGrad())
    found = behind(heads.bfloat16(), z.bfloat16(), received.bfloat16(), gs.UPGrad())
    assert found.dtype == torch.bfloat16
    assert_near(found, expected, 0.02)


def test_fused_heads_of_which_one_is_used() -> None:
    heads, z = gs.FusedHeads(5, [2, 1]).double(), torch.ones(4, 5, dtype=torch.float64, requires_grad=True)
    heads(z, gs.ImpartialityBlock(2, gs.PCGrad()))[1].sum().backward()
    assert_near(z.grad, heads.weight.detach()[2].expand(4, 5), 1e-12)


def test_fused_heads_differentiated_twice() -> None:
    heads, z = gs.FusedHeads(5, [2, 1]).double(), torch.ones(4, 5, dtype=torch.float64, requires_grad=True)
    loss = objective(heads(z, gs.ImpartialityBlock(2, gs.MGDA(), rescale=False)))
    torch.autograd.grad(3 * loss, heads.weight, retain_graph=True)  # leaves nothing behind
    first, second = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert_same_bits(first, second)
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_fused_heads_keep_no_graph_alive() -> None:
    heads, z = gs.FusedHeads(5, [2, 1]).double(), torch.ones(4, 5, dtype=torch.float64, requires_grad=True)
    loss = objective(heads(z, gs.ImpartialityBlock(2, gs.MGDA())))
    torch.autograd.grad(loss, heads.weight, create_graph=True)  # not down to z
    point = weakref.ref(z)
    del z, loss
    gc.collect()
    assert point() is None


@pytest.mark.parametrize("widths", [[2, 1], [40, 40, 40]], ids=str)
def test_fused_heads_without_samples(widths: list[int]) -> None:
    heads = gs.FusedHeads(5, widths)
    assert behind(heads, torch.zeros(0, 5), torch.zeros(0, sum(widths)), gs.MGDA()).shape == (0, 5)


def test_fused_heads_that_are_allocated_later() -> None:
    heads = gs.FusedHeads(5, [2, 1, 3])
    with torch.device("meta"):
        late = gs.FusedHeads(5, [2, 1, 3])
    late.to_empty(device="cpu").load_state_dict(heads.state_dict())
    received = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    for build in (gs.MGDA, aggregators.TrimmedMean):
        expected = behind(heads, torch.zeros(8, 5), received, build())
        assert_same_bits(behind(late, torch.zeros(8, 5), received, build()), expected)


def test_fused_heads_initialise_like_linear_layers() -> None:
    torch.manual_seed(0)
    heads, layer = gs.FusedHeads(16, [200, 300]), nn.Linear(16, 500)
    pairs = ((heads.weight, layer.weight), (heads.bias, layer.bias))
    for ours, theirs in [(ours.detach(), theirs.detach()) for ours, theirs in pairs]:
        assert float(ours.abs().max()) <= 0.25
        assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.1)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: gs.FusedHeads(0, [1]), r"`in_features` and `out_features` must be >= 1, got 0 and \[1\]"),
        (lambda: gs.FusedHeads(3, []), r"`in_features` and `out_features` must be >= 1, got 3 and \[\]"),
        (lambda: gs.FusedHeads(3, [2, 0]), r"`in_features` and `out_features` must be >= 1, got 3 and \[2, 0\]"),
        (lambda: gs.FusedHeads(3, [2, 1])(torch.ones(5, 4)), r"`z` must be \(\.\.\., 3\), got \(5, 4\)"),
        (lambda: gs.FusedHeads(3, [2, 1])(torch.ones(())), r"`z` must be .*, got \(\)"),
        (
            lambda: gs.FusedHeads(3, [2, 1])(torch.ones(5, 3), gs.ImpartialityBlock(3, gs.Sum())),
            "`block` must have one branch a head, 2, got 3",
        ),
    ],
)
def test_fused_heads_bad_arguments(run: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^FusedHeads: {message}"):
        run()


def test_fused_heads_are_not_counted_as_shared() -> None:
    """Every loss reaches them, each rows of its own; a plain layer in their place is shared."""
    torch.manual_seed(0)
    trunk, x = nn.Linear(3, 4).double(), torch.randn(6, 3).double()
    for heads, shared in ((gs.FusedHeads(4, [1, 2]).double(), False), (nn.Linear(4, 3).double(), True)):
        optimizer = gs.MultiObjectiveOptimizer(
            torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1), gs.MGDA()
        )
        optimizer.zero_grad()
        output = heads(trunk(x))
        whole = torch.cat(output, dim=-1) if isinstance(output, tuple) else output
        losses = [(whole[:, 0] - 1).square().mean(), (whole[:, 1:] + 1).square().mean()]
        parameters = [*trunk.parameters(), *(heads.parameters() if shared else [])]
        rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        plain = torch.autograd.grad(sum(losses), heads.weight, retain_graph=True)[0]
        surgery = optimizer.backward(losses)
        matrix = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
        assert_near(surgery.gramian, matrix @ matrix.mT, 1e-12)
        if shared:
            assert float((heads.weight.grad - plain).norm()) > 1e-3
        else:
            assert_near(heads.weight.grad, plain, 1e-12)


def test_fused_heads_copies_are_not_counted_as_shared_either() -> None:
    trunk = nn.Linear(3, 4)
    heads = copy.deepcopy(gs.FusedHeads(4, [1, 1]))
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(trunk.parameters(), lr=0.1), gs.Sum())
    first, second = heads(trunk(torch.ones(2, 3)))
    surgery = optimizer.backward([first.sum(), second.sum()])
    expected = sum(heads.weight.detach()[0] @ heads.weight.detach()[k] for k in (0,)) * 4 * (3 + 1)
    assert float(surgery.gramian[0, 0]) == pytest.approx(float(expected), rel=1e-5)
