"""GradScaler, autocast and half precision: surgery sees unscaled gradients, overflow skips the step."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support import assert_near, assert_same_bits
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery import scalarizers
from gradsurgery.aggregators import CONTRACTS

X = torch.linspace(-1, 1, 32).view(8, 4)


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    return nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleList(nn.Linear(6, 1) for _ in range(3))}).to(dtype)


def losses_of(model: nn.Module, step: int = 0) -> list[Tensor]:
    dtype = model["heads"][0].weight.dtype
    z = model["trunk"]((X + 0.1 * step).to(dtype))
    return [(head(z).float() - k).square().mean() * 10.0**k for k, head in enumerate(model["heads"])]


class InverseSquare(gs.GramianAggregator):
    """A Gramian method that is not homogeneous in the gradients."""

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return 1.0 / (0.01 + gramian.diagonal(dim1=-2, dim2=-1))


class Clipped(gs.Aggregator):
    """A method over the Jacobian that is not homogeneous in the gradients."""

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        return [block.double().clamp(-0.05, 0.05).sum(0) for block in blocks]


METHODS: dict[str, Any] = {
    **{cls.__name__: contract.build for cls, contract in CONTRACTS.items()},
    **{f"{cls.__name__}, a scalarizer": contract.build for cls, contract in scalarizers.CONTRACTS.items()},
    "a Gramian method of degree -1": InverseSquare,
    "a Jacobian method that clips": Clipped,
}


def run(build: Callable[[], gs.Aggregator], scaler: torch.amp.GradScaler, how: str) -> nn.Module:
    model = make_model()  # seeds the generators of random methods too
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters(), lr=0.01), build())
    for step in range(3):
        optimizer.zero_grad()
        for part in (0, 10) if "accumulated" in how else (0,):
            losses = losses_of(model, step + part)
            if "scalarize" in how:
                (scaler.scale(optimizer.scalarize(losses)) / 2).backward()
            else:
                optimizer.backward(losses, grad_scaler=scaler)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return model


def scaler_of(scale: float | None) -> torch.amp.GradScaler:
    """One that doubles its scale every other step; None: one that does nothing, as on a machine without float16."""
    if scale is None:
        return torch.amp.GradScaler("cuda", enabled=False)
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)


@pytest.mark.parametrize("how", ["backward", "backward, accumulated", "scalarize, accumulated"])
@pytest.mark.parametrize("name", METHODS)
def test_same_updates_with_and_without_scaling(name: str, how: str) -> None:
    """The scale is a power of two and grows on the way: the updates are equal to the last bit."""
    plain, scaled = (run(METHODS[name], scaler_of(scale), how) for scale in (None, 2.0**10))
    assert_same_bits(dict(scaled.named_parameters()), dict(plain.named_parameters()))


@pytest.mark.parametrize("build", [gs.MGDA, gs.GradNorm, gs.aggregators.MoCo, InverseSquare, Clipped])
def test_same_updates_with_any_scale(build: Callable[[], gs.Aggregator]) -> None:
    plain, scaled = (run(build, scaler_of(scale), "backward, accumulated") for scale in (None, 1000.0))
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert_near(a, b, 1e-4)


PRECISIONS: dict[str, tuple[torch.dtype | None, torch.dtype]] = {
    "float32": (None, torch.float32),
    "autocast to bfloat16": (torch.bfloat16, torch.float32),
    "autocast to float16": (torch.float16, torch.float32),
    "bfloat16 parameters": (None, torch.bfloat16),
}
"""What autocast computes in, and what parameters are."""

ENGINES = ["loop", "ghost", "batched", "func"]


def directions(
    build: Callable[[], gs.Aggregator], precision: str, scale: float | None, *, around: bool = False, **options: Any
) -> list[Tensor]:
    """The unscaled gradients that two surgeries add up to.

    Args:
        around: Whether the backward pass, too, is within autocast.
        options: The wrapper's.
    """
    low, dtype = PRECISIONS[precision]
    model = make_model(dtype)
    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), build(), shared=model["trunk"], **options
    )
    scaler = scaler_of(scale)
    for step in range(2):

        def losses(step: int = step) -> list[Tensor]:
            with torch.autocast("cpu", low, enabled=low is not None):
                return [loss * 5.0**-k for k, loss in enumerate(losses_of(model, step))]  # float16 ends at 65504

        with torch.autocast("cpu", low, enabled=low is not None and around):
            optimizer.backward(losses if options["engine"] == "func" else losses(), grad_scaler=scaler)
    if scale is not None:
        scaler.unscale_(optimizer)
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scope", ["all", "module", "tensor"])
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_and_scopes_see_unscaled_gradients(engine: str, scope: str, precision: str) -> None:
    for build in (gs.MGDA, gs.PCGrad, InverseSquare, Clipped):
        if build is Clipped and engine == "ghost":
            continue  # it has no rows
        plain, scaled = (directions(build, precision, s, engine=engine, scope=scope) for s in (None, 2.0**6))
        if precision == "autocast to float16":  # whose smallest numbers are coarse
            assert_near(flat(scaled), flat(plain), 1e-5)
        else:
            assert_same_bits(scaled, plain)


@pytest.mark.parametrize(("precision", "error"), [("autocast to bfloat16", 2e-2), ("autocast to float16", 3e-3)])
@pytest.mark.parametrize("engine", ENGINES)
def test_autocast_gives_the_direction_up_to_its_rounding(engine: str, precision: str, error: float) -> None:
    for build in (gs.MGDA, gs.PCGrad, InverseSquare):
        expected = flat(directions(build, "float32", None, engine=engine))
        found = directions(build, precision, 2.0**6, engine=engine)
        assert {gradient.dtype for gradient in found} == {torch.float32}
        assert_near(flat(found), expected, error)
        assert float((flat(found) - expected).norm()) > 0
        assert_same_bits(directions(build, precision, 2.0**6, engine=engine, around=True), found)


def test_the_scale_saves_what_float16_would_lose() -> None:
    """Gradients with respect to float16 activations vanish below 6e-8; the method sees those that were saved."""
    found = []
    for low, scale in ((None, None), (torch.float16, 2.0**16), (torch.float16, None)):
        model = make_model()
        optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.MGDA())
        with torch.autocast("cpu", low, enabled=low is not None):
            losses = [loss * 1e-7 for loss in losses_of(model)]
        found.append(optimizer.backward(losses, grad_scaler=scaler_of(scale)).gramian)
    exact, saved, lost = found
    assert_near(saved, exact, 1e-2)
    assert_near(saved[0, 0], exact[0, 0], 5e-2)
    assert lost[0, 0] == 0


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def test_jacobian_is_unscaled() -> None:
    model = make_model()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.MGDA())
    plain = optimizer.jacobian(losses_of(model))
    assert_same_bits(optimizer.jacobian(losses_of(model), grad_scaler=scaler_of(2.0**12)), plain)


@pytest.mark.parametrize("build", [gs.aggregators.SDMGrad, gs.aggregators.MoDo])
def test_observed_gradients_are_unscaled(build: Callable[[], gs.Aggregator]) -> None:
    found = []
    for scale in (None, 2.0**12):
        model, scaler = make_model(), scaler_of(scale)
        optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), build())
        optimizer.observe(losses_of(model, 1), losses_of(model, 2), grad_scaler=scaler)
        found.append(optimizer.backward(losses_of(model), grad_scaler=scaler).weights)
    assert_same_bits(*found)


def test_a_scaler_that_has_scaled_nothing_steps_nothing() -> None:
    """Forgetting ``grad_scaler=``, or unscaling before the surgery, raises in torch's scaler."""
    model, scaler = make_model(), scaler_of(2.0**4)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.MGDA())
    optimizer.backward(losses_of(model))
    with pytest.raises(AssertionError, match="_scale is None"):
        scaler.step(optimizer)
    optimizer.zero_grad()
    optimizer.backward(losses_of(model), grad_scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    scaler.unscale_(optimizer)
    optimizer.backward(losses_of(model), grad_scaler=scaler)
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(optimizer)


def test_a_wrong_factor_would_be_noticed() -> None:
    model, other = make_model(), make_model()
    for target, factor in ((model, 1.0), (other, 4.0)):
        optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(target.parameters(), lr=0.1), InverseSquare())
        optimizer.backward([loss * factor for loss in losses_of(target)])
    assert not torch.allclose(model["trunk"][0].weight.grad * 4, other["trunk"][0].weight.grad, rtol=1e-2)


