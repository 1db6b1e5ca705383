"""Engines: the same numbers from each over a table of architectures, or an error that names the one to use."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs

BATCH, FEATURES, TASKS = 6, 5, 3


class Square(torch.autograd.Function):
    """A custom Function of the kind torch.func cannot take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class SquareWithRule(torch.autograd.Function):
    """The same with what torch.func asks for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Lambda(nn.Module):
    def __init__(self, inner: nn.Module, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner, x)


class TiedTrunk(nn.Module):
    """One weight matrix used forwards and transposed, registered under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x)))) @ self.first.weight


@dataclass
class Case:
    """A trunk, its input, and how far rounding may take the engines from each other."""

    trunk: Callable[[], nn.Module]
    width: int
    inputs: Callable[[], Tensor] = lambda: torch.randn(BATCH, FEATURES)
    tolerance: float = 1e-5
    autocast: bool = False
    without_func: str = ""
    sparse: set[str] = field(default_factory=set)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 7))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten()
    )


CASES = {
    "mlp": Case(mlp, 7),
    "batch norm in train mode": Case(convolutional, 12, lambda: torch.randn(BATCH, 2, 4, 4)),
    "batch norm without affine": Case(
        lambda: nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 4)), 4
    ),
    "dropout": Case(lambda: nn.Sequential(nn.Linear(FEATURES, 9), nn.Dropout(0.5), nn.Linear(9, 4)), 4),
    "lstm": Case(
        lambda: Lambda(nn.LSTM(FEATURES, 6, batch_first=True), lambda lstm, x: lstm(x)[0][:, -1]),
        6,
        lambda: torch.randn(BATCH, 4, FEATURES),
    ),
    "transformer layer": Case(
        lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten()),
        32,
        lambda: torch.randn(BATCH, 4, 8),
    ),
    "checkpointing": Case(
        lambda: Lambda(mlp(), lambda inner, x: checkpoint(inner, x, use_reentrant=False)),
        7,
        without_func="hooks",
    ),
    "sparse embedding": Case(
        lambda: nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(12, 5)),
        5,
        lambda: torch.randint(0, 50, (BATCH, 3)),
        without_func="[Ss]parse",
        sparse={"0.weight"},
    ),
    "dropout on a transposed input": Case(
        lambda: Lambda(mlp(), lambda inner, x: nn.functional.dropout(inner(x).mT, 0.5).mT), 7
    ),
    "tied weights": Case(TiedTrunk, FEATURES),
    "autocast to bfloat16": Case(mlp, 7, tolerance=2e-2, autocast=True),
    "custom Function": Case(
        lambda: Lambda(mlp(), lambda inner, x: Square.apply(inner(x))), 7, without_func="setup_context"
    ),
    "custom Function with a vmap rule": Case(
        lambda: Lambda(mlp(), lambda inner, x: SquareWithRule.apply(inner(x))), 7
    ),
}


