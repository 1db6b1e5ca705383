"""The ghost engine against the loop: the same Gramian and direction, whatever the model, in every form and mode."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support import assert_near, assert_same_bits
from test_engines import CASES, Problem, Square
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery.engines import ghost, measured, pieces
from gradsurgery.engines.factored import compressed, saving
from gradsurgery.engines.ghost import Ghost
from gradsurgery.engines.graph import reach
from gradsurgery.engines.matching import matched_uses
from gradsurgery.engines.products import Size

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
Losses = Callable[[], Any]
Built = tuple[nn.Module, Losses]

# --- what the comparisons are made of ----------------------------------------------------------------------------


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


def run(build: Callable[[], Built], engine: Any, dtype: torch.dtype, *, shared: Any = None, **options: Any) -> Any:
    """One surgery on a model that is built from the same seed every time."""
    with default_dtype(dtype):
        torch.manual_seed(0)
        module, losses = build()
        chosen = None if shared is None else shared(module)
        return module, wrap(module, engine, shared=chosen, **options).backward(losses())


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
    found_direction, wanted_direction = _flat(gradients), _flat(references)
    assert torch.equal(found_direction.isnan(), wanted_direction.isnan())
    assert_near(found_direction.nan_to_num(), wanted_direction.nan_to_num(), tolerance)


def _flat(gradients: dict[str, Tensor | None]) -> Tensor:
    return torch.cat([value.to_dense().double().flatten() for value in gradients.values() if value is not None])


def assert_agrees(
    build: Callable[[], Built], dtype: torch.dtype = torch.float32, tolerance: float = 0.0, **options: Any
) -> tuple[dict[str, str], gs.Surgery]:
    """Fails unless ghost gives what loop gives; returns the form in which each parameter was handled."""
    engine = Watched()
    wanted, found = run(build, "loop", dtype, **options), run(build, engine, dtype, **options)
    assert_same_surgery(found, wanted, tolerance or TOLERANCE[dtype])
    module, surgery = found
    assert surgery.engine.startswith("ghost"), surgery.engine
    names = {parameter: name for name, parameter in module.named_parameters()}
    if isinstance(engine.found.shared, measured.Dropped):
        return {}, surgery
    return {names[parameter]: type(piece).__name__ for parameter, piece in engine.pieces().items()}, surgery


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


@pytest.fixture(params=["compressed", "direct"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which form products take where they can."""
    sign = 1.0 if request.param == "compressed" else -1.0
    monkeypatch.setattr(pieces, "saving", lambda size, _: sign if size.rows <= size.width else -1.0)
    return str(request.param)


