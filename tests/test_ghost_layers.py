"""Layers of every kind, in all the ways to call them: the ghost engine's numbers are the loop's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ghosts
import pytest
import torch
from ghosts import Built, Model, assert_agrees, over
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

form = ghosts.form


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
