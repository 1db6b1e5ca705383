"""The wrapper around a scalarizer: one backward pass, everything else as with an aggregator."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import assert_near, assert_same_bits
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.scalarizers import Scalarizer


class Balance(Scalarizer):
    """Divides each loss by the mean of what it was in all calls so far, this one included."""

    def __init__(self) -> None:
        super().__init__()
        self.register_per_loss("total", 0.0)
        self.register_per_loss("calls", 0.0)

    def scalar(self, losses: Tensor) -> Tensor:
        values = losses.detach()
        total, calls = self.recall("total", values) + values, self.recall("calls", values) + 1
        if self.training:
            self.remember("total", total)
            self.remember("calls", calls)
        return (losses * calls / total).sum()


class SecondLook(Scalarizer):
    """Weighs a loss by how often it rose in a step, plus one."""

    wants_second_look = True

    def __init__(self) -> None:
        super().__init__()
        self.register_per_loss("before", torch.nan)
        self.register_per_loss("rises", 0.0)

    def scalar(self, losses: Tensor) -> Tensor:
        self.remember("before", losses.detach())
        return (losses * (1.0 + self.recall("rises", losses.detach()))).sum()

    def look_again(self, losses: Tensor) -> None:
        rose = losses > self.recall("before", losses)
        self.remember("rises", self.recall("rises", losses) + rose)


class Problem:
    """A trunk and two heads; the second loss is large."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        self.trunk = nn.Linear(3, 4).to(dtype)
        self.heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 2)]).to(dtype)
        self.inputs = torch.randn(8, 3).to(dtype)
        self.parameters = [*self.trunk.parameters(), *self.heads.parameters()]

    def losses(self) -> dict[str, Tensor]:
        z = self.trunk(self.inputs).tanh()
        first, second = (head(z) for head in self.heads)
        return {"first": (first - 1).square().mean(), "second": 100 * (second + 2).square().mean()}

    def wrap(
        self, method: Any, inner: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    ) -> gs.MultiObjectiveOptimizer:
        return gs.MultiObjectiveOptimizer(inner(self.parameters, lr=1e-2), method)

    def gradients(self) -> list[Tensor | None]:
        return [None if parameter.grad is None else parameter.grad.clone() for parameter in self.parameters]


def by_hand(problem: Problem, weights: list[float], extra: Tensor | None = None) -> list[Tensor]:
    """Gradients of the weighed sum."""
    terms = [weight * loss for weight, loss in zip(weights, problem.losses().values(), strict=True)]
    total = sum(terms) if extra is None else sum(terms) + extra
    return list(torch.autograd.grad(total, problem.parameters, retain_graph=True))


def assert_all_near(found: list[Tensor | None], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert_near(one, other, 1e-12)


# --- gradients ---------------------------------------------------------------------------------------------------


def test_all_parameters_get_the_gradient_of_the_scalar() -> None:
    problem = Problem()
    values = [float(loss.detach()) for loss in problem.losses().values()]
    surgery = problem.wrap(Balance()).backward(problem.losses())
    expected = by_hand(problem, [1 / value for value in values])
    assert_all_near(problem.gradients(), expected)
    assert surgery.names == ("first", "second")
    assert_near(surgery.weights, torch.tensor([1 / value for value in values]), 1e-6)
    assert_near(surgery.losses, torch.tensor(values), 1e-6)
    assert surgery.gramian is None


def test_extra_loss_is_added_outside() -> None:
    problem = Problem()
    penalty = sum(parameter.square().sum() for parameter in problem.parameters)
    values = [float(loss.detach()) for loss in problem.losses().values()]
    expected = by_hand(problem, [1 / value for value in values], penalty)
    problem.wrap(Balance()).backward(problem.losses(), extra_loss=penalty)
    assert_all_near(problem.gradients(), expected)


def test_losses_of_several_dtypes_and_an_extra_loss_of_one_entry() -> None:
    points = [torch.ones(2, dtype=dtype, requires_grad=True) for dtype in (torch.float32, torch.float16)]
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(points, lr=0.1), Balance())
    losses = [4.0 * points[0].sum(), 2.0 * points[1].sum()]
    optimizer.backward(losses, extra_loss=0.5 * points[1][:1])
    assert [point.grad.dtype for point in points] == [torch.float32, torch.float16]
    assert [point.grad.tolist() for point in points] == [[0.5, 0.5], [1.0, 0.5]]