class Problem:
    """A model with a trunk and three heads; the losses see the same random numbers in every pass."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case = case
        self.model = nn.ModuleDict(
            {"trunk": case.trunk(), "heads": nn.ModuleList(nn.Linear(case.width, 1) for _ in range(TASKS))}
        )
        self.inputs = case.inputs()
        self.targets = torch.randn(TASKS, len(self.inputs), 1)

    def losses(self) -> dict[str, Tensor]:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.case.autocast):
            z = self.model["trunk"](self.inputs)
            outputs = [head(z) for head in self.model["heads"]]
        errors = [(o.float() - y).square().mean() for o, y in zip(outputs, self.targets, strict=True)]
        return {f"task {k}": error * 10.0**k for k, error in enumerate(errors)}

    def wrapped(self, engine: Any) -> gs.MultiObjectiveOptimizer:
        plain = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return gs.MultiObjectiveOptimizer(plain, gs.IMTLG(), shared=self.model["trunk"], engine=engine)

    def expected(self) -> dict[str, Tensor]:
        """Gradients by one forward and backward pass a loss, and the definition of the direction."""
        rows, plain = [], {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}
        names = [name for name, _ in self.model.named_parameters()]
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        for k in range(TASKS):
            for name, value in self.model.named_buffers():
                value.copy_(buffers[name])
            loss = list(self.losses().values())[k]
            self.model.zero_grad()
            loss.backward()
            gradients = {name: p.grad for name, p in self.model.named_parameters()}
            dense = {
                n: torch.zeros_like(plain[n]) if g is None else g.to_dense() if g.is_sparse else g
                for n, g in gradients.items()
            }
            rows.append(torch.cat([dense[name].flatten() for name in names if name.startswith("trunk")]))
            for name in names:
                plain[name] += dense[name]
        for name, value in self.model.named_buffers():
            value.copy_(buffers[name])
        self.model.zero_grad()
        direction = gs.IMTLG()(torch.stack(rows).double())
        result, start = {}, 0
        for name, parameter in self.model.named_parameters():
            if name.startswith("trunk"):
                result[name] = direction[start : start + parameter.numel()].view(parameter.shape).float()
                start += parameter.numel()
            else:
                result[name] = plain[name]
        return result


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compares gradients, relative to the norm of all of them: some are zero but for rounding."""
    assert actual.keys() == expected.keys()
    scale = torch.stack([value.norm() for value in expected.values()]).norm()
    errors = {key: float((actual[key] - expected[key]).norm() / scale) for key in expected}
    assert max(errors.values()) < tolerance, errors


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert None not in found.values(), found.keys()
    return {key: value.to_dense() for key, value in found.items() if value is not None}


def test_assert_close_can_fail() -> None:
    value = {"a": torch.ones(3), "b": torch.zeros(3)}
    assert_close(value, value, 1e-12)
    with pytest.raises(AssertionError):
        assert_close({**value, "b": torch.full((3,), 1e-3)}, value, 1e-5)
    with pytest.raises(AssertionError):
        assert_close({"a": torch.ones(3)}, value, 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_loop_agrees_with_the_definition(name: str) -> None:
    problem = Problem(CASES[name])
    expected = problem.expected()
    problem.wrapped("loop").backward(problem.losses())
    assert_close(gradients(problem.model), expected, CASES[name].tolerance)
    for key, parameter in problem.model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.is_sparse == (key.removeprefix("trunk.") in CASES[name].sparse), key


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # LSTM under vmap
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.without_func])
@pytest.mark.parametrize(
    "engine",
    ["func", gs.engines.Func(chunk_size=2), gs.engines.Func(chunk_size=1)],
    ids=["func", "chunks of 2", "chunks of 1"],
)
def test_func_agrees_with_loop(name: str, engine: Any) -> None:
    one, other = Problem(CASES[name]), Problem(CASES[name])
    by_loop = one.wrapped("loop").backward(one.losses())
    by_func = other.wrapped(engine).backward(other.losses)
    assert by_loop.names == by_func.names
    torch.testing.assert_close(by_loop.losses, by_func.losses)
    assert_close(gradients(other.model), gradients(one.model), CASES[name].tolerance)
    for (key, a), (_, b) in zip(one.model.named_buffers(), other.model.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=key)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.without_func])
def test_func_says_what_it_cannot_do(name: str) -> None:
    problem = Problem(CASES[name])
    before = copy.deepcopy(problem.model.state_dict())
    with pytest.raises(RuntimeError, match=f"(?s)Func: .*{CASES[name].without_func}.*engine='loop'"):
        problem.wrapped("func").backward(problem.losses)
    assert all(parameter.grad is None for parameter in problem.model.parameters())
    for key, value in problem.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(isinstance(parameter, nn.Parameter) for parameter in problem.model.parameters())


