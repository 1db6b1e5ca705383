"""What tests of engines that read the graph share: models, graphs of losses, and comparisons with the loop."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support import assert_near
from torch import Tensor, nn
from torch.nn import functional

import gradsurgery as gs
from gradsurgery.engines import ghost, measured, pieces
from gradsurgery.engines.ghost import Ghost

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
Losses = Callable[[], Any]
Built = tuple[nn.Module, Losses]

# --- comparisons -------------------------------------------------------------------------------------------------


class Balanced(gs.aggregators.GramianAggregator):
    """Rows of unit length with weights of either sign, so that every loss counts and none covers another."""

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        norms = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
        signs = torch.cos(1.0 + torch.arange(gramian.shape[-1], dtype=torch.float64))
        return torch.where(norms > 0, signs / torch.where(norms > 0, norms, 1.0), 0.0)


class Equal(gs.aggregators.GramianAggregator):
    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return torch.ones_like(gramian[..., 0])


class Watched(Ghost):
    """Remembers what it found."""

    def solve(self, problem: Any, uses: Any) -> Any:
        self.found = super().solve(problem, uses)
        return self.found

    def pieces(self) -> dict[Tensor, pieces.Piece]:
        assert isinstance(self.found.shared, measured.Kept)
        return {piece.parameter: piece for piece in self.found.shared._pieces}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def wrap(module: nn.Module, engine: Any, aggregator: Any = None, **options: Any) -> gs.MultiObjectiveOptimizer:
    plain = torch.optim.SGD(module.parameters(), lr=0.1)
    return gs.MultiObjectiveOptimizer(plain, aggregator or Balanced(), engine=engine, **options)


def run(
    build: Callable[[], Built], engine: Any, dtype: torch.dtype, *, shared: Any = None, steps: int = 1, **options: Any
) -> tuple[nn.Module, gs.Surgery]:
    """Surgeries on a model that is built from the same seed every time; the last of them."""
    with default_dtype(dtype):
        torch.manual_seed(0)
        module, losses = build()
        chosen = None if shared is None else shared(module)
        optimizer = wrap(module, engine, shared=chosen, **options)
        for _ in range(steps):
            optimizer.zero_grad()
            surgery = optimizer.backward(losses())
    return module, surgery


def assert_same_surgery(
    found: tuple[nn.Module, gs.Surgery], wanted: tuple[nn.Module, gs.Surgery], tolerance: float
) -> None:
    """Compares Gramians relative to the norms of the rows, and gradients relative to all of them together."""
    (module, surgery), (reference, expected) = found, wanted
    assert surgery.names == expected.names
    torch.testing.assert_close(surgery.losses, expected.losses, equal_nan=True)
    assert (surgery.gramian is None) == (expected.gramian is None)
    if surgery.gramian is not None and expected.gramian is not None:
        norms = expected.gramian.diagonal(dim1=-2, dim2=-1).sqrt()
        scale = norms.unsqueeze(-1) * norms.unsqueeze(-2)
        finite = expected.gramian.isfinite()
        assert torch.equal(surgery.gramian.isfinite(), finite)
        error = (surgery.gramian - expected.gramian).abs() / torch.where(scale > 0, scale, 1.0)
        assert not bool((error[finite] > tolerance).any()), error
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    references = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, gradient in references.items():
        own = gradients[name]
        assert (own is None) == (gradient is None), name
        assert own is None or gradient is None or own.is_sparse == gradient.is_sparse, name
        assert own is None or gradient is None or own.dtype == gradient.dtype, name
    found_direction, wanted_direction = flat(gradients), flat(references)
    assert torch.equal(found_direction.isnan(), wanted_direction.isnan())
    assert_near(found_direction.nan_to_num(), wanted_direction.nan_to_num(), tolerance)


def flat(gradients: dict[str, Tensor | None]) -> Tensor:
    parts = [value.to_dense().double().flatten() for value in gradients.values() if value is not None]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])


def assert_like_loop(
    build: Callable[[], Built],
    engine: Any,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 0.0,
    **options: Any,
) -> tuple[nn.Module, gs.Surgery]:
    """Fails unless an engine finds the same Gramian and leaves the same gradients."""
    wanted, found = run(build, "loop", dtype, **options), run(build, engine, dtype, **options)
    assert_same_surgery(found, wanted, tolerance or TOLERANCE[dtype])
    return found


def assert_agrees(
    build: Callable[[], Built], dtype: torch.dtype = torch.float32, tolerance: float = 0.0, **options: Any
) -> tuple[dict[str, str], gs.Surgery]:
    """Fails unless ghost gives what loop gives; returns the form in which each parameter was handled."""
    engine = Watched()
    module, surgery = assert_like_loop(build, engine, dtype, tolerance, **options)
    assert surgery.engine.startswith("ghost"), surgery.engine
    names = {parameter: name for name, parameter in module.named_parameters()}
    if isinstance(engine.found.shared, measured.Dropped):
        return {}, surgery
    return {names[parameter]: type(piece).__name__ for parameter, piece in engine.pieces().items()}, surgery


def assert_ends_like_loop(
    build: Callable[[], Built],
    steps: Callable[[gs.MultiObjectiveOptimizer, nn.Module, Losses], Any],
    engine: str = "ghost",
    ran: str = "",
    **options: Any,
) -> None:
    """Fails unless some steps with an engine end at the gradients and parameters that they end at with the loop."""
    results = []
    for chosen, expected in ((engine, ran or engine), ("loop", "loop")):
        with default_dtype(torch.float64):
            torch.manual_seed(0)
            module, losses = build()
            optimizer = wrap(module, chosen, **options)
            steps(optimizer, module, losses)
        assert optimizer.last_surgery is not None
        assert optimizer.last_surgery.engine.startswith(expected), optimizer.last_surgery.engine
        results.append((module, optimizer.last_surgery))
    assert_same_surgery(results[0], results[1], 1e-10)
    for one, other in zip(results[0][0].parameters(), results[1][0].parameters(), strict=True):
        assert_near(one, other, 1e-10)


# --- models ------------------------------------------------------------------------------------------------------


def over(module: nn.Module, x: Tensor, losses: int = 3, scales: float = 10.0) -> Built:
    """Losses of very different sizes over what a module returns."""
    state = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        shape = module(x).shape
    module.load_state_dict(state)
    directions = [torch.randn(shape) for _ in range(losses)]

    def evaluate() -> list[Tensor]:
        torch.manual_seed(1)
        z = module(x)
        return [(z.sin() * direction).sum() * scales**k for k, direction in enumerate(directions)]

    return module, evaluate


class Model(nn.Module):
    """A function of some parameters and modules."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **members: nn.Module | Tensor) -> None:
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member if isinstance(member, nn.Module) else nn.Parameter(member))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def mlp(width: int = 6, inputs: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4))