def test_a_callable_is_called_with_gradients() -> None:
    one, other = Problem(), Problem()
    one.wrap(Balance()).backward(one.losses())
    with torch.no_grad():
        other.wrap(Balance()).backward(other.losses)
    assert_same_bits(other.gradients(), one.gradients())


def test_gradients_add_up_over_calls() -> None:
    problem = Problem()
    optimizer = problem.wrap(Balance())
    optimizer.backward(problem.losses())
    once = problem.gradients()
    optimizer.backward(problem.losses)
    assert_all_near(problem.gradients(), [2 * gradient for gradient in once if gradient is not None])


def test_one_loss_is_bit_identical_to_the_plain_optimizer() -> None:
    plain, wrapped = Problem(torch.float32), Problem(torch.float32)
    inner = torch.optim.Adam(plain.parameters, lr=1e-2)
    optimizer = wrapped.wrap(gs.scalarizers.Sum(), torch.optim.Adam)
    for _ in range(3):
        inner.zero_grad()
        plain.losses()["first"].backward()
        inner.step()
        optimizer.zero_grad()
        optimizer.backward([wrapped.losses()["first"]])
        optimizer.step()
    assert_same_bits(list(wrapped.parameters), list(plain.parameters))


def test_scalarize_does_the_same() -> None:
    one, other = Problem(), Problem()
    one.wrap(Balance()).backward(one.losses())
    loss = other.wrap(Balance()).scalarize(other.losses())
    assert float(loss.detach()) == pytest.approx(float(sum(other.losses().values()).detach()))
    (loss * 4.0).backward()
    assert_all_near(other.gradients(), [4.0 * gradient for gradient in one.gradients() if gradient is not None])


def test_a_scaler_does_not_show() -> None:
    one, other = Problem(torch.float32), Problem(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plain, scaled = one.wrap(Balance()), other.wrap(Balance())
    for _ in range(4):
        plain.zero_grad()
        plain.backward(one.losses())
        plain.step()
        scaled.zero_grad()
        surgery = scaled.backward(other.losses(), grad_scaler=scaler)
        scaler.step(scaled)
        scaler.update()
    assert_same_bits(list(other.parameters), list(one.parameters))
    assert float(surgery.losses[1]) == pytest.approx(float(plain.last_surgery.losses[1]))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_an_overflow_leaves_the_state_as_it_was(where: str) -> None:
    problem = Problem()
    method = Balance()
    optimizer = problem.wrap(method)
    optimizer.backward(problem.losses())
    before = copy.deepcopy(method.state_dict())
    losses = problem.losses()
    if where == "loss":
        losses["first"] = losses["first"] * torch.inf
    else:
        weight = next(iter(problem.trunk.parameters()))
        losses["first"] = losses["first"] + (weight[0, 0] - weight[0, 0].detach()).sqrt()
    optimizer.zero_grad()
    optimizer.backward(losses)
    assert not all(bool(gradient.isfinite().all()) for gradient in problem.gradients())
    assert_same_bits(dict(method.state_dict()), dict(before))


def test_absent_losses_keep_their_state() -> None:
    problem = Problem()
    method = Balance()
    optimizer = problem.wrap(method)
    optimizer.backward(problem.losses())
    optimizer.backward({"second": problem.losses()["second"], "first": None})
    optimizer.backward({"third": problem.losses()["first"], "first": problem.losses()["first"]})
    assert method.calls.tolist() == [2.0, 2.0, 1.0]


# --- state -------------------------------------------------------------------------------------------------------


def run(problem: Problem, optimizer: gs.MultiObjectiveOptimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        optimizer.backward(problem.losses())
        optimizer.step()


def test_a_checkpoint_continues_bit_identically() -> None:
    straight, resumed = Problem(), Problem()
    optimizer = straight.wrap(Balance(), torch.optim.Adam)
    run(straight, optimizer, 3)
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    for parameter, source in zip(resumed.parameters, straight.parameters, strict=True):
        parameter.data.copy_(source.data)
    later = resumed.wrap(Balance(), torch.optim.Adam)
    later.load_state_dict(saved)
    run(straight, optimizer, 3)
    run(resumed, later, 3)
    assert_same_bits(list(resumed.parameters), list(straight.parameters))


def test_copies_continue_bit_identically() -> None:
    problem = Problem()
    optimizer = problem.wrap(Balance())
    run(problem, optimizer, 2)
    again, other = copy.deepcopy((problem, optimizer))
    run(problem, optimizer, 2)
    run(again, other, 2)
    assert_same_bits(list(again.parameters), list(problem.parameters))


# --- closures and second looks -----------------------------------------------------------------------------------


def test_a_closure_gets_a_second_look_after_the_step() -> None:
    problem = Problem()
    method = SecondLook()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(problem.parameters, lr=1e-3), method)
    modes = []

    def closure() -> dict[str, Tensor]:
        modes.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        return problem.losses()

    for _ in range(10):
        before = problem.losses()
        optimizer.step(closure)
        after = problem.losses()
        expected = [float(after[name].detach() > before[name].detach()) for name in before]
        assert (method.rises - torch.tensor(expected)).min() >= 0
    assert modes == [True, False] * 10
    assert method.rises.sum() > 0


@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_second_look_is_not_to_be_seen(set_to_none: bool) -> None:
    one, other = Problem(), Problem()
    for problem, method in ((one, SecondLook()), (other, gs.scalarizers.Sum())):
        optimizer = problem.wrap(method)

        def closure(problem: Problem = problem, optimizer: Any = optimizer) -> dict[str, Tensor]:
            optimizer.zero_grad(set_to_none)
            return problem.losses()

        optimizer.step(closure)
    assert_same_bits(one.gradients(), other.gradients())


def test_the_second_look_may_raise() -> None:
    problem = Problem()
    optimizer = problem.wrap(SecondLook())
    looks = []

    def closure() -> dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=False)
        looks.append(problem.gradients())
        if len(looks) == 2:
            raise RuntimeError("no second look")
        return problem.losses()

    expected = by_hand(problem, [1.0, 1.0])
    with pytest.raises(RuntimeError, match="no second look"):
        optimizer.step(closure)
    assert_all_near(problem.gradients(), expected)