def test_the_record_is_unscaled() -> None:
    model = make_model()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.MGDA())
    plain = optimizer.backward(losses_of(model))
    scaled = optimizer.backward(losses_of(model), grad_scaler=torch.amp.GradScaler("cpu", init_scale=2.0**12))
    assert torch.equal(plain.losses, scaled.losses)
    assert torch.equal(plain.gramian, scaled.gramian)
    assert torch.equal(plain.weights, scaled.weights)


def overflowing(losses: list[Tensor], model: nn.Module, own: Tensor, where: str) -> tuple[list[Tensor], Tensor]:
    """The losses and an extra loss, with a gradient that is not finite somewhere."""
    infinite = torch.tensor(float("inf"))
    first, second, third = losses
    extra = own.sum()
    if where == "a shared gradient":
        second = second + (model["trunk"][0].bias * infinite).sum()
    elif where == "a task-specific gradient":
        second = second + (model["heads"][1].bias * infinite).sum()
    elif where == "one loss":
        second = second * infinite
    elif where == "one loss, not a number":
        second = second * torch.nan
    else:
        tensor = {"the extra loss": own, "the extra loss, on what is shared": model["trunk"][0].bias}[where]
        extra = extra + (tensor * infinite).sum()
    return [first, second, third], extra


PLACES = [
    "a shared gradient",
    "a task-specific gradient",
    "one loss",
    "one loss, not a number",
    "the extra loss",
    "the extra loss, on what is shared",
]