def test_running_statistics_move_once() -> None:
    problem, reference = Problem(CASES["batch norm in train mode"]), Problem(CASES["batch norm in train mode"])
    problem.wrapped("func").backward(problem.losses)
    reference.losses()
    moved = dict(problem.model.named_buffers())
    for key, value in reference.model.named_buffers():
        torch.testing.assert_close(moved[key], value)
    assert int(moved["trunk.1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("engine", ["loop", "func"])
def test_random_state_after_a_surgery_is_the_forward_passes(engine: str) -> None:
    problem = Problem(CASES["dropout"])
    problem.losses()
    expected = torch.get_rng_state()
    problem.wrapped(engine).backward(problem.losses)
    assert torch.equal(torch.get_rng_state(), expected)


def test_reentrant_checkpointing_is_detected() -> None:
    trunk = Lambda(mlp(), lambda inner, x: checkpoint(inner, x, use_reentrant=True))
    heads = nn.ModuleList(nn.Linear(7, 1) for _ in range(2))
    z = trunk(torch.randn(BATCH, FEATURES, requires_grad=True))
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD([*trunk.parameters(), *heads.parameters()], 0.1), gs.Sum())
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        optimizer.backward([head(z).sum() for head in heads])
    assert all(parameter.grad is None for parameter in heads.parameters())


def test_func_needs_a_callable() -> None:
    problem = Problem(CASES["mlp"])
    with pytest.raises(TypeError, match="Func: `losses` must be a callable"):
        problem.wrapped("func").backward(problem.losses())


def test_func_needs_declared_modules() -> None:
    problem = Problem(CASES["mlp"])
    plain = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="Func: `shared` must be declared as modules"):
        gs.MultiObjectiveOptimizer(plain, gs.Sum(), engine="func").backward(problem.losses)
    loose = [problem.model["trunk"][0], problem.model["trunk"][2].weight]
    with pytest.raises(RuntimeError, match="by itself"):
        gs.MultiObjectiveOptimizer(plain, gs.Sum(), engine="func", shared=loose).backward(problem.losses)


def test_func_restores_the_modules_when_the_closure_raises() -> None:
    problem = Problem(CASES["batch norm in train mode"])
    parameters, buffers = list(problem.model.parameters()), list(problem.model.buffers())

    def closure() -> dict[str, Tensor]:
        problem.losses()
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        problem.wrapped("func").backward(closure)
    assert all(a is b for a, b in zip(problem.model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(problem.model.buffers(), buffers, strict=True))


def test_loop_takes_a_callable_too() -> None:
    problem = Problem(CASES["mlp"])
    names = problem.wrapped("loop").backward(problem.losses).names
    assert names == ("task 0", "task 1", "task 2")


def test_functional_jacobian_over_a_pytree() -> None:
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(BATCH, FEATURES)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def function(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        output = torch.func.functional_call(model, values, x)
        return output.square().mean(0)[:3], output

    losses, jacobian, output = gs.functional_jacobian(function, parameters)
    expected = torch.autograd.functional.jacobian(
        lambda w: function({**parameters, "0.weight": w})[0], parameters["0.weight"]
    )
    assert losses.shape == (3,)
    assert output.shape == (BATCH, 7)
    torch.testing.assert_close(jacobian["0.weight"], expected)
    with pytest.raises(ValueError, match=r"must return \(K,\) losses"):
        gs.functional_jacobian(lambda values: (function(values)[0].sum(), []), parameters)
    with pytest.raises(ValueError, match="`chunk_size` must be >= 1"):
        gs.functional_jacobian(function, parameters, chunk_size=0)


def test_parts_of_the_graph_are_freed_on_the_way() -> None:
    """Separate forward passes: each is freed by its own backward; a shared trunk by the last."""
    layer = nn.Linear(4, 1)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(layer.parameters(), 0.1), gs.Sum(), shared=layer)
    losses = [layer(torch.randn(2, 4)).square().sum() for _ in range(3)]
    optimizer.backward(losses)
    for loss in losses:
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
    z = layer(torch.randn(2, 4))
    kept = [z.square().sum(), z.exp().sum()]
    optimizer.backward(kept, retain_graph=True)
    optimizer.backward(kept)
    with pytest.raises(RuntimeError, match="second time"):
        kept[0].backward()


def test_memory_of_the_rows_is_reused_and_follows_the_workload() -> None:
    problem = Problem(CASES["mlp"])
    optimizer = problem.wrapped("loop")
    optimizer.backward(problem.losses())
    (first,) = [buffer.data_ptr() for buffer in optimizer._run.workspace.values()]
    optimizer.zero_grad()
    before = [parameter.grad for parameter in problem.model.parameters()]
    optimizer.backward(problem.losses())
    (second,) = [buffer.data_ptr() for buffer in optimizer._run.workspace.values()]
    assert first == second
    assert before == [None] * len(before)
    optimizer.backward(dict(list(problem.losses().items())[:1]))
    assert sum(buffer.numel() for buffer in optimizer._run.workspace.values()) < 2 * sum(
        parameter.numel() for parameter in problem.model["trunk"].parameters()
    )


# --- what func must not do silently ------------------------------------------------------------------------------


def by_func(model: nn.Module, **options: Any) -> gs.MultiObjectiveOptimizer:
    plain = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    return gs.MultiObjectiveOptimizer(plain, gs.Sum(), engine="func", **options)


@pytest.mark.parametrize("engine", ["loop", "func"])
def test_parameters_that_no_loss_reaches_do_not_decay(engine: str) -> None:
    problem = Problem(CASES["mlp"])
    problem.model["trunk"].unused = unused = nn.Linear(3, 3)
    problem.model["trunk"].forward = lambda x: problem.model["trunk"][2](problem.model["trunk"][0](x))
    before = unused.weight.detach().clone()
    plain = torch.optim.AdamW(problem.model.parameters(), lr=0.1, weight_decay=0.5)
    optimizer = gs.MultiObjectiveOptimizer(plain, gs.Sum(), shared=problem.model["trunk"], engine=engine)
    optimizer.backward(problem.losses)
    optimizer.step()
    assert unused.weight.grad is None
    assert torch.equal(unused.weight, before)


def test_func_refuses_shared_parameters_used_from_elsewhere() -> None:
    embedding, head = nn.Linear(4, 4), nn.Linear(4, 4)
    head.weight = embedding.weight
    model = nn.ModuleList([embedding, head])
    x = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="used before it or from elsewhere"):
        by_func(model, shared=embedding).backward(lambda: [head(embedding(x)).sum(), embedding(x).exp().sum()])
    assert all(parameter.grad is None for parameter in model.parameters())
    z = embedding(x)
    with pytest.raises(RuntimeError, match="used before it or from elsewhere"):
        by_func(model, shared=embedding).backward(lambda: [z.sum(), z.exp().sum()])
    together = by_func(model, shared=model)
    together.backward(lambda: [head(embedding(x)).sum(), embedding(x).exp().sum()])
    assert embedding.weight.grad is not None