@pytest.fixture(params=["kept", "dropped"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether what the passes bring is kept."""
    if request.param == "dropped":
        monkeypatch.setattr(ghost, "_ALWAYS_KEPT", 0)
    return str(request.param)


def test_the_comparison_can_fail() -> None:
    wanted = run(plain, "loop", torch.float64)
    assert_same_surgery(run(plain, "loop", torch.float64), wanted, 1e-15)
    module, surgery = run(plain, "loop", torch.float64)
    module[0].weight.grad[0, 0] += 1e-8 * float(_flat({"all": module[0].weight.grad}).norm())
    with pytest.raises(AssertionError, match="off by"):
        assert_same_surgery((module, surgery), wanted, 1e-10)
    module, surgery = run(plain, "loop", torch.float64)
    surgery.gramian[0, 1] *= 1 + 1e-6  # type: ignore[index]
    with pytest.raises(AssertionError):
        assert_same_surgery((module, surgery), wanted, 1e-10)
    module, surgery = run(plain, "loop", torch.float64)
    module[0].bias.grad = None
    with pytest.raises(AssertionError, match=r"0\.bias"):
        assert_same_surgery((module, surgery), wanted, 1e-10)
    with pytest.raises(AssertionError, match="loop"):
        assert_agrees(lambda: over(mlp(), torch.randn(7, 5), losses=1))


@pytest.mark.parametrize("name", CASES)
def test_the_compatibility_table(name: str, form: str, mode: str) -> None:
    case, engine = CASES[name], Watched()
    loop, other = Problem(case), Problem(case)
    expected = loop.wrapped("loop").backward(loop.losses())
    surgery = other.wrapped(engine).backward(other.losses())
    assert surgery.engine.startswith("ghost")
    assert_same_surgery((other.model, surgery), (loop.model, expected), case.tolerance)


# --- layers ------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """A module, its input, and which parameters are not matched, so that autograd forms their gradients.

    None where that depends on how torch implements the module.
    """

    module: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    held: str | None = ""

    def built(self) -> Built:
        return over(self.module(), self.inputs())


def convolution(dims: int, **options: Any) -> Layer:
    make: Any = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    shape = [9, 7, 5][dims - 1 :][:1] * dims
    settings = {"kernel_size": 3, **options}
    return Layer(
        lambda: nn.Sequential(make(4, 8, **settings), nn.Tanh(), make(8, 8, 1)), lambda: torch.randn(2, 4, *shape)
    )


_CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"stride": 2},
    "stride that leaves a rest": {"stride": 3, "padding": 2},
    "padding same": {"padding": "same", "dilation": 2},
    "padding valid": {"padding": "valid"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "dilation": {"dilation": 2, "padding": 3, "stride": 2},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "dilation": 2, "padding": 2},
    "no bias": {"bias": False},
}


def token_ids(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, 10, shape)


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape)


def product(
    function: Callable[[Any, Tensor], Tensor], inputs: Callable[[], Tensor], held: str = "", **shapes: Any
) -> Layer:
    return Layer(
        lambda: Model(function, **{name: torch.randn(shape) for name, shape in shapes.items()}), inputs, held
    )


def repeated(model: Any, x: Tensor) -> Tensor:
    h = torch.zeros(len(x), 6)
    for step in x.unbind(1):
        h = torch.tanh(model.i(step) + model.h(h))
    return h


def overwritten(model: Any, x: Tensor) -> Tensor:
    y = model.a(x)
    y[:, 0] = 0
    y.view(-1).mul_(2)
    z = torch.zeros(len(x), 6)
    z[1:] = y[1:]
    return model.b(z)


def double(x: Tensor) -> Tensor:
    return x.to(torch.complex64 if x.dtype == torch.float32 else torch.complex128)


LAYERS: dict[str, Layer] = {
    **{f"{d}d convolution, {name}": convolution(d, **o) for d in (1, 2, 3) for name, o in _CONVOLUTIONS.items()},
    **{
        f"unbatched {d}d convolution": Layer(
            lambda d=d: [nn.Conv1d, nn.Conv2d, nn.Conv3d][d - 1](4, 8, 3), numbers(4, *[5] * d)
        )
        for d in (1, 2, 3)
    },
    "wide convolution": Layer(lambda: nn.Conv2d(64, 512, 3, groups=2), numbers(2, 64, 4, 4)),
    "uneven convolution": Layer(
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), numbers(3, 4, 9, 8)
    ),
    "channels last": Layer(
        lambda: nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last),
        lambda: torch.randn(3, 8, 6, 6).to(memory_format=torch.channels_last),
    ),
    "transposed convolution": Layer(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), numbers(2, 4, 5, 5), "weight"),
    "convolution in several groupings": product(
        lambda m, x: torch.cat([functional.conv1d(x, m.w, groups=8), functional.conv1d(x[:, :4], m.w, groups=4)]),
        numbers(2, 8, 6),
        w=(8, 1, 3),
    ),
    "convolution with a viewed weight": product(
        lambda m, x: functional.conv2d(x, m.w.view(6, 4, 3, 3)), numbers(2, 4, 5, 5), w=(6, 36)
    ),
    "convolution tied to its transpose": product(
        lambda m, x: functional.conv_transpose2d(functional.conv2d(x, m.w).tanh(), m.w),
        numbers(2, 4, 5, 5),
        "w",
        w=(6, 4, 3, 3),
    ),
    "convolution tied to a linear layer": product(
        lambda m, x: functional.linear(functional.conv1d(x, m.w.unsqueeze(-1)).mean(-1), m.w),
        numbers(4, 5, 6),
        w=(5, 5),
    ),
    **{
        f"linear on {len(shape)} dimensions{'' if bias else ' without bias'}": Layer(
            lambda bias=bias: nn.Sequential(nn.Linear(5, 6, bias), nn.Tanh(), nn.Linear(6, 4, bias)), numbers(*shape)
        )
        for shape in [(5,), (4, 5), (2, 3, 5), (2, 3, 2, 5)]
        for bias in (True, False)
    },
    "wide linear": Layer(lambda: nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256)), numbers(4, 256)),
    "linear on a part of the input": Layer(
        lambda: Model(lambda m, x: m.l(x.mT), l=nn.Linear(4, 5)), numbers(3, 4, 5), "l.bias"
    ),
    "Bilinear": Layer(
        lambda: Model(lambda m, x: m.b(x, x.flip(0)), b=nn.Bilinear(5, 5, 3)), numbers(4, 5), "b.weight b.bias"
    ),
    "x @ w": product(lambda m, x: x @ m.w, numbers(4, 5), w=(5, 6)),
    "w @ x": product(lambda m, x: m.w @ x, numbers(5, 4), w=(6, 5)),
    "w @ x, wide": product(lambda m, x: m.w @ x, numbers(256, 4), w=(256, 256)),
    "w @ x over a batch": product(lambda m, x: m.w @ x, numbers(2, 5, 4), w=(6, 5)),
    "einsum": product(lambda m, x: torch.einsum("bni,hij->bhnj", x, m.w), numbers(2, 3, 5), w=(4, 5, 6)),
    "einsum over heads": product(lambda m, x: torch.einsum("bhi,hij->bhj", x, m.w), numbers(4, 3, 5), w=(3, 5, 6)),
    "experts": product(
        lambda m, x: torch.bmm(torch.bmm(x, m.w).tanh(), m.v), numbers(3, 4, 5), w=(3, 5, 6), v=(3, 6, 2)
    ),
    "experts, wide": product(lambda m, x: torch.bmm(x, m.w), numbers(3, 4, 200), w=(3, 200, 256)),
    "experts as left operands": product(lambda m, x: torch.bmm(m.w, x), numbers(3, 5, 4), w=(3, 6, 5)),
    "two parameters": product(lambda m, x: torch.mm(m.a, m.b) + x, numbers(4, 6), a=(4, 5), b=(5, 6)),
    "squared": product(lambda m, x: x @ (m.w @ m.w) @ (m.w.mT @ m.w), numbers(4, 5), w=(5, 5)),
    "queries": Layer(
        lambda: Model(lambda m, x: (m.q @ m.k(x).mT).softmax(-1) @ x, q=torch.randn(3, 6), k=nn.Linear(5, 6)),
        numbers(2, 4, 5),
    ),
    "expanded queries": Layer(
        lambda: Model(lambda m, x: (m.q.expand(2, 3, 6) @ m.k(x).mT) @ x, q=torch.randn(3, 6), k=nn.Linear(5, 6)),
        numbers(2, 4, 5),
        "q",
    ),
    "multi_dot": product(lambda m, x: torch.linalg.multi_dot([x, m.a, m.b]), numbers(4, 6), a=(6, 2), b=(2, 6)),
    "w @ vector": product(lambda m, x: torch.stack([m.w @ v for v in x]), numbers(4, 6), "w", w=(5, 6)),
    "addmm with factors": product(
        lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5, alpha=2.0), numbers(4, 5), "b w", w=(5, 4), b=(4,)
    ),
    "bias of the other dimension": product(
        lambda m, x: torch.addmm(m.b.view(4, 1), x, m.w), numbers(4, 5), "b", w=(5, 4), b=(4,)
    ),
    "bias as a row": product(lambda m, x: torch.addmm(m.b.view(1, 3), x, m.w), numbers(4, 5), "b", w=(5, 3), b=(3,)),
    "bias of one number": product(lambda m, x: torch.addmm(m.b, x, m.w), numbers(4, 5), "b", w=(5, 4), b=(1,)),
    "bias for one feature": product(lambda m, x: torch.addmm(m.b, x, m.w), numbers(4, 5), w=(5, 1), b=(1,)),
    "bias in full": product(lambda m, x: torch.addmm(m.b, x, m.w), numbers(4, 5), "b", w=(5, 4), b=(4, 4)),
    "bias from a matrix": product(lambda m, x: torch.addmm(m.b.view(4), x, m.w), numbers(4, 5), w=(5, 4), b=(2, 2)),
    "module used twice": Layer(lambda: Model(lambda m, x: m.l(m.l(x).tanh()), l=nn.Linear(5, 5)), numbers(2, 5)),
    "wide module used twice": Layer(
        lambda: Model(lambda m, x: m.l(m.l(x).tanh()), l=nn.Linear(256, 256)), numbers(4, 256)
    ),
    "tied, transposed": product(lambda m, x: functional.linear(x, m.w).tanh() @ m.w, numbers(4, 5), w=(6, 5)),
    "shared bias": product(
        lambda m, x: functional.linear(functional.linear(x, m.w, m.b).tanh(), m.v, m.b),
        numbers(4, 5),
        w=(5, 5),
        v=(5, 5),
        b=(5,),
    ),
    "bias used otherwise too": product(
        lambda m, x: functional.linear(x, m.w, m.b) * m.b, numbers(4, 5), "b", w=(5, 5), b=(5,)
    ),
    "weight used otherwise too": product(lambda m, x: x @ m.w + m.w.square().mean(), numbers(4, 5), "w", w=(5, 5)),
    "weight used in part too": product(lambda m, x: x @ m.w + x[:, :3] @ m.w[:3], numbers(4, 5), "w", w=(5, 5)),
    "reshaped": product(lambda m, x: x @ m.w.t().reshape(5, 6), numbers(4, 5), w=(10, 3)),
    "permuted": product(lambda m, x: x @ m.w.permute(-1, 0, -2).flatten(1), numbers(4, 5), w=(2, 3, 5)),
    "squeezed": product(lambda m, x: x @ m.w.squeeze().squeeze((0,)), numbers(4, 5), w=(1, 5, 1, 6)),
    "unsqueezed": product(lambda m, x: torch.bmm(x, m.w.unsqueeze(0)), numbers(1, 4, 5), w=(5, 6)),
    "expanded": product(lambda m, x: torch.bmm(x, m.w.expand(3, 5, 6)), numbers(3, 4, 5), "w", w=(5, 6)),
    "repeated": product(lambda m, x: torch.bmm(x, m.w.repeat(3, 1, 1)), numbers(3, 4, 5), "w", w=(5, 6)),
    "split": product(lambda m, x: torch.cat([x @ w for w in m.w.chunk(2, 1)], 1), numbers(4, 5), "w", w=(5, 6)),
    "cast": product(lambda m, x: (x.double() @ m.w.double()).to(x), numbers(4, 5), w=(5, 6)),
    "cast to complex": product(lambda m, x: ((2 + 1j) * double(x) @ double(m.w)).abs(), numbers(4, 5), "w", w=(5, 6)),
    "complex bias": product(
        lambda m, x: torch.addmm(double(m.b), double(x), double(m.w)).abs(), numbers(4, 5), "w b", w=(5, 6), b=(6,)
    ),
    "sparse operand": product(lambda m, x: x.to_sparse() @ m.w, numbers(4, 5), "w", w=(5, 6)),
    "weight that is no leaf": product(
        lambda m, x: functional.linear(x, m.w * 2, m.b.exp()), numbers(4, 5), "w b", w=(6, 5), b=(6,)
    ),
    "weight norm": Layer(
        lambda: parametrizations.weight_norm(nn.Linear(5, 6)),
        numbers(4, 5),
        "parametrizations.weight.original0 parametrizations.weight.original1",
    ),
    "spectral norm": Layer(
        lambda: parametrizations.spectral_norm(nn.Linear(5, 6)), numbers(4, 5), "parametrizations.weight.original"
    ),
    "functional_call": Layer(
        lambda: Model(
            lambda m, x: torch.func.functional_call(m.l, dict(m.l.named_parameters()), x), l=nn.Linear(5, 6)
        ),
        numbers(4, 5),
    ),
    "self attention": Layer(
        lambda: Model(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(6, 2, batch_first=True)),
        numbers(2, 4, 6),
        None,
    ),
    "cross attention": Layer(
        lambda: Model(lambda m, x: m.a(x, x.flip(0) * 2, x.flip(1))[0], a=nn.MultiheadAttention(6, 2)),
        numbers(2, 4, 6),
        None,
    ),
    "encoder": Layer(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3, batch_first=True, norm_first=True),
            1,
            enable_nested_tensor=False,
        ),
        numbers(2, 4, 6),
        None,
    ),
    **{
        name: Layer(
            lambda name=name: Model(lambda m, x: m.r(x)[0], r=getattr(nn, name)(5, 6, batch_first=True)),
            numbers(3, 4, 5),
            None,
        )
        for name in ("LSTM", "GRU", "RNN")
    },
    "recurrence": Layer(lambda: Model(repeated, i=nn.Linear(5, 6), h=nn.Linear(6, 6)), numbers(3, 4, 5)),
    "Embedding": Layer(lambda: nn.Embedding(10, 5), token_ids(3, 4)),
    "Embedding of one token": Layer(lambda: nn.Embedding(10, 5), token_ids()),
    "Embedding with padding": Layer(lambda: nn.Embedding(10, 5, padding_idx=3), token_ids(3, 8)),
    "Embedding with padding from the end": Layer(lambda: nn.Embedding(10, 5, padding_idx=-2), token_ids(3, 8)),
    "Embedding by frequency": Layer(lambda: nn.Embedding(10, 5, scale_grad_by_freq=True), token_ids(3, 8), "weight"),
    "sparse Embedding": Layer(lambda: nn.Embedding(10, 5, sparse=True, padding_idx=0), token_ids(3, 8)),
    "sparse Embedding used twice": Layer(
        lambda: Model(lambda m, x: m.e(x) + m.e(x[:1]), e=nn.Embedding(10, 5, sparse=True)), token_ids(3, 8)
    ),
    "Embedding used sparsely and not": product(
        lambda m, x: functional.embedding(x, m.w, sparse=True) + functional.embedding(x[:1], m.w),
        token_ids(3, 8),
        w=(10, 5),
    ),
    "Embedding with max_norm": Layer(lambda: nn.Embedding(10, 5, max_norm=1.0), token_ids(3, 8)),
    "Embedding tied to the output": Layer(
        lambda: Model(lambda m, x: functional.linear(m.e(x).tanh(), m.e.weight), e=nn.Embedding(10, 5)),
        token_ids(3, 8),
    ),
    "sparse Embedding tied to the output": Layer(
        lambda: Model(lambda m, x: functional.linear(m.e(x).tanh(), m.e.weight), e=nn.Embedding(10, 5, sparse=True)),
        token_ids(3, 8),
    ),
    "Embedding in a viewed table": product(
        lambda m, x: functional.embedding(x, m.w.t()), token_ids(3, 8), "w", w=(5, 10)
    ),
    **{
        f"EmbeddingBag, {how}": Layer(lambda how=how: nn.EmbeddingBag(10, 5, mode=how), token_ids(3, 8), "weight")
        for how in ("sum", "mean", "max")
    },
    "LayerNorm": Layer(lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6)), numbers(4, 5), "1.weight 1.bias"),
    "RMSNorm": Layer(lambda: nn.Sequential(nn.Linear(5, 6), nn.RMSNorm(6)), numbers(4, 5), "1.weight"),
    "GroupNorm": Layer(
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6)), numbers(2, 2, 5, 5), "1.weight 1.bias"
    ),
    "BatchNorm": Layer(
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)),
        numbers(3, 2, 5, 5),
        "1.weight 1.bias",
    ),
    "alpha dropout": Layer(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.AlphaDropout(0.4), nn.Linear(6, 6)), numbers(4, 5)
    ),
    "PReLU": Layer(lambda: nn.Sequential(nn.Linear(5, 6), nn.PReLU(), nn.Linear(6, 6)), numbers(4, 5), "1.weight"),
    "pooling": Layer(
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(2)
        ),
        numbers(2, 2, 8, 8),
    ),
    "in place": Layer(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 6)), numbers(4, 5)),
    "in place on views": Layer(lambda: Model(overwritten, a=nn.Linear(5, 6), b=nn.Linear(6, 3)), numbers(4, 5)),
    "gathered": Layer(
        lambda: Model(lambda m, x: m.b(m.a(x)[[0, 0, 2]]), a=nn.Linear(5, 6), b=nn.Linear(6, 3)), numbers(4, 5)
    ),
    "duplicate and zero samples": Layer(
        lambda: Model(lambda m, x: m.l(torch.cat([x, x, 0 * x])), l=nn.Linear(256, 256)), numbers(4, 256)
    ),
    "one huge sample": Layer(
        lambda: nn.Sequential(nn.Linear(256, 256), nn.Softsign(), nn.Linear(256, 256)),
        lambda: torch.cat([torch.randn(4, 256), 1e8 * torch.randn(1, 256)]),
    ),
    "empty batch": Layer(
        lambda: Model(lambda m, x: m.l(x).sum() + m.l.bias, l=nn.Linear(5, 6)), numbers(0, 5), "l.bias"
    ),
    "empty batch of images": Layer(
        lambda: Model(lambda m, x: m.l(x).sum() + m.b, l=nn.Conv2d(2, 6, 3), b=torch.ones(3)),
        numbers(0, 2, 5, 5),
        "b",
    ),
    "empty batch of tokens": Layer(
        lambda: Model(lambda m, x: m.e(x).sum() + m.b, e=nn.Embedding(10, 5), b=torch.ones(3)), token_ids(0, 3), "b"
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, dtype: torch.dtype, form: str) -> None:
    forms, _ = assert_agrees(LAYERS[name].built, dtype)
    held, formed = LAYERS[name].held, {key for key, value in forms.items() if value == "Held"}
    assert forms
    assert held is None or formed == set(held.split())
    if form == "direct":
        assert "Compressed" not in forms.values()


@pytest.mark.parametrize("width", [96, 512])
def test_compressed_layers_side_by_side(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "saving", lambda size, _: 1.0)
    forms, _ = assert_agrees(lambda: over(mlp(width, width), torch.randn(80, width), losses=2))
    assert list(forms.values()).count("Compressed") == 3


def test_products_over_few_rows_are_compressed() -> None:
    forms, surgery = assert_agrees(LAYERS["wide linear"].built)
    assert forms == {"0.weight": "Compressed", "0.bias": "Summed", "2.weight": "Compressed", "2.bias": "Summed"}
    assert surgery.engine == "ghost: all losses in one pass, 2 of 4 parameters with gradients formed"
    assert assert_agrees(LAYERS["wide convolution"].built)[0]["weight"] == "Compressed"
    assert assert_agrees(LAYERS["experts, wide"].built)[0]["w"] == "Compressed"
    assert assert_agrees(LAYERS["w @ x, wide"].built)[0]["w"] == "Compressed"
    assert assert_agrees(LAYERS["wide module used twice"].built)[0]["l.weight"] == "Compressed"
    assert assert_agrees(LAYERS["linear on 2 dimensions"].built)[0]["0.weight"] == "Summed"


@pytest.mark.parametrize("losses", [1, 2, 20])
def test_any_number_of_losses(losses: int, form: str, mode: str) -> None:
    wanted = run(lambda: over(mlp(), torch.randn(7, 5), losses, 2.0), "loop", torch.float64)
    found = run(lambda: over(mlp(), torch.randn(7, 5), losses, 2.0), "ghost", torch.float64)
    assert_same_surgery(found, wanted, 1e-10)
    assert found[1].engine.startswith(
        "loop: one backward pass a loss, as there is only one" if losses == 1 else "ghost"
    )


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
        with_inputs,
    )
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, dtype: torch.dtype, mode: str) -> None:
    _, surgery = assert_agrees(GRAPHS[name], dtype)
    if name == "plain":
        assert ("packs of parameters and a last pass" in surgery.engine) == (mode == "dropped")


def test_what_no_gradient_arrives_at_keeps_none(mode: str) -> None:
    assert_agrees(cut_off_in_the_trunk)


def test_weights_from_another_device_are_not_matched() -> None:
    m = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5, device="meta")])
    z = functional.linear(torch.randn(6, 5, device="meta"), m[0].weight.to("meta"))
    root = m[1](z).sum()
    uses = matched_uses(reach([root, root * 2]), list(m.parameters()), 2)
    assert set(uses) == {m[1].weight, m[1].bias}


def test_nothing_arrives_anywhere(mode: str) -> None:
    torch.manual_seed(0)
    module, losses = all_cut_off()
    wrap(module, "ghost", Equal()).backward(losses())
    assert all(parameter.grad is None or not bool(parameter.grad.any()) for parameter in module.parameters())


@pytest.mark.parametrize("scope", ["all", "module", "tensor"])
@pytest.mark.parametrize(
    "name", ["plain", "nothing_in_common", "several_depths", "parts_of_the_trunk", "tied_to_a_head"]
)
def test_scopes_and_declared_sharing(name: str, scope: str, mode: str) -> None:
    """Everything is shared: also what one loss alone reaches."""
    forms, _ = assert_agrees(GRAPHS[name], torch.float64, scope=scope, shared=lambda module: module)
    if mode == "kept" and name == "parts_of_the_trunk":
        assert forms["3.weight"] == "Alone"


@pytest.mark.parametrize("name", ["plain", "several_depths", "parts_of_the_trunk"])
def test_what_several_losses_reach_and_is_not_shared_gets_the_plain_sum(name: str, mode: str) -> None:
    assert_agrees(GRAPHS[name], torch.float64, shared=lambda module: module[0])
    forms, _ = assert_agrees(GRAPHS[name], torch.float64, shared=lambda module: module[2])
    if mode == "kept":
        assert all(key.startswith("2.") for key in forms)


def test_a_row_that_is_undefined_leaves_the_others() -> None:
    _, surgery = assert_agrees(undefined_for_one_loss)
    assert surgery.gramian is not None
    assert bool(surgery.gramian[:2, :2].isfinite().all())
    assert not bool(surgery.gramian[2].isfinite().any())


def test_tags_and_frozen_parameters() -> None:
    def build() -> Built:
        module, losses = parts_of_the_trunk()
        gs.tag_shared(module[0])
        module[0].bias.requires_grad_(False)
        module[1].weight.requires_grad_(False)
        return module, losses

    assert set(assert_agrees(build)[0]) == {"0.weight"}


# --- hooks and user code -----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("place", range(5))
def test_hooks_on_tensors_are_applied_once_a_loss(place: int, mode: str) -> None:
    assert_agrees(hooked(place, lambda gradient: 2 * gradient), torch.float64)
    assert_agrees(hooked(place, lambda gradient: None), torch.float64)


@pytest.mark.parametrize("place", range(5))
def test_hooks_may_treat_the_losses_differently(place: int) -> None:
    _, surgery = assert_agrees(hooked(place, lambda gradient: gradient.clamp(-0.5, 0.5)), torch.float64)
    assert "all losses in one pass" in surgery.engine
    _, surgery = assert_agrees(hooked(place, lambda gradient: gradient / float(gradient.norm())), torch.float64)
    assert "one pass a loss" in surgery.engine


def test_hooks_on_parameters_are_applied() -> None:
    def build() -> Built:
        m = mlp()
        m[0].weight.register_hook(lambda gradient: 3 * gradient)
        m[2].weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
        m[4].bias.register_hook(lambda gradient: gradient / float(gradient.norm()))
        return over(m, torch.randn(7, 5))

    forms, _ = assert_agrees(build, torch.float64)
    assert {name for name, kind in forms.items() if kind == "Held"} == {"0.weight", "2.weight", "4.bias"}


def test_hooks_on_parameters_are_applied_to_what_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> Built:
        m = mlp()
        m[2].weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
        return over(m, torch.randn(7, 5))

    monkeypatch.setattr(ghost, "_ALWAYS_KEPT", 0)
    assert_agrees(build, torch.float64)


def test_hooks_on_modules_are_applied(mode: str) -> None:
    def build() -> Built:
        m = mlp()
        m[2].register_full_backward_hook(lambda module, inputs, outputs: tuple(2 * one for one in inputs))
        m[3].register_full_backward_pre_hook(lambda module, outputs: tuple(3 * one for one in outputs))
        return over(m, torch.randn(7, 5))

    assert_agrees(build, torch.float64)


def test_removed_hooks_leave_nothing() -> None:
    """Neither the user's nor the engine's own: the graph can be differentiated again, to the same numbers."""
    torch.manual_seed(0)
    module, losses = plain()
    optimizer, found = wrap(module, "ghost"), losses()
    optimizer.backward(found, retain_graph=True)
    first = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}  # type: ignore[union-attr]
    optimizer.zero_grad()
    optimizer.backward(found, retain_graph=True)
    assert_same_bits({name: parameter.grad for name, parameter in module.named_parameters()}, first)
    optimizer.zero_grad()
    sum(found).backward()
    torch.manual_seed(0)
    reference, again = plain()
    sum(again()).backward()
    assert_near(module[0].bias.grad, reference[0].bias.grad, 1e-6)
    with pytest.raises(RuntimeError, match="second time"):
        optimizer.backward(found)


def test_custom_functions_are_passed_once_a_loss(mode: str) -> None:
    layer = Layer(
        lambda: Model(lambda m, x: m.b(Square.apply(m.a(x))), a=nn.Linear(5, 6), b=nn.Linear(6, 4)), numbers(7, 5)
    )
    _, surgery = assert_agrees(layer.built, torch.float64)
    assert mode == "dropped" or "one pass a loss" in surgery.engine


def test_what_cannot_be_batched_is_passed_once_a_loss_from_then_on() -> None:
    calls = []

    def refuse(gradient: Tensor) -> Tensor:
        calls.append(gradient.shape)
        float(gradient.sum())  # not to be had while several gradients are passed at once
        return gradient

    torch.manual_seed(0)
    module, losses = hooked(1, refuse)()
    optimizer = wrap(module, "ghost")
    assert "one pass a loss" in optimizer.backward(losses()).engine
    assert len(calls) == 4
    assert "one pass a loss" in optimizer.backward(losses()).engine
    assert len(calls) == 7


def test_what_could_be_batched_and_no_longer_can_says_so_once() -> None:
    torch.manual_seed(0)
    hooks = [lambda gradient: None]
    module, losses = hooked(1, lambda gradient: hooks[0](gradient))()
    optimizer = wrap(module, "ghost")
    assert "all losses in one pass" in optimizer.backward(losses()).engine
    optimizer.zero_grad()
    hooks[0] = lambda gradient: gradient * float(gradient.norm())  # type: ignore[assignment, return-value]
    with pytest.raises(RuntimeError, match=r"(?s)all of them at once.*item.*Run the forward pass again"):
        optimizer.backward(losses())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert "one pass a loss" in optimizer.backward(losses()).engine


def test_an_error_in_a_hook_is_the_users() -> None:
    def broken(gradient: Tensor) -> Tensor:
        raise KeyError("the user's own")

    module, losses = hooked(1, broken)()
    with pytest.raises(KeyError, match="the user's own"):
        wrap(module, "ghost").backward(losses())
    assert all(parameter.grad is None for parameter in module.parameters())

    module, losses = hooked(1, lambda gradient: gradient[:1])()
    with pytest.raises(RuntimeError, match="size|shape"):
        wrap(module, "ghost").backward(losses())


# --- saved tensors -----------------------------------------------------------------------------------------------


class Counted(nn.Sequential):
    """Counts its forward passes."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("extra", [nn.Tanh, lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(6)])
def test_checkpointed_regions_are_recomputed_twice(extra: Callable[[], nn.Module], mode: str) -> None:
    """Once where the layers' inputs are read, and once in the pass for all losses."""

    def build() -> Built:
        regions = [Counted(nn.Linear(n, 6), extra(), nn.Linear(6, 6)) for n in (5, 6)]
        inner: Any = nn.Sequential(*regions)
        return over(
            Model(
                lambda m, x: checkpoint(m.i[1], checkpoint(m.i[0], x, use_reentrant=False), use_reentrant=False),
                i=inner,
            ),
            torch.randn(7, 5),
        )

    _, surgery = assert_agrees(build)
    torch.manual_seed(0)
    module, losses = build()
    for region in module.i:
        region.calls = 0
    surgery = wrap(module, "ghost").backward(losses())
    if mode == "kept":
        assert "all losses in one pass" in surgery.engine
        assert [region.calls for region in module.i] == [3, 3]


def test_checkpoints_within_checkpoints_and_around_what_cannot_be_batched(mode: str) -> None:
    def nested(m: Any, x: Tensor) -> Tensor:
        return checkpoint(lambda u: checkpoint(m.s, m.t(u), use_reentrant=False).tanh(), x, use_reentrant=False)

    assert_agrees(lambda: over(Model(nested, s=mlp(), t=nn.Linear(5, 5)), torch.randn(7, 5)))
    torch.manual_seed(0)
    region = Counted(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 6))
    model = Model(lambda m, x: checkpoint(lambda u: Square.apply(m.r(u)), x, use_reentrant=False), r=region)
    module, losses = over(model, torch.randn(7, 5))
    region.calls = 0
    wrap(module, "ghost").backward(losses())
    if mode == "kept":
        assert region.calls <= 1 + 1 + 3


@pytest.mark.parametrize(
    "hooks",
    [
        torch.autograd.graph.save_on_cpu,
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: [t.clone()], lambda packed: packed[0]),
    ],
    ids=["save_on_cpu", "saved_tensors_hooks"],
)
def test_hooks_on_saved_tensors(hooks: Callable[[], Any], mode: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with hooks():
            return m.s(x)  # type: ignore[no-any-return]

    assert_agrees(lambda: over(Model(forward, s=mlp()), torch.randn(7, 5)), torch.float64)


# --- precision ---------------------------------------------------------------------------------------------------


def assert_products_of_what_arrived(
    engine: Watched, inputs: dict[Tensor, Tensor], surgery: gs.Surgery, directions: float
) -> None:
    """Fails unless Gramian and direction are those of the deltas that arrived and of inputs noted from outside."""
    gramian, rows = torch.zeros(3, 3, dtype=torch.float64), {}
    for parameter, piece in engine.pieces().items():
        (arrival,) = piece._arrivals  # type: ignore[attr-defined]
        delta = arrival.delta.double().reshape(3, -1, arrival.delta.shape[-1])
        noted = inputs[parameter] if parameter.ndim == 2 else torch.ones(delta.shape[1], 1)
        rows[parameter] = delta.mT @ noted.double().reshape(delta.shape[1], -1)
        gramian += rows[parameter].flatten(1) @ rows[parameter].flatten(1).T
    norms = gramian.diagonal().sqrt()
    assert surgery.gramian is not None
    assert float(((surgery.gramian - gramian).abs() / (norms[:, None] * norms)).max()) < 1e-5
    for parameter, row in rows.items():
        wanted = torch.tensordot(surgery.weights, row, 1).reshape(parameter.shape)  # type: ignore[arg-type]
        assert parameter.grad is not None
        assert parameter.grad.dtype == parameter.dtype
        assert_near(parameter.grad, wanted, directions)


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16], ids=["autocast", "bf16 parameters"])
def test_bfloat16_against_float32_products(parameters: torch.dtype, form: str) -> None:
    torch.manual_seed(0)
    module, x, engine = mlp(32, 16).to(parameters), torch.randn(7, 16, dtype=parameters), Watched()
    inputs: dict[Tensor, Tensor] = {}
    for layer in module:
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(
                lambda own, given: inputs.update({own.weight: given[0].detach().bfloat16()})
            )
    with torch.autocast("cpu", torch.bfloat16, enabled=parameters == torch.float32):
        z = module(x)
    assert z.dtype == torch.bfloat16
    surgery = wrap(module, engine).backward([z.float().sin().sum(), z.float().cos().sum(), z.float().square().sum()])
    forms = {type(piece).__name__ for piece in engine.pieces().values()}
    assert forms == ({"Compressed", "Summed"} if form == "compressed" else {"Summed"})
    assert_products_of_what_arrived(engine, inputs, surgery, 1e-5 if parameters == torch.float32 else 4e-3)