def plain() -> Built:
    return over(mlp(), torch.randn(7, 5))


def hooked(place: int, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], Built]:
    """A hook on what the layer at a place returns."""

    def build() -> Built:
        m = mlp()

        def forward(model: Any, x: Tensor) -> Tensor:
            for position, layer in enumerate(m):
                x = layer(x)
                if position == place and x.requires_grad:
                    x.register_hook(hook)
            return x

        return over(Model(forward, m=m), torch.randn(7, 5))

    return build


@pytest.fixture(params=["compressed", "direct"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which form products take where they can."""
    sign = 1.0 if request.param == "compressed" else -1.0
    monkeypatch.setattr(pieces, "saving", lambda size, _: sign if 0 < size.rows <= size.width else -1.0)
    return str(request.param)


@pytest.fixture(params=["kept", "dropped"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether what the passes bring is kept."""
    if request.param == "dropped":
        monkeypatch.setattr(ghost, "_ALWAYS_KEPT", 0)
    return str(request.param)


# --- graphs of losses --------------------------------------------------------------------------------------------


def branches() -> tuple[nn.ModuleList, Tensor]:
    return nn.ModuleList(nn.Linear(5, 5) for _ in range(4)), torch.randn(6, 5)


def scalars(*tensors: Tensor) -> list[Tensor]:
    return [tensor.sin().sum() for tensor in tensors]


def nothing_in_common() -> Built:
    m, x = branches()
    return m, lambda: scalars(m[0](x), m[1](x), m[2](m[3](x)))


def inner_losses() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        z = m[1](m[0](x).tanh())
        first = z.square().mean()
        second = 2 * first + z.sin().sum()
        return [first, second, first * second]

    return m, losses


def the_same_twice() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        first, second = scalars(m[0](x), m[0](x).cos())
        return [first, first, second]

    return m, losses


def several_depths() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        a = m[0](x)
        b = m[1](a.tanh())
        c = m[2](b.tanh())
        return [*scalars(a, b, c), (a * c).sum()]

    return m, losses


def parts_of_the_trunk() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        a = m[0](x).tanh()
        b, c = m[1](a), m[2](a)
        return scalars(b, c, b * c, m[3](x))

    return m, losses


def pairs() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        a, b, c = (m[k](x) for k in range(3))
        return scalars(a * b, b * c, c * a, a * a)

    return m, losses


def separate_passes() -> Built:
    m, xs = mlp(), torch.randn(3, 6, 5)
    return m, lambda: scalars(*(m(x) for x in xs))


def two_outputs() -> Built:
    m, x = nn.ModuleList([nn.Linear(5, 6), nn.Linear(3, 3), nn.Linear(3, 3)]), torch.randn(6, 5)

    def losses() -> list[Tensor]:
        a, b = m[0](x).split(3, 1)
        return scalars(m[1](a), m[2](b), m[1](a) * m[2](b))

    return m, losses


def two_outputs_for_all() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        a, b = m[0](x).split(3, 1)
        return scalars(a[:, :2] * b, a[:, 1:] * b.cos(), a.sum() * b)

    return m, losses


def a_point_below_another() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        a = m[0](x)
        b = m[1](a.tanh())
        return scalars(a * b, a + b, a - b)

    return m, losses


def unbound() -> Built:
    m, x = nn.Linear(5, 3), torch.randn(6, 5)
    return m, lambda: list(m(x).sin().sum(0).unbind())


def not_all_differentiable() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        z = m[0](x)
        return [*scalars(z), torch.tensor(3.0), z.square().sum()]

    return m, losses


def some_absent() -> Built:
    m, x = branches()

    def losses() -> dict[str, Tensor | None]:
        first, second = scalars(m[0](x), m[0](x).cos())
        return {"first": first, "second": None, "third": second}

    return m, losses


def zero_row() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        z = m[0](x)
        return [z.sum() * 0, *scalars(z, z.cos())]

    return m, losses


def far_apart() -> Built:
    m, x = mlp(), torch.randn(6, 5)

    def losses() -> list[Tensor]:
        z = m(x)
        return [loss * scale for loss, scale in zip(scalars(z, z.cos(), z.square()), (1e-6, 1.0, 1e6), strict=True)]

    return m, losses


def parameters_as_losses() -> Built:
    m, x = (
        nn.ParameterDict({"w": torch.tensor(2.0), "v": torch.tensor([3.0]), "u": torch.tensor([1.5])}),
        torch.randn(4, 1),
    )

    def losses() -> list[Tensor]:
        v = m.v.view(())
        y = x @ m.w.view(1, 1) + x @ v.view(1, 1) + x @ m.u.view(1, 1)
        return [m.w, v, m.u, *scalars(y, y.cos())]

    return m, losses


def tied_to_a_head() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        z = m[1](m[0](x).tanh())
        return scalars(functional.linear(z, m[0].weight), z, z.cos())

    return m, losses


def undefined_for_one_loss() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        z = m[0](x)
        return [*scalars(z, z.cos()), (m[1](z) * 0).sqrt().sum()]

    return m, losses


def undefined_below_two_losses() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        z = m[0](x)
        root = (m[1](z) * 0).square().sum(1).sqrt()
        return [*scalars(z, z.cos()), root.sum(), (2 * root + z.sum(1)).sum()]

    return m, losses


def cut_off() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        z = m[0](x)
        return scalars(Cut.apply(m[1](z)), z, z.cos())

    return m, losses


def all_cut_off() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        z = m[0](x)
        return scalars(Cut.apply(m[1](z)), Cut.apply(m[2](z)))

    return m, losses


def cut_off_above_an_infinite_derivative() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        z = m[0](x)
        root = (z - z.detach()).sqrt()
        return [*scalars(root, 2 * root), Cut.apply(root).sum()]

    return m, losses


def functions_of_one_of_them() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        z = m[0](x).sin().sum()
        return [z * z, z, z.cos(), 3 * z]

    return m, losses


def spread_over_more_rows() -> Built:
    m, x = branches()

    def losses() -> list[Tensor]:
        z = m[0](x[:1])
        return scalars(z, z + x, z[0] * x, z.expand(3, 5) * x[3:])

    return m, losses


def parts_that_use_a_weight_each() -> Built:
    m, x = branches()
    return m, lambda: scalars(*(functional.linear(part, m[0].weight * part.mean(), m[0].bias) for part in x.split(2)))


def cut_off_in_the_trunk() -> Built:
    return over(Model(lambda m, x: m.b(Cut.apply(m.a(x))), a=nn.Linear(5, 5), b=nn.Linear(5, 5)), torch.randn(6, 5))


def with_inputs() -> Built:
    m, x = branches()
    m.register_parameter("x", nn.Parameter(x))
    return m, lambda: scalars(m[0](m.x), m[1](m.x))


class Cut(torch.autograd.Function):
    """Has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


GRAPHS: dict[str, Callable[[], Built]] = {
    function.__name__: function
    for function in (
        plain,
        nothing_in_common,
        inner_losses,
        the_same_twice,
        several_depths,
        parts_of_the_trunk,
        pairs,
        separate_passes,
        two_outputs,
        two_outputs_for_all,
        a_point_below_another,
        unbound,
        not_all_differentiable,
        some_absent,
        zero_row,
        far_apart,
        parameters_as_losses,
        tied_to_a_head,
        undefined_for_one_loss,
        undefined_below_two_losses,
        cut_off,
        cut_off_above_an_infinite_derivative,
        cut_off_in_the_trunk,
        functions_of_one_of_them,
        spread_over_more_rows,
        parts_that_use_a_weight_each,
        with_inputs,
    )
}
