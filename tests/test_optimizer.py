"""The wrapper is an optimizer: everything that is built around optimizers goes on working."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

import gradsurgery as gs
from gradsurgery.aggregators import CONTRACTS


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
    return nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleList(nn.Linear(5, 1) for _ in range(3))})


X = torch.linspace(-1, 1, 32).view(8, 4)


def losses_of(model: nn.Module, step: int = 0) -> dict[str, Tensor]:
    z = model["trunk"](X + 0.1 * step)
    return {f"task {k}": (head(z) - k).square().mean() * 10.0**k for k, head in enumerate(model["heads"])}


def adam(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01, **options)


def train(model: nn.Module, optimizer: gs.MultiObjectiveOptimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        optimizer.backward(losses_of(model, step))
        optimizer.step()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_assert_same_can_fail() -> None:
    one, other = make_model(), make_model()
    assert_same(one, other)
    with torch.no_grad():
        other["heads"][0].bias += 1e-7
    with pytest.raises(AssertionError, match=r"heads\.0\.bias"):
        assert_same(one, other)


# --- it is the wrapped optimizer ---------------------------------------------------------------------------------


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01),
    "adam": adam,
    "adam fused": lambda model: adam(model, fused=True),
    "adam foreach": lambda model: adam(model, foreach=True),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.01),
}
IDENTITIES = [cls for cls, contract in CONTRACTS.items() if "one_loss_is_identity" in contract.guarantees]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_sum_of_the_losses_within_rounding(make: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    one, other = make_model(), make_model()
    plain, wrapped = make(one), gs.MultiObjectiveOptimizer(make(other), gs.Sum())
    for step in range(5):
        plain.zero_grad()
        torch.stack(list(losses_of(one, step).values())).sum().backward()
        plain.step()
    train(other, wrapped, 5)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("declared", [False, True], ids=["discovered", "declared"])
@pytest.mark.parametrize("cls", IDENTITIES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_one_loss_is_bit_identical(
    make: Callable[[nn.Module], torch.optim.Optimizer], cls: type[gs.Aggregator], declared: bool
) -> None:
    one, other = make_model(), make_model()
    plain = make(one)
    shared = other["trunk"] if declared else None
    wrapped = gs.MultiObjectiveOptimizer(make(other), CONTRACTS[cls].build(), shared=shared)
    for step in range(4):
        plain.zero_grad()
        losses_of(one, step)["task 1"].backward()
        plain.step()
        wrapped.zero_grad()
        wrapped.backward([losses_of(other, step)["task 1"]])
        wrapped.step()
    assert_same(one, other)


def test_it_is_an_optimizer_that_delegates() -> None:
    model = make_model()
    plain = adam(model)
    wrapped = gs.MultiObjectiveOptimizer(plain, gs.MGDA())
    assert isinstance(wrapped, torch.optim.Optimizer)
    assert wrapped.optimizer is plain
    assert wrapped.param_groups is plain.param_groups
    assert wrapped.defaults is plain.defaults
    train(model, wrapped, 1)
    assert wrapped.state is plain.state
    assert len(wrapped.state) == len(list(model.parameters()))
    assert "Adam" in repr(wrapped)
    assert "MultiObjectiveOptimizer" in repr(wrapped)
    wrapped.state = state = {}
    assert plain.state is state
    wrapped.param_groups = groups = plain.param_groups[:]
    assert plain.param_groups is groups
    wrapped.defaults = defaults = dict(plain.defaults)
    assert plain.defaults is defaults


@pytest.mark.parametrize("name", ["_step_supports_amp_scaling", "grad_scale", "found_inf", "fused", "anything"])
def test_nothing_is_delegated_by_accident(name: str) -> None:
    wrapped = gs.MultiObjectiveOptimizer(adam(make_model(), fused=True), gs.MGDA())
    assert not hasattr(wrapped, name)


def test_zero_grad_and_clipping() -> None:
    model = make_model()
    wrapped = gs.MultiObjectiveOptimizer(adam(model), gs.PCGrad())
    wrapped.backward(losses_of(model))
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    assert norm > 0.5
    clipped = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(clipped.norm(), torch.tensor(0.5), rtol=1e-4, atol=1e-4)
    torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
    assert max(float(parameter.grad.abs().max()) for parameter in model.parameters()) <= 0.01
    wrapped.zero_grad(set_to_none=False)
    assert all(parameter.grad.eq(0).all() for parameter in model.parameters())
    wrapped.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_accumulation_adds_one_surgery_a_call() -> None:
    model, twin = make_model(), make_model()
    wrapped = gs.MultiObjectiveOptimizer(adam(model), gs.MGDA())
    parts = []
    for step in range(3):
        other = gs.MultiObjectiveOptimizer(adam(twin), gs.MGDA())
        other.zero_grad()
        other.backward(losses_of(twin, step))
        parts.append([parameter.grad.clone() for parameter in twin.parameters()])
        wrapped.backward(losses_of(model, step))
    for parameter, *pieces in zip(model.parameters(), *parts, strict=True):
        torch.testing.assert_close(parameter.grad, torch.stack(pieces).sum(0))


def test_add_param_group_joins_the_surgery() -> None:
    model = make_model()
    wrapped = gs.MultiObjectiveOptimizer(torch.optim.SGD(model["heads"].parameters(), lr=0.1), gs.MGDA())
    wrapped.add_param_group({"params": list(model["trunk"].parameters()), "lr": 0.5})
    assert len(wrapped.optimizer.param_groups) == 2
    before = model["trunk"][0].weight.detach().clone()
    wrapped.backward(losses_of(model))
    wrapped.step()
    torch.testing.assert_close(model["trunk"][0].weight, before - 0.5 * model["trunk"][0].weight.grad)


# --- schedulers --------------------------------------------------------------------------------------------------


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, 2, cycle_momentum=True),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 2), lr_scheduler.ExponentialLR(o, 0.8)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.8)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, 3),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_built_before_and_after_wrapping(name: str, when: str) -> None:
    rates: list[list[float]] = []
    models = []
    for wrap in (False, True):
        model = make_model()
        plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if wrap:
            scheduler = SCHEDULERS[name](plain) if when == "before" else None
            optimizer = gs.MultiObjectiveOptimizer(plain, gs.Sum())
            scheduler = scheduler or SCHEDULERS[name](optimizer)
        else:
            optimizer, scheduler = plain, SCHEDULERS[name](plain)
        rates.append([])
        for step in range(5):
            optimizer.zero_grad()
            loss = losses_of(model, step)["task 0"]
            optimizer.backward([loss]) if wrap else loss.backward()
            optimizer.step()
            scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
            rates[-1].append(optimizer.param_groups[0]["lr"])
        models.append(model)
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1
    assert_same(*models)


def test_scheduler_warns_about_order_as_on_a_plain_optimizer() -> None:
    wrapped = gs.MultiObjectiveOptimizer(adam(make_model()), gs.Sum())
    scheduler = lr_scheduler.ExponentialLR(wrapped, 0.9)
    with pytest.warns(UserWarning, match=r"lr_scheduler.step\(\)` before `optimizer.step\(\)"):
        scheduler.step()


# --- hooks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["wrapper", "wrapped optimizer"])
def test_hooks_fire_once_and_receive_whom_they_were_registered_on(where: str) -> None:
    model = make_model()
    plain = adam(model)
    wrapped = gs.MultiObjectiveOptimizer(plain, gs.Sum())
    target = wrapped if where == "wrapper" else plain
    calls: list[tuple[str, Any]] = []

    def note(kind: str) -> Callable[..., None]:
        return lambda optimizer, *_: calls.append((kind, optimizer))

    handles = [
        target.register_step_pre_hook(note("step pre")),
        target.register_step_post_hook(note("step post")),
        target.register_state_dict_pre_hook(note("state pre")),
        target.register_state_dict_post_hook(note("state post")),
        target.register_load_state_dict_pre_hook(note("load pre")),
        target.register_load_state_dict_post_hook(note("load post")),
    ]
    train(model, wrapped, 1)
    wrapped.load_state_dict(wrapped.state_dict())
    assert [kind for kind, _ in calls] == [
        "step pre",
        "step post",
        "state pre",
        "state post",
        "load pre",
        "load post",
    ]
    assert all(optimizer is target for _, optimizer in calls)
    for handle in handles:
        handle.remove()
    train(model, wrapped, 1)
    assert len(calls) == 6


def test_global_hooks_and_profiling_fire_once() -> None:
    model = make_model()
    wrapped = gs.MultiObjectiveOptimizer(adam(model), gs.Sum())
    calls = []
    handle = register_optimizer_step_pre_hook(lambda *_: calls.append(1))
    try:
        train(model, wrapped, 1)
    finally:
        handle.remove()
    assert calls == [1]


def test_a_hook_may_change_the_arguments_of_step() -> None:
    model = make_model()
    wrapped = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.Sum())
    seen = []

    def hook(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return (args[0], lambda: seen.append("changed")), kwargs

    wrapped.register_step_pre_hook(hook)
    wrapped.step()
    assert seen == ["changed"]


def test_hooks_do_not_keep_the_wrapper_alive() -> None:
    import gc
    import weakref

    plain = adam(make_model())
    wrapped = gs.MultiObjectiveOptimizer(plain, gs.Sum())
    wrapped.register_step_pre_hook(lambda *_: None)
    watch = weakref.ref(wrapped)
    del wrapped
    gc.collect()
    assert watch() is None


# --- copies and checkpoints --------------------------------------------------------------------------------------


METHODS: dict[str, Callable[[], gs.Aggregator]] = {
    cls.__name__: contract.build for cls, contract in CONTRACTS.items()
}


def saved(value: Any) -> Any:
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


@pytest.mark.parametrize("name", METHODS)
def test_resuming_from_a_checkpoint_is_bit_identical(name: str) -> None:
    model = make_model()
    wrapped = gs.MultiObjectiveOptimizer(adam(model), METHODS[name]())
    train(model, wrapped, 3)
    checkpoint = saved({"model": model.state_dict(), "optimizer": wrapped.state_dict()})
    train(model, wrapped, 4, start=3)
    other = make_model(seed=5)
    resumed = gs.MultiObjectiveOptimizer(adam(other), METHODS[name]())
    other.load_state_dict(checkpoint["model"])
    resumed.load_state_dict(checkpoint["optimizer"])
    train(other, resumed, 4, start=3)
    assert_same(model, other)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("name", METHODS)
def test_copies_continue_bit_identically(name: str, how: Callable[[Any], Any]) -> None:
    model = make_model()
    wrapped = gs.MultiObjectiveOptimizer(adam(model), METHODS[name]())
    train(model, wrapped, 3)
    other, twin = how((model, wrapped))
    assert twin.optimizer is not wrapped.optimizer
    train(model, wrapped, 3, start=3)
    train(other, twin, 3, start=3)
    assert_same(model, other)
    with pytest.raises(AssertionError):
        assert_same(model, make_model())


def test_checkpoints_of_plain_optimizers_both_ways() -> None:
    model = make_model()
    plain = adam(model)
    torch.stack(list(losses_of(model).values())).sum().backward()
    plain.step()
    wrapped = gs.MultiObjectiveOptimizer(adam(model), gs.GradNorm(alpha=0.0))
    wrapped.load_state_dict(saved(plain.state_dict()))
    assert len(wrapped.state) == len(plain.state)
    train(model, wrapped, 2)
    fresh = adam(model)
    fresh.load_state_dict(saved(wrapped.state_dict()))
    for parameter in model.parameters():
        assert torch.equal(fresh.state[parameter]["exp_avg"], wrapped.state[parameter]["exp_avg"])


def test_a_checkpoint_that_does_not_fit_changes_nothing() -> None:
    model = make_model()
    wrapped = gs.MultiObjectiveOptimizer(adam(model), gs.GradNorm(alpha=0.0))
    train(model, wrapped, 2)
    before = copy.deepcopy(wrapped.state_dict())
    small = nn.Linear(2, 2)
    other = gs.MultiObjectiveOptimizer(adam(small), gs.GradNorm(alpha=0.0))
    other.backward([small(torch.ones(1, 2)).sum(), small(torch.zeros(1, 2)).sum()])
    with pytest.raises(ValueError, match="doesn't match the size"):
        wrapped.load_state_dict(other.state_dict())
    after = wrapped.state_dict()
    for key, value in before["gradsurgery"]["aggregator"].items():
        assert torch.equal(after["gradsurgery"]["aggregator"][key], value)
    assert after["state"][0]["step"] == before["state"][0]["step"]


def test_a_checkpoint_of_another_method_starts_the_method_afresh() -> None:
    model = make_model()
    first = gs.MultiObjectiveOptimizer(adam(model), gs.GradNorm(alpha=0.0))
    train(model, first, 2)
    second = gs.MultiObjectiveOptimizer(adam(model), gs.MGDA())
    with pytest.warns(UserWarning, match="the checkpoint holds the state of GradNorm; MGDA starts afresh"):
        second.load_state_dict(first.state_dict())
    train(model, second, 1)


@pytest.mark.parametrize("kinds", [(gs.scalarizers, gs.aggregators), (gs.aggregators, gs.scalarizers)])
def test_a_scalarizer_is_not_the_aggregator_of_its_name(kinds: tuple[Any, Any]) -> None:
    model = make_model()
    first, second = (gs.MultiObjectiveOptimizer(adam(model), kind.Random()) for kind in kinds)
    with pytest.warns(
        UserWarning, match=r"state of (scalarizers\.Random; Random|Random; scalarizers\.Random) starts af"
    ):
        second.load_state_dict(first.state_dict())


def test_resuming_gives_losses_their_numbers_by_name() -> None:
    """The first losses after resuming come in another order, and one of them is missing."""

    def go_on(model: nn.Module, wrapped: gs.MultiObjectiveOptimizer) -> None:
        for step in range(3, 6):
            losses = losses_of(model, step)
            names = ["task 2", "task 0"] if step == 3 else ["task 2", "task 1", "task 0"]
            wrapped.zero_grad()
            wrapped.backward({name: losses[name] for name in names})
            wrapped.step()

    model, other = make_model(), make_model(seed=5)
    wrapped, resumed = (
        gs.MultiObjectiveOptimizer(adam(each), gs.GradNorm(alpha=0.0), shared=each["trunk"])
        for each in (model, other)
    )
    train(model, wrapped, 3)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(saved(wrapped.state_dict()))
    go_on(model, wrapped)
    go_on(other, resumed)
    assert_same(model, other)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["deepcopy", "pickle"]
)
def test_copies_draw_on_from_where_the_original_is(how: Callable[[Any], Any]) -> None:
    method = gs.aggregators.Random(generator=torch.Generator().manual_seed(3))
    gramian = torch.eye(3, dtype=torch.float64)
    first = method.weights(gramian)
    twin = how(method)
    expected = method.weights(gramian)
    assert not torch.equal(first, expected)
    assert torch.equal(twin.weights(gramian), expected)


def test_reset_hands_out_a_copy_of_the_first_state() -> None:
    class Counts(gs.Sum):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(2))

    method = Counts()
    for _ in range(2):
        method.reset()
        assert method.calls.tolist() == [0.0, 0.0]
        method.state_dict()["calls"].add_(1.0)


def test_the_methods_state_counts_only_finite_steps() -> None:
    """A head's gradient overflows: nothing of the method may move, as the step will be skipped."""
    model = make_model()
    wrapped = gs.MultiObjectiveOptimizer(adam(model), gs.Chain(gs.GradNorm(alpha=0.0), gs.PCGrad()))
    train(model, wrapped, 2)
    before = copy.deepcopy(wrapped.aggregator.state_dict())
    z = model["trunk"](X)
    losses = [head(z).square().mean() for head in model["heads"]]
    losses[0] = losses[0] + (model["heads"][0].bias * torch.tensor(float("inf"))).sum()
    wrapped.backward(losses)
    assert not all(parameter.grad.isfinite().all() for parameter in model["heads"].parameters())
    for key, value in wrapped.aggregator.state_dict().items():
        assert torch.equal(value, before[key]), key