def test_a_closure_with_a_backward_pass_of_its_own_gets_no_second_look() -> None:
    problem = Problem()
    method = SecondLook()
    optimizer = problem.wrap(method)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = problem.losses()
        optimizer.backward(losses)
        calls.append(1)
        return sum(losses.values()).detach()

    optimizer.step(closure)
    assert calls == [1]
    assert method.rises is None


def test_update_is_the_second_look_without_a_closure() -> None:
    problem = Problem()
    method = SecondLook()
    optimizer = problem.wrap(method)
    optimizer.backward({"first": problem.losses()["first"], "second": problem.losses()["second"]})
    optimizer.update({"second": torch.tensor(1e9), "first": None})
    assert method.rises.tolist() == [0.0, 1.0]
    optimizer.update([torch.tensor(torch.nan)])
    assert method.rises.tolist() == [0.0, 1.0]
    with pytest.raises(TypeError, match="^MultiObjectiveOptimizer: loss 'first' must be a scalar tensor"):
        optimizer.update({"first": 1.0})


def test_update_does_nothing_for_others() -> None:
    problem = Problem()
    for method in (gs.GradNorm(alpha=0.0), Balance()):
        optimizer = problem.wrap(method)
        optimizer.backward(problem.losses())
        before, gradients = copy.deepcopy(optimizer.state_dict()["gradsurgery"]), problem.gradients()
        optimizer.update({**problem.losses(), "new": torch.tensor(3.0)})
        after = optimizer.state_dict()["gradsurgery"]
        assert before["aggregator"]
        assert_same_bits(after.pop("aggregator"), before.pop("aggregator"))
        assert after == before
        assert_same_bits(problem.gradients(), gradients)


def test_weights_stay_the_same_within_a_step() -> None:
    problem = Problem()
    method = Balance()
    inner = torch.optim.LBFGS(problem.parameters, lr=0.1, max_iter=5)
    optimizer = gs.MultiObjectiveOptimizer(inner, method)
    calls = []

    def closure() -> dict[str, Tensor]:
        optimizer.zero_grad()
        calls.append(optimizer.last_surgery)
        return problem.losses()

    optimizer.step(closure)
    assert len(calls) > 2
    assert_same_bits(calls[-1].weights, calls[1].weights)
    assert method.calls.tolist() == [1.0, 1.0]


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"engine": "func"}, {"engine": "loop"}, {"scope": "tensor"}])
def test_engine_and_scope_are_not_for_scalarizers(options: dict[str, Any]) -> None:
    problem = Problem()
    with pytest.raises(ValueError, match="^MultiObjectiveOptimizer: `engine` and `scope` must be left out"):
        gs.MultiObjectiveOptimizer(torch.optim.SGD(problem.parameters, lr=0.1), Balance(), **options)