class Overflow:
    """A model that is trained with a scaler, now and then through an overflow."""

    def __init__(self, build: Callable[[], Any], **options: Any) -> None:
        self.model, self.own = make_model(), nn.Parameter(torch.ones(2))
        inner = torch.optim.Adam([*self.model.parameters(), self.own], lr=0.01)
        if options:
            options["shared"] = self.model["trunk"]
        self.optimizer = gs.MultiObjectiveOptimizer(inner, build(), **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
        self.callable = options.get("engine") == "func"

    def step(self, where: str | None, *, through_scalarize: bool = False) -> None:
        self.optimizer.zero_grad()
        losses, extra = losses_of(self.model), self.own.sum()
        if where is not None:
            losses, extra = overflowing(losses, self.model, self.own, where)
        if through_scalarize:
            self.scaler.scale(self.optimizer.scalarize(losses, extra_loss=extra)).backward()
        elif self.callable:

            def closure() -> list[Tensor]:
                again = losses_of(self.model)
                return again if where is None else overflowing(again, self.model, self.own, where)[0]

            self.optimizer.backward(closure, extra_loss=extra, grad_scaler=self.scaler)
        else:
            self.optimizer.backward(losses, extra_loss=extra, grad_scaler=self.scaler)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def everything(self) -> Any:
        return copy.deepcopy([self.model.state_dict(), self.own.data, self.optimizer.state_dict()])


@pytest.mark.parametrize("through_scalarize", [False, True], ids=["backward", "scalarize"])
@pytest.mark.parametrize("name", METHODS)
def test_an_overflow_skips_the_step_and_leaves_the_state(name: str, through_scalarize: bool) -> None:
    """Weights, the optimizer's state, and the method's with the positions of its generators."""
    training = Overflow(METHODS[name])
    training.step(None)
    before = training.everything()
    for count, where in enumerate(PLACES, start=1):
        training.step(where, through_scalarize=through_scalarize)
        assert training.scaler.get_scale() == 2.0 ** (4 - count), where
        assert_same_bits(training.everything(), before)
    training.step(None)
    assert not torch.equal(training.everything()[1], before[1])


@pytest.mark.parametrize("scope", ["all", "tensor"])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_overflow_leaves_the_state_with_every_engine(engine: str, scope: str) -> None:
    for build in (gs.GradNorm, gs.PCGrad, gs.GradVac, gs.GradDrop):
        if build is gs.GradDrop and engine == "ghost":
            continue  # it has no rows
        training = Overflow(build, engine=engine, scope=scope)
        training.step(None)
        before = training.everything()
        places = PLACES[1:] if engine == "func" else PLACES  # it wants parameters to be used through their modules
        for count, where in enumerate(places, start=1):
            training.step(where)
            assert_same_bits(training.everything(), before)
            assert training.scaler.get_scale() == 2.0 ** (4 - count), where


def test_fused_adam_is_unscaled_once() -> None:
    """GradScaler leaves unscaling to a fused optimizer; through a wrapper it must do it itself."""
    models = []
    for wrap in (False, True):
        model = make_model()
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        if wrap:
            optimizer = gs.MultiObjectiveOptimizer(optimizer, gs.Sum())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for step in range(3):
            optimizer.zero_grad()
            loss = losses_of(model, step)[0]
            if wrap:
                optimizer.backward([loss], grad_scaler=scaler)
            else:
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.MGDA())
    surgery = optimizer.backward(losses_of(model))
    trunk = list(model["trunk"].parameters())
    rows = [
        torch.cat([g.double().flatten() for g in torch.autograd.grad(losses_of(model)[k], trunk)]) for k in range(3)
    ]
    torch.testing.assert_close(surgery.gramian, torch.stack(rows) @ torch.stack(rows).T)
    actual = torch.cat([parameter.grad.double().flatten() for parameter in trunk])
    torch.testing.assert_close(actual, gs.MGDA()(torch.stack(rows)), rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


BLOCK_METHODS = {
    name: build
    for name, build in METHODS.items()
    if isinstance(method := build(), gs.Aggregator) and not (method.uses_losses or method.remembers_gradients)
}


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", BLOCK_METHODS)
def test_block_sees_unscaled_gradients(name: str, rescale: bool) -> None:
    """Two backward passes before each step, under a scale that has changed since their forward passes."""
    models = []
    for scale in (None, 2.0**6):
        model, scaler = make_model(), scaler_of(scale)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        block = gs.ImpartialityBlock(3, BLOCK_METHODS[name](), rescale=rescale, grad_scaler=scaler)
        for step in range(3):
            optimizer.zero_grad()
            passes = []
            for part in (0.0, 0.5):
                views = block(model["trunk"](X + part))
                heads = zip(model["heads"], views, strict=True)
                passes.append(torch.stack([(head(z) - k).square().mean() for k, (head, z) in enumerate(heads)]).sum())
            if step:
                scaler.update()
            for loss in passes:
                scaler.scale(loss).backward()
            scaler.step(optimizer)
        models.append(model)
    plain, scaled = (dict(model.named_parameters()) for model in models)
    assert_same_bits(scaled, plain)


def test_fused_heads_under_autocast() -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 6), gs.FusedHeads(6, [1, 3, 2])
    block = gs.ImpartialityBlock(3, gs.Sum())
    gradients = []
    for enabled in (False, True):
        trunk.zero_grad()
        heads.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = heads(trunk(X), block)
        assert outputs[0].dtype == (torch.bfloat16 if enabled else torch.float32)
        torch.stack([(output.float() - 1).square().mean() for output in outputs]).sum().backward()
        found = [*trunk.parameters(), *heads.parameters()]
        assert all(parameter.grad.dtype == torch.float32 for parameter in found)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in found]))
    error = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert 0 < error < 0.02


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_the_blocks_rescaling_neither_under_nor_overflows(scale: float) -> None:
    z = torch.ones(4, requires_grad=True)
    first, second = gs.ImpartialityBlock(2, gs.Mean())(z)
    ((first * scale).sum() + (second * scale).sum()).backward()
    torch.testing.assert_close(z.grad / scale, torch.full((4,), 2.0))