# --- closures ----------------------------------------------------------------------------------------------------


def test_lbfgs_with_line_search_minimises_the_weighted_sum() -> None:
    """Two quadratics with everything shared: the weights are those of the first call, in all calls of a step."""
    point = nn.Parameter(torch.tensor([4.0, -3.0]))
    plain = torch.optim.LBFGS([point], lr=1.0, max_iter=20, line_search_fn="strong_wolfe")
    wrapped = gs.MultiObjectiveOptimizer(plain, gs.MGDA())
    weights: list[Tensor] = []

    def closure() -> dict[str, Tensor]:
        wrapped.zero_grad()
        if wrapped.last_surgery is not None:
            weights.append(wrapped.last_surgery.weights)
        return {"a": (point - 1).square().sum(), "b": 9 * (point + 1).square().sum()}

    first = wrapped.step(closure)
    w = weights[0]
    assert all(torch.equal(value, w) for value in weights)
    assert len(weights) >= 2
    expected = (w[0] - 9 * w[1]) / (w[0] + 9 * w[1])
    torch.testing.assert_close(point.detach().double(), expected.expand(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first, w[0] * 25.0 + w[1] * 9 * 29.0)


@pytest.mark.parametrize("result", ["scalar", "none"])
def test_a_closure_that_did_its_own_backward_passes_through(result: str) -> None:
    one, other = make_model(), make_model()
    plain, wrapped = adam(one), gs.MultiObjectiveOptimizer(adam(other), gs.MGDA())

    def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
        def closure() -> Any:
            optimizer.zero_grad()
            loss = losses_of(model)["task 2"]
            loss.backward()
            return loss if result == "scalar" else None

        return closure

    for _ in range(3):
        expected = plain.step(closure_of(one, plain))
        actual = wrapped.step(closure_of(other, wrapped))
        assert expected is actual is None or torch.equal(expected, actual)
    assert wrapped.last_surgery is None
    assert_same(one, other)


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_a_closure_that_returns_losses_is_differentiated(kind: type) -> None:
    one, other = make_model(), make_model()
    by_hand = gs.MultiObjectiveOptimizer(adam(one), gs.UPGrad())
    wrapped = gs.MultiObjectiveOptimizer(adam(other), gs.UPGrad())
    train(one, by_hand, 1)

    def closure() -> Any:
        wrapped.zero_grad()
        losses = losses_of(other)
        return losses if kind is dict else kind(losses.values())

    value = wrapped.step(closure)
    surgery = wrapped.last_surgery
    assert surgery is not None
    torch.testing.assert_close(value, (surgery.weights * surgery.losses).sum())
    assert_same(one, other)


def test_a_closure_must_return_the_same_losses_within_a_step() -> None:
    point = nn.Parameter(torch.tensor([4.0, -3.0]))
    wrapped = gs.MultiObjectiveOptimizer(torch.optim.LBFGS([point], max_iter=5), gs.MGDA())
    count = []

    def closure() -> list[Tensor | None]:
        wrapped.zero_grad()
        count.append(1)
        return [point.square().sum(), point.sum() if len(count) < 3 else None]

    with pytest.raises(ValueError, match="`closure` must return the same losses in every call of a step"):
        wrapped.step(closure)


# --- one scalar for trainers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_scalarize_and_its_backward_equal_backward(name: str) -> None:
    one, other = make_model(), make_model()
    by_hand = gs.MultiObjectiveOptimizer(adam(one), METHODS[name]())
    by_scalar = gs.MultiObjectiveOptimizer(adam(other), METHODS[name]())
    for step in range(3):
        by_hand.zero_grad()
        by_hand.backward(losses_of(one, step), extra_loss=one["trunk"][0].weight.square().sum())
        by_hand.step()
        by_scalar.zero_grad()
        loss = by_scalar.scalarize(losses_of(other, step), extra_loss=other["trunk"][0].weight.square().sum())
        assert loss.shape == ()
        loss.backward()
        by_scalar.step()
    assert_same(one, other)


def test_scalarize_is_multiplied_by_what_the_trainer_multiplies() -> None:
    one, other = make_model(), make_model()
    whole = gs.MultiObjectiveOptimizer(adam(one), gs.UPGrad())
    parts = gs.MultiObjectiveOptimizer(adam(other), gs.UPGrad())
    whole.backward(losses_of(one))
    for _ in range(4):
        (parts.scalarize(losses_of(other)) / 4).backward()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert parts.last_surgery is not None
    torch.testing.assert_close(parts.last_surgery.gramian, whole.last_surgery.gramian)
    value = parts.scalarize(losses_of(other), extra_loss=torch.tensor(2.0))
    torch.testing.assert_close(value, torch.stack(list(losses_of(other).values())).sum() + 2)


def test_scalarize_checks_at_once() -> None:
    wrapped = gs.MultiObjectiveOptimizer(adam(make_model()), gs.Sum())
    with pytest.raises(ValueError, match="at least one loss"):
        wrapped.scalarize([])


def test_a_zero_factor_gives_zero() -> None:
    model = make_model()
    wrapped = gs.MultiObjectiveOptimizer(adam(model), gs.UPGrad())
    (wrapped.scalarize(losses_of(model)) * 0).backward()
    assert all(parameter.grad.eq(0).all() for parameter in model.parameters())


def test_attributes_set_on_a_proxy_do_not_lose_state() -> None:
    """Trainers copy the attributes of an optimizer into a proxy of their own class."""
    model = make_model()
    wrapped = gs.MultiObjectiveOptimizer(adam(model), gs.GradNorm(alpha=0.0))
    proxy = object.__new__(type("Proxy", (gs.MultiObjectiveOptimizer,), {}))
    proxy.__dict__ = dict(wrapped.__dict__)
    train(model, proxy, 2)
    assert wrapped.last_surgery is proxy.last_surgery is not None
    assert wrapped.state_dict()["gradsurgery"]["losses"] == ["task 0", "task 1", "task 2"]


# --- the record --------------------------------------------------------------------------------------------------


def test_the_record_of_a_surgery() -> None:
    model = make_model()
    wrapped = gs.MultiObjectiveOptimizer(adam(model), gs.MGDA())
    surgery = wrapped.backward(losses_of(model))
    assert surgery.names == ("task 0", "task 1", "task 2")
    expected = torch.stack([loss.detach().double() for loss in losses_of(model).values()])
    assert torch.equal(surgery.losses, expected)
    trunk = list(model["trunk"].parameters())
    rows = [
        torch.cat([g.double().flatten() for g in torch.autograd.grad(losses_of(model)[name], trunk)])
        for name in surgery.names
    ]
    torch.testing.assert_close(surgery.gramian, torch.stack(rows) @ torch.stack(rows).T)
    torch.testing.assert_close(surgery.weights, gs.MGDA().solve(surgery.gramian))
    assert wrapped.last_surgery is surgery
    with pytest.raises(AttributeError):
        surgery.names = ()