def test_func_refuses_gradient_hooks() -> None:
    problem = Problem(CASES["mlp"])
    problem.model["trunk"][0].weight.register_hook(lambda gradient: gradient * 0)
    with pytest.raises(RuntimeError, match="`shared` must not have gradient hooks"):
        problem.wrapped("func").backward(problem.losses)


@pytest.mark.parametrize("engine", ["loop", "func"])
def test_no_grad_around_the_call_changes_nothing(engine: str) -> None:
    one, other = Problem(CASES["mlp"]), Problem(CASES["mlp"])
    one.wrapped(engine).backward(one.losses)
    with torch.no_grad():
        other.wrapped(engine).backward(other.losses)
    assert_close(gradients(other.model), gradients(one.model), 1e-12)


@pytest.mark.parametrize(
    "drop", [torch.dropout, torch.dropout_, torch.nn.functional.dropout], ids=lambda f: f.__name__
)
def test_every_way_to_call_dropout_draws_the_same_mask(drop: Callable[..., Tensor]) -> None:
    case = Case(lambda: Lambda(mlp(), lambda inner, x: drop(inner(x).mT * 1, 0.5, True).mT), 7)
    one, other = Problem(case), Problem(case)
    one.wrapped("loop").backward(one.losses())
    other.wrapped("func").backward(other.losses)
    assert_close(gradients(other.model), gradients(one.model), 1e-5)


def test_alpha_dropout_raises_by_name() -> None:
    case = Case(lambda: Lambda(mlp(), lambda inner, x: nn.functional.alpha_dropout(inner(x).mT, 0.5, True).mT), 7)
    problem = Problem(case)
    with pytest.raises(RuntimeError, match="alpha dropout draws other masks"):
        problem.wrapped("func").backward(problem.losses)


