"""GradScaler, autocast and half precision: surgery sees unscaled gradients, overflow skips the step."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support import assert_same_bits
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
        return [block.clamp(-0.05, 0.05).sum(0) for block in blocks]


METHODS: dict[str, Any] = {
    **{cls.__name__: contract.build for cls, contract in CONTRACTS.items()},
    **{f"{cls.__name__}, a scalarizer": contract.build for cls, contract in scalarizers.CONTRACTS.items()},
    "a Gramian method of degree -1": InverseSquare,
    "a Jacobian method that clips": Clipped,
}


def run(
    build: Callable[[], gs.Aggregator], scale: float | None, through_scalarize: bool, steps: int = 4
) -> nn.Module:
    model = make_model()  # seeds the generators of random methods too
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters(), lr=0.01), build())
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, growth_interval=2, enabled=scale is not None)
    for step in range(steps):
        optimizer.zero_grad()
        if through_scalarize:
            scaler.scale(optimizer.scalarize(losses_of(model, step))).backward()
        else:
            optimizer.backward(losses_of(model, step), grad_scaler=scaler)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return model


@pytest.mark.parametrize("through_scalarize", [False, True], ids=["backward", "scalarize"])
@pytest.mark.parametrize("name", METHODS)
def test_same_updates_with_and_without_scaling(name: str, through_scalarize: bool) -> None:
    """The scale is a power of two and grows on the way: the updates are equal to the last bit."""
    plain = run(METHODS[name], None, through_scalarize)
    scaled = run(METHODS[name], 2.0**10, through_scalarize)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(a, b)


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


@pytest.mark.parametrize("where", ["trunk", "head"])
@pytest.mark.parametrize("name", METHODS)
def test_an_overflow_skips_the_step_and_leaves_the_state(name: str, where: str) -> None:
    model = make_model()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters(), lr=0.01), METHODS[name]())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)

    def one_step(overflow: bool) -> None:
        optimizer.zero_grad()
        losses = losses_of(model)
        if overflow:
            tensor = model["trunk"][0].bias if where == "trunk" else model["heads"][1].bias
            losses[1] = losses[1] + (tensor * torch.tensor(float("inf"))).sum()
        optimizer.backward(losses, grad_scaler=scaler)
        scaler.step(optimizer)
        scaler.update()

    one_step(overflow=False)
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    one_step(overflow=True)
    assert scaler.get_scale() == 2.0**3
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key
    for key, value in optimizer.state_dict()["gradsurgery"]["aggregator"].items():
        assert_same_bits(value, state["gradsurgery"]["aggregator"][key])
    assert optimizer.state_dict()["state"][0]["step"] == state["state"][0]["step"]
    one_step(overflow=False)
    assert not torch.equal(model.state_dict()["trunk.0.weight"], weights["trunk.0.weight"])


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


def test_block_sees_unscaled_gradients() -> None:
    grads = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**6)):
        z = torch.linspace(-1, 1, 6).view(2, 3).requires_grad_()
        block = gs.ImpartialityBlock(2, InverseSquare(), rescale=False, grad_scaler=scaler)
        first, second = block(z)
        loss = first.square().sum() + (second - 2).square().sum()
        (loss if scaler is None else scaler.scale(loss)).backward()
        grads.append(z.grad if scaler is None else z.grad / scaler.get_scale())
    assert torch.equal(*grads)


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