def test_nothing_is_half_written() -> None:
    class Raises(Balance):
        def scalar(self, losses: Tensor) -> Tensor:
            super().scalar(losses)
            raise RuntimeError("after it has learnt")

    problem = Problem()
    method = Raises()
    with pytest.raises(RuntimeError, match="after it has learnt"):
        problem.wrap(method).backward(problem.losses())
    assert problem.gradients() == [None] * len(problem.parameters)
    assert method.state_dict() == {}


# --- the Jacobian ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loop", "func"])
def test_jacobian_is_that_of_the_shared_parameters(engine: str) -> None:
    problem = Problem()
    method = gs.GradNorm(alpha=0.0)
    inner = torch.optim.SGD(problem.parameters, lr=0.1)
    optimizer = gs.MultiObjectiveOptimizer(inner, method, shared=problem.trunk, engine=engine)
    blocks = optimizer.jacobian(problem.losses)
    losses = list(problem.losses().values())
    for position, parameter in enumerate(problem.trunk.parameters()):
        rows = [torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses]
        assert_near(blocks[position], torch.stack(rows), 1e-12)
    assert problem.gradients() == [None] * len(problem.parameters)
    assert method.state_dict() == {}
    kept = blocks[0].clone()
    with torch.no_grad():
        problem.trunk.weight += 1.0
    optimizer.backward(problem.losses)
    assert not torch.equal(optimizer.jacobian(problem.losses)[0], kept)
    assert_same_bits(blocks[0], kept)


def test_jacobian_with_a_scale_is_not_scaled() -> None:
    """Gradients that float16 cannot hold come out in float32."""
    point = torch.ones(2, dtype=torch.float16, requires_grad=True)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD([point], lr=0.1), gs.Sum(), shared=point)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def losses() -> list[Tensor]:
        return [2.0**-30 * point.float().sum(), point.float()[0]]

    (found,) = optimizer.jacobian(losses, grad_scaler=scaler)
    assert (found.dtype, found.tolist()) == (torch.float32, [[2.0**-30] * 2, [torch.inf, 0.0]])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    assert optimizer.jacobian(losses, grad_scaler=scaler)[0].tolist() == [[2.0**-30] * 2, [1.0, 0.0]]
    (plain,) = optimizer.jacobian(losses)
    assert (plain.dtype, plain.tolist()) == (torch.float16, [[0.0, 0.0], [1.0, 0.0]])


def test_jacobian_of_sparse_gradients_is_dense() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(table.parameters(), lr=0.1), gs.Sum(), shared=table)
    first, second = table(torch.tensor([0, 3])).sum(), 2 * table(torch.tensor([3, 3])).sum()
    (block,) = optimizer.jacobian([first, second])
    assert block[:, :, 0].tolist() == [[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 4.0, 0.0]]


def test_observe_keeps_losses_apart_by_name() -> None:
    problem = Problem()
    by_hand = gs.aggregators.MoDo(gamma=1e-3)
    inner = torch.optim.SGD(problem.parameters, lr=0.0)
    optimizer = gs.MultiObjectiveOptimizer(inner, gs.aggregators.MoDo(gamma=1e-3), shared=problem.trunk)
    for _ in range(3):
        optimizer.observe(problem.losses(), problem.losses)
        rows = optimizer.jacobian(problem.losses())
        by_hand.observe(rows, rows)
    expected = by_hand.weights(torch.eye(2, dtype=torch.float64))
    assert abs(float(expected[0] - expected[1])) > 1e-3
    assert_same_bits(optimizer.backward(problem.losses()).weights, expected)
    losses = problem.losses()
    swapped = optimizer.backward({"second": losses["second"], "first": losses["first"]})
    assert_same_bits(swapped.weights, expected.flip(0))


def test_observe_refuses_what_it_cannot_use() -> None:
    problem = Problem()
    with pytest.raises(TypeError, match=r"^MultiObjectiveOptimizer: `aggregator` must look at .*, got UPGrad\.$"):
        problem.wrap(gs.UPGrad()).observe(problem.losses(), problem.losses())
    optimizer = problem.wrap(gs.aggregators.MoDo())
    with pytest.raises(ValueError, match=r"\['first', 'second'\], got \['second'\]\.$"):
        optimizer.observe(problem.losses(), {"first": None, "second": problem.losses()["second"]})
    assert optimizer.aggregator.state_dict() == {}