def test_the_users_own_errors_stay_readable() -> None:
    problem = Problem(CASES["mlp"])

    def broken() -> dict[str, Tensor]:
        return {"task": problem.model["trunk"](torch.ones(2, 99)).sum()}

    with pytest.raises(RuntimeError, match=r"(?s)shapes cannot be multiplied.*If they can without it"):
        problem.wrapped("func").backward(broken)

    def exhausted() -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError, match="^no memory$"):
        problem.wrapped("func").backward(exhausted)


@pytest.mark.parametrize("engine", ["loop", "func"])
def test_tags_mean_the_same_to_both_engines(engine: str) -> None:
    """Two tagged trunks, an optimizer over one of them: surgery on that one."""
    torch.manual_seed(0)
    mine, other = nn.Linear(4, 4), nn.Linear(4, 4)
    gs.tag_shared(mine, other)
    x = torch.randn(3, 4)
    plain = torch.optim.SGD(mine.parameters(), lr=0.1)
    optimizer = gs.MultiObjectiveOptimizer(plain, gs.MGDA(), engine=engine)

    def losses() -> list[Tensor]:
        z = other(mine(x))
        return [z.square().mean(), (z - 1).exp().mean() * 5]

    surgery = optimizer.backward(losses)
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(losses()[k], mine.parameters())]) for k in range(2)]
    torch.testing.assert_close(surgery.gramian, torch.stack(rows).double() @ torch.stack(rows).double().T)
    torch.testing.assert_close(other.bias.grad, torch.autograd.grad(torch.stack(losses()).sum(), other.bias)[0])
    gs.untag_shared(mine, other)


@pytest.mark.parametrize("engine", ["loop", "func"])
def test_random_methods_draw_alike_whatever_the_engine(engine: str) -> None:
    reference, problem = Problem(CASES["mlp"]), Problem(CASES["mlp"])
    drops = [gs.GradDrop(generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    for target, method, chosen in ((reference, drops[0], "loop"), (problem, drops[1], engine)):
        plain = torch.optim.SGD(target.model.parameters(), lr=0.1)
        wrapped = gs.MultiObjectiveOptimizer(plain, method, shared=target.model["trunk"], engine=chosen)
        wrapped.backward(target.losses)
    assert_close(gradients(problem.model), gradients(reference.model), 1e-6)


@pytest.mark.parametrize("engine", ["loop", "func"])
def test_closures_of_step_work_with_both_engines(engine: str) -> None:
    problem, reference = Problem(CASES["mlp"]), Problem(CASES["mlp"])
    reference.wrapped(engine).backward(reference.losses)
    optimizer = problem.wrapped(engine)

    def closure() -> dict[str, Tensor]:
        optimizer.zero_grad()
        return problem.losses()

    optimizer.step(closure)
    assert_close(gradients(problem.model), gradients(reference.model), 1e-12)


def test_func_cannot_scalarize() -> None:
    problem = Problem(CASES["mlp"])
    with pytest.raises(TypeError, match=r"`engine` must not need a callable for scalarize\(\), got Func"):
        problem.wrapped("func").scalarize(problem.losses())


class Remembers(nn.Module):
    """Keeps a statistic in a buffer that does not exist before the first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, 7)
        self.register_buffer("seen", None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.seen = y.detach().mean(0)
        return y


@pytest.mark.parametrize("engine", ["loop", "func"])
def test_buffers_created_in_the_forward_pass(engine: str) -> None:
    problem, reference = Problem(Case(Remembers, 7)), Problem(Case(Remembers, 7))
    reference.losses()
    for _ in range(2):
        problem.wrapped(engine).backward(problem.losses)
    torch.testing.assert_close(problem.model["trunk"].seen + 0, reference.model["trunk"].seen)


def test_a_refused_state_changes_nothing() -> None:
    gradnorm = gs.GradNorm(alpha=0.0)
    gradnorm(torch.eye(2))
    before = copy.deepcopy(gradnorm.state_dict())
    with pytest.raises(RuntimeError, match="bogus"):
        gradnorm.load_state_dict({"bogus": torch.ones(2)})
    assert all(torch.equal(value, before[key]) for key, value in gradnorm.state_dict().items())