def test_surgery_within_autocast(form: str) -> None:
    """The products are those of float32, though the user's autocast is still on."""
    torch.manual_seed(0)
    module, x, engine = mlp(128, 96), torch.randn(80, 96), Watched()
    inputs: dict[Tensor, Tensor] = {}
    for layer in module:
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(
                lambda own, given: inputs.update({own.weight: given[0].detach().bfloat16()})
            )
    with torch.autocast("cpu", torch.bfloat16):
        z = module(x)
        losses = [z.float().sin().sum(), z.float().cos().sum(), z.float().square().sum()]
        surgery = wrap(module, engine).backward(losses)
    assert_products_of_what_arrived(engine, inputs, surgery, 1e-5)


UNIT = 2.0**-20
CANCELLING = ["linear", "convolution", "two uses", "product", "bias"]


def terms_that_cancel(dtype: torch.dtype, *, bias: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``(R, width)``, deltas ``(K, R, height)``, gradients ``(K, P)`` as exact integers times the unit.

    Pairs of samples cancel but for about 1e-4. Inputs and deltas fit into float32 and their products do not: every
    rounding is that of the sums.
    """
    source = torch.Generator().manual_seed(3)

    def integers(bits: int, *shape: int) -> Tensor:
        values = torch.randint(1 << (bits - 1), 1 << bits, shape, generator=source)
        return values * (2 * torch.randint(0, 2, shape, generator=source) - 1)

    pairs, width, height = 16, 64, 40
    unit = torch.tensor(UNIT, dtype=dtype)
    if bias:
        delta = integers(23, 3, pairs, height)
        deltas = torch.cat([delta, integers(8, 3, pairs, height) - delta], 1)
        return torch.ones(2 * pairs, 1, dtype=dtype), deltas * unit, deltas.sum(1)
    delta, a = integers(9, 3, pairs, height), integers(23, pairs, width)
    inputs, deltas = torch.cat([a, a + integers(8, pairs, width)]), torch.cat([delta, -delta], 1)
    return inputs * unit, deltas.to(dtype), (deltas.mT @ inputs).flatten(1)


def layer_with_such(kind: str, dtype: torch.dtype) -> tuple[nn.Module, list[Tensor], Tensor]:
    """A layer, losses on it, and their gradients."""
    x, c, rows = terms_that_cancel(dtype, bias=kind == "bias")
    (height, width), zeros = (c.shape[2], x.shape[1]), torch.zeros(1, c.shape[2], dtype=dtype)
    layer: nn.Module = nn.Linear(width, height, bias=False, dtype=dtype)
    if kind == "bias":
        layer = Model(lambda m, x: torch.addmm(m.b, x, zeros), b=zeros[0])
    elif kind == "convolution":
        layer, x, c = nn.Conv1d(width, height, 1, bias=False, dtype=dtype), x.T.unsqueeze(0), c.mT.unsqueeze(1)
    elif kind == "two uses":
        layer = Model(lambda m, x: torch.cat([m.l(x[:20]), m.l(x[20:])]), l=layer)
    elif kind == "product":
        layer = Model(lambda m, x: (m.w @ x.T).T, w=torch.zeros(height, width, dtype=dtype))
    y = layer(x)
    return layer, [(y * own).sum() for own in c], rows


def errors_where_terms_cancel(kind: str, dtype: torch.dtype, form: str) -> tuple[float, float]:
    """How far Gramian and direction are from exact arithmetic."""
    layer, losses, rows = layer_with_such(kind, dtype)
    gramian, direction = (rows @ rows.T).double() * UNIT**2, rows.sum(0).double() * UNIT
    norms, engine = gramian.diagonal().sqrt(), Watched()
    surgery = wrap(layer, engine, Equal()).backward(losses)
    (piece,) = engine.pieces().values()
    extent = piece.extent()
    assert extent is not None
    assert bool((extent.double() / norms > 1e4).all())
    assert type(piece).__name__ == ("Compressed" if form == "compressed" and kind != "bias" else "Summed")
    (parameter,) = layer.parameters()
    assert surgery.gramian is not None
    assert parameter.grad is not None
    error = (surgery.gramian - gramian).abs() / (norms[:, None] * norms)
    return float(error.max()), float((parameter.grad.flatten() - direction).norm() / direction.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", CANCELLING)
def test_per_sample_gradients_that_cancel(kind: str, dtype: torch.dtype, form: str) -> None:
    """Ten thousand times, against exact arithmetic."""
    gramian, direction = errors_where_terms_cancel(kind, dtype, form)
    assert gramian < TOLERANCE[dtype]
    assert direction < TOLERANCE[dtype]


def test_per_sample_gradients_that_cancel_in_what_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost, "_ALWAYS_KEPT", 0)
    x, c, rows = terms_that_cancel(torch.float32)
    module = nn.ModuleList(nn.Linear(64, 40, bias=False) for _ in range(2))
    y = sum(layer(x) for layer in module)
    surgery = wrap(module, "ghost", Equal()).backward([(y * own).sum() for own in c])
    assert "2 packs" in surgery.engine
    for layer in module:
        assert_near(layer.weight.grad.flatten(), rows.sum(0).double() * UNIT, 1e-5)


def test_without_the_rule_for_cancellation_they_are_wrong(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(measured, "CANCELLATION", math.inf)
    errors = [errors_where_terms_cancel(kind, torch.float32, form) for kind in CANCELLING]
    assert max(direction for _, direction in errors) > 1e-5


@pytest.mark.parametrize("samples", [40, 300])
def test_float64_products_of_two_samples_that_nearly_cancel(samples: int, form: str) -> None:
    """Fewer times than the rule for cancellation asks for, among many samples that do not matter."""
    width = 320
    a, delta = torch.zeros(samples, width).double(), torch.zeros(3, samples, 40).double()
    a[0] = torch.randn(width, generator=torch.Generator().manual_seed(0)).double()
    a[1] = a[0] + 0.03 * torch.randn(width, generator=torch.Generator().manual_seed(1)).double()
    delta[:, 0] = torch.randn(3, 40, generator=torch.Generator().manual_seed(2)).double()
    delta[:, 1] = -delta[:, 0]
    layer = nn.Linear(width, 40, bias=False).double()
    y, rows = layer(a), (delta.mT @ a).flatten(1)
    surgery = wrap(layer, "ghost").backward([(y * own).sum() for own in delta])
    gramian = rows @ rows.T
    norms = gramian.diagonal().sqrt()
    assert surgery.gramian is not None
    assert float(((surgery.gramian - gramian).abs() / (norms[:, None] * norms)).max()) < 1e-10


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 63, 64, 70])
def test_compressed_rows_have_the_inner_products_of_the_gradients(rows: int, careful: bool) -> None:
    source = torch.Generator().manual_seed(rows)
    inputs = torch.randn(2, rows, 96, generator=source)
    inputs[:, -1] = inputs[:, 0] * 1e-30  # dependent, and tiny
    inputs[1, rows // 2] = 0
    deltas = torch.randn(3, 2, rows, 7, generator=source)
    found = compressed(inputs, deltas, {}, careful=careful).double().flatten(1)
    wanted = (deltas.double().mT @ inputs.double()).flatten(1)
    assert found.shape == (3, 2 * rows * 7)
    assert_near(found @ found.T, wanted @ wanted.T, 1e-6)


def test_the_compressed_form_is_chosen_where_rows_are_few() -> None:
    assert saving(Size(1, 16, 512, 512), 8) > 0
    assert saving(Size(1, 511, 512, 512), 8) < 0
    assert saving(Size(1, 16, 16, 16), 8) < 0
    assert saving(Size(1, 513, 512, 512), 8) < 0


# --- what is asked for beside the losses -------------------------------------------------------------------------


def both(
    build: Callable[[], Built], steps: Callable[[gs.MultiObjectiveOptimizer, nn.Module, Losses], Any], **options: Any
) -> None:
    """Fails unless both engines lead to the same gradients."""
    results = []
    for engine in ("ghost", "loop"):
        with default_dtype(torch.float64):
            torch.manual_seed(0)
            module, losses = build()
            optimizer = wrap(module, engine, **options)
            steps(optimizer, module, losses)
        assert optimizer.last_surgery is not None
        assert optimizer.last_surgery.engine.startswith(engine)
        results.append((module, optimizer.last_surgery))
    assert_same_surgery(results[0], results[1], 1e-10)
    for one, other in zip(results[0][0].parameters(), results[1][0].parameters(), strict=True):
        assert_near(one, other, 1e-10)


@pytest.mark.parametrize("name", ["plain", "several_depths", "parts_of_the_trunk", "nothing_in_common"])
def test_an_extra_loss(name: str, mode: str) -> None:
    def steps(optimizer: Any, module: Any, losses: Any) -> None:
        extra = sum(parameter.square().sum() for parameter in module.parameters())
        optimizer.backward(losses(), extra_loss=extra)

    both(GRAPHS[name], steps)
    both(GRAPHS[name], lambda o, m, losses: o.backward(losses(), extra_loss=m[0].weight.sum()))
    both(GRAPHS[name], lambda o, m, losses: o.backward(losses(), extra_loss=torch.tensor(1.0)))
    both(GRAPHS[name], lambda o, m, losses: o.backward((found := losses()), extra_loss=found[0] * 2))


@pytest.mark.parametrize("name", ["plain", "several_depths", "parts_of_the_trunk", "inner_losses"])
def test_the_graph_may_be_kept(name: str, mode: str) -> None:
    def steps(optimizer: Any, module: Any, losses: Any) -> None:
        found = losses()
        optimizer.backward(found, retain_graph=True)
        optimizer.backward(found, retain_graph=True)
        optimizer.backward(found)

    both(GRAPHS[name], steps)


def test_gradients_add_up_over_batches_and_steps(mode: str) -> None:
    def steps(optimizer: Any, module: Any, losses: Any) -> None:
        for _ in range(3):
            optimizer.backward(losses())
            optimizer.backward(losses())
            optimizer.step()
        optimizer.zero_grad()
        optimizer.backward(losses())

    both(plain, steps)


def test_a_scale_of_powers_of_two_changes_no_bit(form: str, mode: str) -> None:
    gradients = []
    for scale in (1.0, 2.0**16):
        torch.manual_seed(0)
        module, losses = plain()
        optimizer = wrap(module, "ghost")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        surgery = optimizer.backward(losses(), grad_scaler=scaler)
        scaler.unscale_(optimizer)
        gradients.append([surgery.gramian, *(parameter.grad for parameter in module.parameters())])
    assert_same_bits(gradients[1], gradients[0])


def test_a_grad_scaler_and_scalarize(mode: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0)
    both(plain, lambda o, m, losses: o.backward(losses(), grad_scaler=scaler))
    both(plain, lambda o, m, losses: (5 * o.scalarize(losses(), extra_loss=m[0].weight.sum())).backward())


def test_closures(mode: str) -> None:
    both(plain, lambda o, m, losses: o.step(lambda: (o.zero_grad(), losses())[1]))
    both(plain, lambda o, m, losses: o.backward(losses))

    results = []
    for engine in ("ghost", "loop"):
        with default_dtype(torch.float64):
            torch.manual_seed(0)
            module, losses = over(mlp(), torch.randn(7, 5), scales=1.0)
            plain_optimizer = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=4)
            optimizer = gs.MultiObjectiveOptimizer(plain_optimizer, gs.MGDA(), engine=engine)

            def closure(optimizer: Any = optimizer, losses: Any = losses) -> Any:
                optimizer.zero_grad()
                return losses()

            for _ in range(2):
                optimizer.step(closure)
        results.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    assert_near(results[0], results[1], 1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rows", [3, 80])
def test_numbers_that_are_not_finite(bad: float, rows: int, form: str, mode: str) -> None:
    torch.manual_seed(0)
    module, x = mlp(96, 96), torch.randn(rows, 96)
    x[1, 2] = bad
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(module.parameters(), 0.1), gs.NashMTL(), engine="ghost")
    y = module(torch.randn(rows, 96))
    optimizer.backward([y.sin().sum(), y.cos().sum(), y.square().sum()])
    state = copy.deepcopy(optimizer.aggregator.state_dict())
    optimizer.zero_grad()
    y = module(x)
    surgery = optimizer.backward([y.sin().sum(), y.cos().sum(), y.square().sum()])
    assert surgery.engine.startswith("ghost")
    assert all(bool(parameter.grad.isnan().any()) for parameter in module[0].parameters())  # type: ignore[union-attr]
    assert_same_bits(dict(optimizer.aggregator.state_dict()), dict(state))


def test_methods_over_the_jacobian_are_refused() -> None:
    module, losses = plain()
    optimizer = wrap(module, "ghost", gs.GradDrop())
    for act in (lambda: optimizer.backward(losses()), lambda: optimizer.jacobian(losses())):
        with pytest.raises(RuntimeError, match=r"Ghost: `engine` must deliver .* engine='auto' or engine='loop'"):
            act()
    with pytest.raises(RuntimeError, match=r"Ghost: `engine` must deliver"):
        wrap(module, "ghost", gs.aggregators.MoDo()).observe(losses(), losses())
    with pytest.raises(RuntimeError, match=r"Ghost: `engine` must deliver"):
        wrap(module, "ghost").jacobian(losses())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_sparse_gradients_of_other_modules_are_the_loops() -> None:
    torch.manual_seed(0)
    module, losses = over(nn.EmbeddingBag(10, 5, mode="sum", sparse=True), torch.randint(0, 10, (3, 8)))
    surgery = wrap(module, "ghost").backward(losses())
    assert (
        surgery.engine == "loop: one backward pass a loss, as there are sparse gradients that 'ghost' does not know"
    )
    assert module.weight.grad is not None
    assert module.weight.grad.is_sparse


def test_a_graph_that_is_gone_says_so() -> None:
    module, losses = plain()
    found = losses()
    sum(found).backward()
    before = [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="second time"):
        wrap(module, "ghost").backward(found)
    assert_same_bits([parameter.grad for parameter in module.parameters()], before)


def test_parameters_changed_since_the_forward_pass_say_so() -> None:
    module, losses = plain()
    found = losses()
    with torch.no_grad():
        module[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        wrap(module, "ghost").backward(found)


# --- memory ------------------------------------------------------------------------------------------------------


class Live(TorchDispatchMode):
    """The largest number of bytes alive that operations inside have brought forth."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors_in((args, kwargs))}
        for tensor in _tensors_in(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and tensor.layout == torch.strided:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: own for key, own in self.alive.items() if not own[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def _tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_of(engine: str, rows: int, width: int, losses: int, depth: int) -> float:
    """What a surgery holds at its peak, in units of K x P."""
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
    y = module(torch.randn(rows, width))
    roots = [(y * torch.randn(width)).sum() for _ in range(losses)]
    with Live() as live:
        surgery = wrap(module, engine).backward(roots)
    assert surgery.engine.startswith(engine)
    return live.peak / (4 * losses * sum(parameter.numel() for parameter in module.parameters()))


def test_memory_never_reaches_that_of_the_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_of("loop", 16, 128, 8, 12) > 1
    assert peak_of("ghost", 16, 256, 8, 12) < 0.6
    monkeypatch.setattr(ghost, "_ALWAYS_KEPT", 0)
    assert peak_of("ghost", 16, 256, 8, 12) < 0.6
    assert peak_of("ghost", 128, 128, 8, 12) < 0.9
    assert peak_of("ghost", 256, 128, 8, 12) < 0.9


def test_layers_with_few_outputs_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few numbers arrive at such layers, and many are formed of them."""
    monkeypatch.setattr(ghost, "_ALWAYS_KEPT", 0)
    module = nn.ModuleList(nn.Linear(4000, 8) for _ in range(12))
    x = torch.randn(60, 4000)
    y = torch.cat([layer(x) for layer in module], 1)
    roots = [(y * torch.randn(96)).sum() for _ in range(8)]
    with Live() as live:
        wrap(module, "ghost").backward(roots)
    assert live.peak / (4 * 8 * sum(parameter.numel() for parameter in module.parameters())) < 0.9
