"""RotoGrad against torch's own orthogonal parametrization and Adam, and what a module in a network has to bear."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from support import assert_near, assert_same_bits, gaussian
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

import gradsurgery as gs
from gradsurgery.aggregators import Aggregator, NormalizedSGD
from gradsurgery.rotograd import RotoGrad

BRANCHES, WIDTH = 3, 5


class Model(nn.Module):
    """A trunk, rotations, and one head a branch."""

    def __init__(self, aggregator: Aggregator | None = None, *, features: int = WIDTH, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, WIDTH)).double()
        self.rotate = RotoGrad(BRANCHES, features, aggregator, **options)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in range(BRANCHES)).double()

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.losses(self.rotate(self.trunk(x)))

    def losses(self, views: tuple[Tensor, ...] | list[Tensor]) -> list[Tensor]:
        pairs = zip(self.heads, views, strict=True)
        return [10.0 ** (k - 1) * (head(view) - k).square().mean() for k, (head, view) in enumerate(pairs)]


def inputs(step: int = 0) -> Tensor:
    return torch.linspace(-1, 1, 28, dtype=torch.float64).view(7, 4).roll(step, 0) * (1 + 0.1 * step)


def train(model: Model, steps: range) -> None:
    for step in steps:
        model.zero_grad()
        sum(model(inputs(step))).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad


# --- the algorithm -----------------------------------------------------------------------------------------------


class Literal:
    """Rotations as parameters, each moved to its present value after every step."""

    def __init__(self, features: int, lr: float, decay: float) -> None:
        self.features = features
        self.layers = []
        for _ in range(BRANCHES):
            layer = nn.Linear(features, features, bias=False).double()
            layer.weight.data = torch.eye(features, dtype=torch.float64)
            self.layers.append(orthogonal(layer, orthogonal_map="matrix_exp", use_trivialization=True))
        parameters = [parameter for layer in self.layers for parameter in layer.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=lr)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, decay)

    def rotated(self, z: Tensor) -> list[Tensor]:
        used, rest = z[..., : self.features], z[..., self.features :]
        return [torch.cat([used @ layer.weight.detach().T, rest], dim=-1) for layer in self.layers]

    def learn(self, by_z: list[Tensor], by_view: list[Tensor]) -> None:
        mean = sum(gradient / gradient.norm() for gradient in by_z) / BRANCHES
        self.optimizer.zero_grad()
        for layer, g, q in zip(self.layers, by_z, by_view, strict=True):
            turned = mean[..., : self.features] @ layer.weight.T
            (-(turned * q[..., : self.features]).sum() / g.norm()).backward()
        self.optimizer.step()
        self.scheduler.step()
        for layer in self.layers:
            layer.weight = layer.weight.detach()

    @property
    def rotations(self) -> Tensor:
        return torch.stack([layer.weight.detach() for layer in self.layers])


def train_by_hand(model: Model, literal: Literal, steps: range) -> None:
    first: list[float] = []
    for step in steps:
        z = model.trunk(inputs(step))
        views = literal.rotated(z)
        losses = model.losses(views)
        by_view = [
            torch.autograd.grad(loss, view, retain_graph=True)[0] for loss, view in zip(losses, views, strict=True)
        ]
        by_z = [torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in losses]
        norms = [float(gradient.norm()) for gradient in by_z]
        first = first or norms
        rates = [now / then for now, then in zip(norms, first, strict=True)]
        length = sum(rate / sum(rates) * norm for rate, norm in zip(rates, norms, strict=True))
        direction = sum(length * gradient / norm for gradient, norm in zip(by_z, norms, strict=True))
        literal.learn(by_z, by_view)
        trunk, heads = list(model.trunk.parameters()), list(model.heads.parameters())
        own = torch.autograd.grad(sum(losses), heads, retain_graph=True)
        below = torch.autograd.grad(z, trunk, direction)
        with torch.no_grad():
            for parameter, gradient in zip([*trunk, *heads], [*below, *own], strict=True):
                parameter -= 0.01 * gradient


@pytest.mark.parametrize(("features", "decay"), [(WIDTH, 1.0), (3, 0.9)])
def test_training_is_the_algorithm(features: int, decay: float) -> None:
    model, other = Model(features=features, lr=0.05, decay=decay), Model()
    literal = Literal(features, 0.05, decay)
    train(model, range(8))
    train_by_hand(other, literal, range(8))
    assert_near(model.rotate.rotations, literal.rotations, 1e-9)
    for module in ("trunk", "heads"):
        pairs = zip(getattr(model, module).parameters(), getattr(other, module).parameters(), strict=True)
        for parameter, expected in pairs:
            assert_near(parameter, expected, 1e-9)
    with pytest.raises(AssertionError):
        assert_near(model.rotate.rotations, torch.eye(features, dtype=torch.float64).expand(3, -1, -1), 0.1)


def test_rotations_align_the_gradients() -> None:
    """Fixed directions in each branch, and their opposite: all can be turned into one another."""
    torch.manual_seed(0)
    wanted = gaussian(3, 4).float()
    wanted[1] = -wanted[0]
    block = RotoGrad(3, 4, gs.Sum(), lr=0.05, decay=0.99)
    cosines = []
    for _ in range(300):
        z = torch.zeros(6, 4, requires_grad=True)
        views = block(z)
        rows = [
            torch.autograd.grad((view * row).sum(), z, retain_graph=True)[0][0]
            for view, row in zip(views, wanted, strict=True)
        ]
        cosines.append([float(nn.functional.cosine_similarity(rows[0], row, dim=0)) for row in rows[1:]])
        sum((view * row).sum() for view, row in zip(views, wanted, strict=True)).backward()
    assert max(cosines[-1]) <= 1 + 1e-6
    assert min(cosines[-1]) > 0.999
    assert cosines[0][0] < -0.999


def test_rotations_stay_orthogonal() -> None:
    block = RotoGrad(2, 6, gs.Sum(), lr=0.1, decay=1.0)
    for step in range(500):
        z = torch.zeros(3, 6, requires_grad=True)
        sum(
            (view * row).sum() for view, row in zip(block(z), gaussian(2, 18, seed=step).view(2, 3, 6), strict=True)
        ).backward()
    products = block.rotations @ block.rotations.mT
    assert float((products - torch.eye(6)).abs().max()) < 1e-12
    assert_near(torch.linalg.det(block.rotations), torch.ones(2), 1e-12)
    assert float((block.rotations - torch.eye(6)).abs().max()) > 0.5


def test_a_pass_backward_is_exact_for_the_rotations_of_its_pass_forward() -> None:
    block = RotoGrad(2, 3, gs.Sum(), lr=0.3)
    rows = gaussian(2, 3)
    gradients = []
    passes = [(z := torch.zeros(1, 3, dtype=torch.float64, requires_grad=True), block(z)) for _ in range(3)]
    for z, views in passes:
        sum((view * row).sum() for view, row in zip(views, rows, strict=True)).backward()
        gradients.append(z.grad)
    assert_same_bits(gradients[1:], gradients[:1] * 2)
    assert_near(gradients[0][0], rows.sum(0), 1e-12)
    assert float((block.rotations - torch.eye(3)).abs().max()) > 0.1


def test_a_branch_that_sends_nothing_back_stands_still() -> None:
    block = RotoGrad(3, 4, lr=0.1)
    seen = [block.rotations]
    for step in range(6):
        z = torch.zeros(4, 4, requires_grad=True)
        used = list(zip(block(z), gaussian(12, 4, seed=step).view(3, 4, 4), strict=True))
        if step % 2:
            del used[1]
        sum((view * row).sum() for view, row in used).backward()
        seen.append(block.rotations)
    moved = torch.stack([(after - before).flatten(1).norm(dim=1) for before, after in pairwise(seen)])
    assert float(moved[:, [0, 2]].min()) > 0.05
    assert float(moved[::2, 1].min()) > 0.05
    assert float(moved[1::2, 1].max()) == 0.0


@pytest.mark.parametrize("method", [gs.Sum(), gs.MGDA(), gs.PCGrad(), gs.GradDrop()])
@pytest.mark.parametrize("rescale", [False, True])
def test_until_they_turn_it_is_the_block(method: Aggregator, rescale: bool) -> None:
    found, expected = Model(copy.deepcopy(method), rescale=rescale), Model()
    block = gs.ImpartialityBlock(BRANCHES, copy.deepcopy(method), rescale=rescale)
    sum(found(inputs())).backward()
    sum(expected.losses(block(expected.trunk(inputs())))).backward()
    for parameter, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert_near(parameter.grad, other.grad, 1e-12)


def test_passes_for_single_losses_are_not_counted() -> None:
    block, other = RotoGrad(2, 3, gs.Sum(), lr=0.1, decay=0.5), RotoGrad(2, 3, gs.Sum(), lr=0.1, decay=0.5)
    rows = gaussian(2, 3)
    z = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    for view, row in zip(block(z), rows, strict=True):
        (view * row).sum().backward(retain_graph=True)
    assert_near(z.grad[0], rows.sum(0), 1e-12)
    assert_same_bits(block.rotations, torch.eye(3, dtype=torch.float64).repeat(2, 1, 1))
    for one in (block, other):
        sum((view * row).sum() for view, row in zip(one(z), rows, strict=True)).backward()
    assert_same_bits(dict(block.state_dict()), dict(other.state_dict()))
    assert float((block.rotations - torch.eye(3)).abs().max()) > 0.05


# --- scales ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_the_scale_of_the_losses_is_no_matter(scale: float) -> None:
    blocks = [RotoGrad(2, 3, lr=0.1), RotoGrad(2, 3, lr=0.1)]
    for step in range(10):
        rows = gaussian(2, 6, seed=step).view(2, 2, 3)
        grads = []
        for block, factor in zip(blocks, (1.0, scale), strict=True):
            z = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
            sum((factor * view * row).sum() for view, row in zip(block(z), rows, strict=True)).backward()
            grads.append(z.grad / factor)
        assert_near(grads[1], grads[0], 1e-9)
    assert_near(blocks[1].rotations, blocks[0].rotations, 1e-9)


def test_gradients_whose_norm_overflows_do_not_turn() -> None:
    block = RotoGrad(2, 3, gs.GradDrop(), lr=0.1)
    z = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    rows = gaussian(2, 3).abs()
    sum((view * row * 1e200).sum() for view, row in zip(block(z), rows, strict=True)).backward()
    assert_near(z.grad[0] / 1e200, rows.sum(0), 1e-12)
    assert_same_bits(block.rotations, torch.eye(3, dtype=torch.float64).repeat(2, 1, 1))


def test_small_float16_gradients_turn_as_others() -> None:
    rows = (2.0**-20 * torch.tensor([[1.0, 2.0, -1.0], [3.0, -1.0, 2.0]])).half()
    blocks = [RotoGrad(2, 3, gs.Sum(), lr=0.1), RotoGrad(2, 3, gs.Sum(), lr=0.1)]
    for block, dtype in zip(blocks, (torch.float16, torch.float64), strict=True):
        z = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
        sum((view * row).sum() for view, row in zip(block(z), rows.to(dtype), strict=True)).backward()
    assert_near(blocks[0].rotations, blocks[1].rotations, 1e-5)


def test_autocast_takes_no_precision_away() -> None:
    grads = []
    for enabled in (False, True):
        block = RotoGrad(2, 3, gs.Sum(), lr=0.1)
        for step in range(4):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                z = gaussian(2, 3, seed=10 + step).float().requires_grad_()
                rows = gaussian(2, 6, seed=step).view(2, 2, 3).float()
                views = block(z)
                loss = sum((view * row).sum() for view, row in zip(views, rows, strict=True))
            loss.backward()
        grads.append([*(view.detach() for view in views), z.grad, block.rotations])
    assert_same_bits(grads[1], grads[0])


class _Inhomogeneous(gs.GramianAggregator):
    """Looks at the size of the gradients."""

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return gramian.diagonal(dim1=-2, dim2=-1)


def test_grad_scaler_is_taken_out_and_put_back() -> None:
    grads = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        block = RotoGrad(2, 3, _Inhomogeneous(), lr=0.1, grad_scaler=scaler)
        for step in range(3):
            z = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
            rows = gaussian(2, 6, seed=step).view(2, 2, 3)
            loss = sum((view * row).sum() for view, row in zip(block(z), rows, strict=True))
            (loss if scaler is None else scaler.scale(loss)).backward()
        grads.append([z.grad / (1.0 if scaler is None else scaler.get_scale()), block.rotations])
    assert_same_bits(grads[0], grads[1])


# --- state -------------------------------------------------------------------------------------------------------


def _through_state_dict(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Model(gs.GradNorm(alpha=0.0), lr=0.05)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def _through_pickle(model: Model) -> Model:
    other: Model = pickle.loads(pickle.dumps(model))
    return other


@pytest.mark.parametrize("copied", [copy.deepcopy, _through_pickle, _through_state_dict])
def test_copies_continue_identically(copied: Callable[[Model], Model]) -> None:
    model = Model(gs.GradNorm(alpha=0.0), lr=0.05)
    train(model, range(4))
    before = model.rotate.rotations
    other = copied(model)
    train(model, range(4, 8))
    train(other, range(4, 8))
    assert_same_bits(dict(other.state_dict()), dict(model.state_dict()))
    assert float((model.rotate.rotations - before).norm()) > 0.1


@pytest.mark.parametrize(("branches", "features"), [(2, 4), (3, 5)])
def test_the_state_of_other_rotations_is_refused(branches: int, features: int) -> None:
    block = RotoGrad(3, 4)
    before = copy.deepcopy(dict(block.state_dict()))
    message = rf"^RotoGrad: `state_dict` must have rotations \(3, 4, 4\), got \({branches}, {features}, {features}\)"
    with pytest.raises(ValueError, match=message):
        block.load_state_dict(RotoGrad(branches, features).state_dict())
    assert_same_bits(dict(block.state_dict()), before)


def test_no_optimizer_takes_hold_of_the_rotations() -> None:
    model = Model()
    assert not list(model.rotate.parameters())
    before = model.rotate.rotations
    model.bfloat16()
    assert_same_bits(model.rotate.rotations, before)
    assert next(model.trunk.parameters()).dtype == torch.bfloat16


def test_reset_turns_them_back() -> None:
    model = Model(lr=0.05)
    train(model, range(4))
    model.rotate.reset()
    fresh = RotoGrad(BRANCHES, WIDTH, lr=0.05)
    for step in range(3):
        rows = gaussian(3, 10, seed=step).view(3, 2, 5)
        for block in (model.rotate, fresh):
            z = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
            sum((view * row).sum() for view, row in zip(block(z), rows, strict=True)).backward()
        assert_same_bits(model.rotate.rotations, fresh.rotations)


def test_they_only_learn_in_training() -> None:
    model = Model(lr=0.05)
    train(model, range(2))
    before = copy.deepcopy(model.rotate.state_dict())
    model.eval()
    sum(model(inputs())).backward()
    after = model.rotate.state_dict()
    for key in before:
        if "adam" in key or "rotations" in key or "pace" in key:
            assert_same_bits(after[key], before[key])
    with torch.no_grad():
        assert not model(inputs())[0].requires_grad


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nonfinite_gradients_pass_and_leave_the_state(bad: float) -> None:
    model = Model(lr=0.05)
    train(model, range(2))
    before = copy.deepcopy(dict(model.rotate.state_dict()))
    model.zero_grad()
    losses = model(inputs(2))
    (losses[0] + losses[1] * bad + losses[2]).backward()
    assert not bool(model.trunk[0].weight.grad.isfinite().any())
    assert_same_bits(dict(model.rotate.state_dict()), before)


# --- inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4), (2, 6)])
def test_any_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    block = RotoGrad(2, 4, lr=0.2)
    rows = (1 + torch.arange(2.0 * math.prod(shape)).view(2, *shape)).to(dtype)
    for _ in range(3):
        z = torch.ones(shape, dtype=dtype, requires_grad=True)
        views = block(z)
        assert [(view.shape, view.dtype) for view in views] == [(z.shape, dtype)] * 2
        sum((view * row).sum() for view, row in zip(views, rows, strict=True)).backward()
        assert z.grad.shape == z.shape
        assert bool(z.grad.isfinite().all())
    for view, rotation in zip(block(z), block.rotations, strict=True):
        wanted = torch.cat([z.detach().double()[..., :4] @ rotation.T, z.detach().double()[..., 4:]], dim=-1)
        assert_near(view, wanted, 2 * torch.finfo(dtype).eps)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
def test_compiled_model_learns_the_same() -> None:
    model, other = Model(lr=0.05), Model(lr=0.05)
    torch._dynamo.reset()
    compiled = torch.compile(other, backend="eager")
    for step in range(3):
        for one, call in ((model, model), (other, compiled)):
            one.zero_grad()
            sum(call(inputs(step))).backward()
            with torch.no_grad():
                for parameter in one.parameters():
                    parameter -= 0.01 * parameter.grad
    assert_near(other.rotate.rotations, model.rotate.rotations, 1e-10)


NAN = math.nan


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: RotoGrad(2, 0), ValueError, "RotoGrad: `features` must be an integer >= 1, got 0"),
        (lambda: RotoGrad(2, 2.0), ValueError, "RotoGrad: `features` must be an integer >= 1, got 2.0"),
        (lambda: RotoGrad(2, 2, lr=0.0), ValueError, "RotoGrad: `lr` must be a finite number > 0, got 0.0"),
        (lambda: RotoGrad(2, 2, lr=NAN), ValueError, "RotoGrad: `lr` must be .*, got nan"),
        (lambda: RotoGrad(2, 2, decay=1.1), ValueError, r"RotoGrad: `decay` must be in \(0, 1\], got 1.1"),
        (lambda: RotoGrad(0, 2), ValueError, "ImpartialityBlock: `num_branches` must be an integer >= 1, got 0"),
        (lambda: RotoGrad(2, 2, gs.Sum), TypeError, "ImpartialityBlock: `aggregator` must be an aggregator"),
        (
            lambda: RotoGrad(2, 3)(torch.ones(4, 2)),
            ValueError,
            r"RotoGrad: `z` must be \(..., 3 or more\), got \(4, 2\)",
        ),
        (lambda: RotoGrad(2, 3)(torch.tensor(1.0)), ValueError, r"RotoGrad: `z` must be .*, got \(\)"),
    ],
)
def test_bad_arguments(build: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        build()


def test_the_method_is_normalized_sgd_unless_another_is_given() -> None:
    assert isinstance(RotoGrad(2, 3).aggregator, NormalizedSGD)
    method = gs.MGDA()
    assert RotoGrad(2, 3, method).aggregator is method
