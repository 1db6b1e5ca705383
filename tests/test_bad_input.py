"""What goes wrong raises with the name of what is wrong and what to do, and leaves everything as it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradsurgery as gs


def make() -> tuple[nn.Module, gs.MultiObjectiveOptimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    named = torch.optim.SGD(model.named_parameters(), lr=0.1)
    return model, gs.MultiObjectiveOptimizer(named, gs.GradNorm(alpha=0.0))


def outputs(model: nn.Module) -> Tensor:
    return model(torch.ones(1, 3))[0]


LOSSES: dict[str, tuple[Callable[[nn.Module], Any], type[Exception], str]] = {
    "their sum": (lambda m: outputs(m).sum(), TypeError, "got a tensor of shape .* not their sum"),
    "a vector": (lambda m: outputs(m), TypeError, r"got a tensor of shape \(2,\)"),
    "a number": (lambda m: 3.0, TypeError, "must be a sequence or dict of scalar tensors.* got float"),
    "text": (lambda m: "loss", TypeError, "got str"),
    "none at all": (lambda m: [], ValueError, "at least one loss, got an empty one"),
    "an empty dict": (lambda m: {}, ValueError, "at least one loss"),
    "all absent": (lambda m: [None, None], ValueError, "2 that are all None"),
    "not a scalar": (
        lambda m: {"a": outputs(m)[0], "b": outputs(m)},
        ValueError,
        r"loss 'b' must be .* shape \(2,\)",
    ),
    "an integer": (lambda m: {"a": outputs(m)[0], "b": torch.tensor(1)}, ValueError, "loss 'b' .* torch.int64"),
    "a float": (lambda m: {"a": outputs(m)[0], "b": 0.0}, TypeError, "loss 'b' .* got float. Hand over None"),
    "a view of values": (
        lambda m: {"a": outputs(m)[0]}.values(),
        TypeError,
        "got dict_values. Hand over a dict",
    ),
    "names twice": (
        lambda m: {1: outputs(m)[0], "1": outputs(m)[1]},
        ValueError,
        r"different names, got \['1'",
    ),
    "no graph": (lambda m: {"a": outputs(m)[0].detach()}, ValueError, r"requires a gradient.*\['a'\].*no_grad"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    model, optimizer = make()
    optimizer.backward(list(outputs(model)))
    before = copy.deepcopy(([parameter.grad for parameter in model.parameters()], optimizer.state_dict()))
    build, kind, message = LOSSES[name]
    with pytest.raises(kind, match=message):
        optimizer.backward(build(model))
    for parameter, gradient in zip(model.parameters(), before[0], strict=True):
        assert torch.equal(parameter.grad, gradient)
    for key, value in optimizer.state_dict()["gradsurgery"]["aggregator"].items():
        assert torch.equal(value, before[1]["gradsurgery"]["aggregator"][key])


@pytest.mark.parametrize(
    "result", [lambda m: outputs(m), lambda m: {"a": outputs(m)[0]}.values()], ids=["vector", "values"]
)
def test_closures(result: Callable[[nn.Module], Any]) -> None:
    model, optimizer = make()
    with pytest.raises(TypeError, match="`closure` must return a dict, list or tuple of losses"):
        optimizer.step(lambda: result(model))


def test_checkpoints_of_another_size_or_version() -> None:
    model, optimizer = make()
    optimizer.backward(list(outputs(model)))
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(optimizer.state_dict())
    for entry, message in (
        (
            {**state["gradsurgery"], "shared": [99]},
            r"over the same 2 parameters, got shared ones at \[99\]",
        ),
        ({**state["gradsurgery"], "version": 99}, "must be of version 1 .* got version 99"),
        ({"version": 1}, r"with \['version'\]"),
    ):
        changed = {**state, "gradsurgery": entry, "param_groups": [{**state["param_groups"][0], "lr": 7.0}]}
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(changed)
        assert optimizer.param_groups[0]["lr"] == 0.1
        for key, value in optimizer.state_dict()["gradsurgery"]["aggregator"].items():
            assert torch.equal(value, before["gradsurgery"]["aggregator"][key])


def test_a_loss_with_one_element_under_no_grad() -> None:
    model, optimizer = make()
    loss = outputs(model)[:1]
    with torch.no_grad():
        optimizer.backward([loss, loss * 2])
    assert model.weight.grad is not None


@pytest.mark.parametrize("extra", [3.0, [torch.tensor(1.0)], torch.ones(2)], ids=["number", "list", "vector"])
def test_extra_loss(extra: Any) -> None:
    model, optimizer = make()
    with pytest.raises(TypeError, match="`extra_loss` must be a scalar tensor or None"):
        optimizer.backward(list(outputs(model)), extra_loss=extra)
    with pytest.raises(TypeError, match="`extra_loss`"):
        optimizer.scalarize(list(outputs(model)), extra_loss=extra)


def test_construction() -> None:
    plain = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"`optimizer` must be a torch.optim.Optimizer .* got list"):
        gs.MultiObjectiveOptimizer([plain], gs.Sum())
    with pytest.raises(TypeError, match="not wrapped yet"):
        gs.MultiObjectiveOptimizer(gs.MultiObjectiveOptimizer(plain, gs.Sum()), gs.Sum())
    with pytest.raises(TypeError, match=r"`aggregator` must be .* got the class MGDA\. Build it: MGDA\(\)\."):
        gs.MultiObjectiveOptimizer(plain, gs.MGDA)
    with pytest.raises(TypeError, match=r"got 'mgda'\. By name it is gs\.get\('mgda'\)\."):
        gs.MultiObjectiveOptimizer(plain, "mgda")
    with pytest.raises(ValueError, match=r"`engine` must be one of .* got 'lop'"):
        gs.MultiObjectiveOptimizer(plain, gs.Sum(), engine="lop")
    with pytest.raises(ValueError, match="`scope` must be one of .* got 'layer'"):
        gs.MultiObjectiveOptimizer(plain, gs.Sum(), scope="layer")
    with pytest.raises(ValueError, match="`shared` must name at least one"):
        gs.MultiObjectiveOptimizer(plain, gs.Sum(), shared=[])
    with pytest.raises(TypeError, match="`shared` must be modules or parameters, got str"):
        gs.MultiObjectiveOptimizer(plain, gs.Sum(), shared=["trunk"])


def test_two_wrappers_over_one_parameter() -> None:
    model, first = make()
    second = gs.MultiObjectiveOptimizer(torch.optim.SGD([model.weight], lr=0.1), gs.Sum())
    second.backward(list(outputs(model)))
    model.zero_grad()
    with pytest.raises(ValueError, match="the only one over its parameters, got parameter 'weight'"):
        first.backward(list(outputs(model)))
    assert model.weight.grad is None
    del second
    first.backward(list(outputs(model)))
    assert model.weight.grad is not None


def test_two_wrappers_over_one_optimizer_may_take_turns() -> None:
    model, first = make()
    second = gs.MultiObjectiveOptimizer(first.optimizer, gs.MGDA())
    for optimizer in (first, second, first):
        optimizer.backward(list(outputs(model)))
        optimizer.step()


def test_wrapping_anew_is_no_mistake() -> None:
    model, optimizer = make()
    for _ in range(3):
        optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.Sum())
        optimizer.backward(list(outputs(model)))


def test_post_accumulate_grad_hooks() -> None:
    model, optimizer = make()
    handle = model.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(RuntimeError, match="post-accumulate-grad hooks, got parameter 'weight'"):
        optimizer.backward(list(outputs(model)))
    assert model.bias.grad is None
    handle.remove()
    optimizer.backward(list(outputs(model)))


def test_complex_parameters() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD([weight], lr=0.1), gs.Sum())
    with pytest.raises(TypeError, match="real parameters only, got a parameter of shape .* torch.complex64"):
        optimizer.backward([weight.abs().sum()])


def test_a_method_that_raises_leaves_everything() -> None:
    model = nn.Linear(3, 2)
    method = gs.Chain(gs.GradNorm(alpha=0.0), gs.MGDA(normalization="loss"))
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), method)
    with pytest.raises(ValueError, match="MGDA: `losses` must be positive"):
        optimizer.backward([-outputs(model)[0].square(), outputs(model)[1].square()])
    assert model.weight.grad is None
    assert optimizer.state_dict()["gradsurgery"]["aggregator"] == {}
    assert optimizer.state_dict()["gradsurgery"]["losses"] == []


def test_freed_graphs_are_reported_by_torch() -> None:
    model, optimizer = make()
    losses = list(outputs(model))
    optimizer.backward(losses)
    with pytest.raises(RuntimeError, match="second time"):
        optimizer.backward([loss.exp() for loss in losses])


def test_sharded_parameters_need_an_engine_of_their_own(tmp_path: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        weight = nn.Parameter(DTensor.from_local(torch.ones(4), init_device_mesh("cpu", (1,))))
        inner = torch.optim.SGD([weight], lr=0.1)
        with pytest.raises(RuntimeError, match="`engine` must be 'sharded' .* parameter of shape .*, a DTensor"):
            gs.MultiObjectiveOptimizer(inner, gs.Sum(), engine="loop").backward([weight.sum().to_local()])
        surgery = gs.MultiObjectiveOptimizer(inner, gs.Sum()).backward([weight.sum().to_local() * k for k in (1, 2)])
        assert surgery.engine.startswith("sharded")
        assert torch.equal(weight.grad.to_local(), torch.full((4,), 3.0))
    finally:
        torch.distributed.destroy_process_group()
