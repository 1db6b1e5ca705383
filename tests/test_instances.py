"""One loss a sample, in one tensor: the numbers of a pass a loss, from one pass; samples that mix are refused."""

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import assert_near, assert_same_bits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery.aggregators import CONTRACTS, Aggregator, GramianAggregator, Random
from gradsurgery.engines.samples import inner_products, passes, pieces
from gradsurgery.engines.samples.layout import Layout, halves, layouts

SAMPLES, FEATURES, LENGTH, WORDS = 6, 5, 4, 11


class Lambda(nn.Module):
    """A module, and how it is called."""

    def __init__(self, inner: nn.Module, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner, x)


class Bare(nn.Module):
    """Parameters used in bare products, sums and differences, some of them twice and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, FEATURES) * 0.4)
        self.shift = nn.Parameter(torch.randn(FEATURES))
        self.scale = nn.Parameter(torch.randn(()))
        self.stretch = nn.Parameter(torch.randn(1, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        once = torch.tanh(x @ self.weight - self.shift) * self.stretch
        return torch.tanh(functional.linear(once, self.weight, self.shift)) * self.scale


class Columns(nn.Module):
    """Samples in the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, FEATURES))
        self.rest = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(torch.tanh(self.weight @ x.T).T)


class Classifier(nn.Module):
    """A transformer over words, with learned positions, a token for the class, and a learned temperature."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, 8, padding_idx=2), nn.Embedding(LENGTH, 8)
        self.offset, self.token = nn.Parameter(torch.randn(9, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
        self.temperature, self.head = nn.Parameter(torch.zeros(())), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.words(x) + self.positions(torch.arange(LENGTH)) + self.offset[:LENGTH]
        sequence = torch.cat([self.token.expand(len(x), -1, -1), embedded], 1)
        if self.layer.self_attn.batch_first:
            return self.head(self.layer(sequence)[:, 0]) * self.temperature.exp()
        return self.head(self.layer(sequence.transpose(0, 1))[0]) * self.temperature.exp()


class Adapted(nn.Module):
    """A weight that is the sum of a fixed one and a product of two small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Linear(6, 6)
        self.first, self.second = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(functional.linear(x, self.fixed.weight + self.first @ self.second, self.fixed.bias))


class Transposed(nn.Module):
    """A weight made of others, and a layer that does not tell what it does with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 12))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv_transpose1d(x, (self.first @ self.second).view(6, 4, 3))


class TiedEmbedding(nn.Module):
    """A table that words are looked up in, and that scores them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(WORDS, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.tanh(self.inner(self.words(x))), self.words.weight)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 7))


def vectors() -> Tensor:
    return torch.randn(SAMPLES, FEATURES)


def sequences() -> Tensor:
    return torch.randn(SAMPLES, LENGTH, FEATURES)


def words() -> Tensor:
    return torch.randint(0, WORDS, (SAMPLES, LENGTH))


def images() -> Tensor:
    return torch.randn(SAMPLES, 2, 6, 6)


@dataclass
class Case:
    """A model, its input, and how many of its parameters take a pass a loss."""

    model: Callable[[], nn.Module]
    inputs: Callable[[], Tensor] = vectors
    passed: int = 0


CASES = {
    "mlp": Case(mlp),
    "linear layers over sequences": Case(mlp, sequences),
    "bare products": Case(Bare),
    "samples in columns": Case(Columns),
    "convolutions": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2, groups=2),
            nn.BatchNorm2d(6).eval(),
            nn.Flatten(),
            nn.Linear(24, 4),
        ),
        images,
    ),
    "few positions": Case(
        lambda: nn.Sequential(nn.Conv1d(8, 9, 3, dilation=2), nn.Tanh(), nn.Conv1d(9, 8, 2), nn.Flatten()),
        lambda: torch.randn(SAMPLES, 8, 6),
    ),
    "as many positions as samples": Case(
        lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
        lambda: torch.randn(SAMPLES, SAMPLES, FEATURES),
    ),
    "as many positions as samples, which come second": Case(
        lambda: Lambda(
            nn.Sequential(nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
            lambda inner, x: inner(x.transpose(0, 1).contiguous()).transpose(0, 1),
        ),
        lambda: torch.randn(SAMPLES, SAMPLES, FEATURES),
    ),
    "layer norm": Case(
        lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.RMSNorm(8), nn.Linear(8, 3)), sequences
    ),
    "dropout": Case(lambda: nn.Sequential(nn.Linear(FEATURES, 9), nn.Dropout(0.5), nn.Linear(9, 4))),
    "transformer, batch first": Case(lambda: Classifier(batch_first=True), words),
    "transformer, sequence first": Case(lambda: Classifier(batch_first=False), words),
    "gru": Case(lambda: Lambda(nn.GRU(FEATURES, 6), lambda gru, x: gru(x.transpose(0, 1))[0][-1]), sequences),
    "sparse embedding": Case(
        lambda: nn.Sequential(nn.Embedding(WORDS, 4, sparse=True, padding_idx=3), nn.Flatten(), nn.Linear(16, 5)),
        words,
    ),
    "embedding used twice": Case(
        lambda: Lambda(nn.Embedding(WORDS, 4), lambda table, x: table(x[:, :2]) * torch.tanh(table(x[:, 2:]))), words
    ),
    "tied embedding": Case(TiedEmbedding, words),
    "weight made of others": Case(Adapted, lambda: torch.randn(SAMPLES, 6)),
    "weight made of others, used in an unknown way": Case(Transposed, lambda: torch.randn(SAMPLES, 6, 5), passed=2),
    "weight norm": Case(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, 4))),
    "checkpointing": Case(lambda: Lambda(mlp(), lambda inner, x: checkpoint(inner, x, use_reentrant=False))),
    "prelu": Case(lambda: nn.Sequential(nn.Linear(FEATURES, 9), nn.PReLU(), nn.Linear(9, 4)), passed=1),
    "convolution over the samples": Case(
        lambda: Lambda(nn.Conv1d(FEATURES, 3, 3, padding=1), lambda inner, x: inner(x.T[None])[0].T), passed=1
    ),
    "bilinear": Case(lambda: Lambda(nn.Bilinear(FEATURES, FEATURES, 3), lambda inner, x: inner(x, x)), passed=1),
    "instance norm": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.Flatten()), images, passed=2
    ),
}


def one_each(outputs: Tensor) -> Tensor:
    own = outputs.flatten(1)
    return own.square().mean(1) + own.sin().sum(1)


def two_each(outputs: Tensor) -> Tensor:
    own = outputs.flatten(1)
    return torch.stack([own.square().mean(1), own.sin().sum(1)], 1)


def optimizer_of(model: nn.Module, method: Any = None, **options: Any) -> gs.MultiObjectiveOptimizer:
    method = Random(generator=torch.Generator().manual_seed(3)) if method is None else method
    return gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), method, **options)


def gradients_of(model: nn.Module) -> Tensor:
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in model.parameters()]
    return torch.cat([grad.flatten().double() for grad in grads])


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The dtype of a model, and of everything that torch creates."""
    torch.set_default_dtype(request.param)
    torch.manual_seed(0)
    yield request.param
    torch.set_default_dtype(torch.float32)


def compared(
    case: Case, losses: Callable[[Tensor], Tensor], dtype: torch.dtype, steps: int = 2, **options: Any
) -> list[str]:
    """Runs steps on a tensor and on its entries one by one; fails where they differ. Returns what was done."""
    model, inputs = case.model(), case.inputs()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10

    def evaluated() -> Tensor:
        torch.manual_seed(5)
        return losses(model(inputs))

    loop = optimizer_of(model, engine="loop", **options)
    expected = loop.backward(list(evaluated().flatten().unbind()))
    wanted = gradients_of(model)
    optimizer = optimizer_of(model, **options)
    done = []
    for _ in range(steps):  # the first one looks whether samples mix, the others trust it
        model.zero_grad()
        optimizer.aggregator.generator.manual_seed(3)
        surgery = optimizer.backward(evaluated())
        assert_same_bits(surgery.weights, expected.weights)
        assert_same_bits(surgery.losses, expected.losses)
        assert_near(surgery.gramian, expected.gramian, tolerance)
        assert_near(gradients_of(model), wanted, tolerance)
        done.append(surgery.engine)
    return done


@pytest.mark.parametrize("losses", [one_each, two_each])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_numbers_are_those_of_a_pass_a_loss(
    case: Case, losses: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    for done in compared(case, losses, dtype):
        assert done.startswith("ghost: ")
        assert ("by a pass a loss" in done) == (case.passed > 0)
        assert case.passed == 0 or f"{case.passed} of " in done


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_numbers_stay_when_little_may_be_held_at_a_time(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (inner_products, passes, pieces):
        monkeypatch.setattr(module, "SCRATCH", 40)
    compared(case, two_each, dtype, steps=1)


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("name", ["linear layers over sequences", "convolutions", "gru", "samples in columns"])
def test_both_forms_of_products(name: str, pairs: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "is_by_pairs", lambda *sizes: pairs)
    compared(CASES[name], two_each, dtype, steps=1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 8])
def test_any_number_of_samples(samples: int, batch_first: bool, dtype: torch.dtype) -> None:
    case = Case(lambda: Classifier(batch_first=batch_first), lambda: torch.randint(0, WORDS, (samples, LENGTH)))
    model, inputs = case.model().eval(), case.inputs()
    optimizer = optimizer_of(model, gs.MGDA(), shared=model)
    surgery = optimizer.backward(one_each(model(inputs)))
    found = gradients_of(model)
    model.zero_grad()
    expected = optimizer_of(model, gs.MGDA(), shared=model, engine="loop").backward(
        list(one_each(model(inputs)).unbind())
    )
    assert_near(surgery.gramian, expected.gramian, 1e-5 if dtype == torch.float32 else 1e-10)
    assert_near(found, gradients_of(model), 1e-3 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("scope", ["module", "tensor"])
def test_a_surgery_for_each_group(scope: str, dtype: torch.dtype) -> None:
    for name in ("convolutions", "transformer, batch first", "prelu"):
        model = CASES[name].model()
        case = Case(lambda model=model: model, CASES[name].inputs)
        compared(case, two_each, dtype, steps=1, scope=scope, shared=model)


def test_what_is_not_shared_gets_the_plain_sum(dtype: torch.dtype) -> None:
    model, inputs = mlp(), vectors()
    surgery = optimizer_of(model, gs.Mean(), shared=model[0]).backward(two_each(model(inputs)))
    found = gradients_of(model)
    model.zero_grad()
    losses = two_each(model(inputs))
    losses.sum().backward()
    wanted = gradients_of(model)
    own = sum(parameter.numel() for parameter in model[0].parameters())
    wanted[:own] /= losses.numel()
    assert_near(found, wanted, 1e-6)
    assert surgery.gramian is not None
    assert surgery.gramian.shape == (2 * SAMPLES, 2 * SAMPLES)


def test_extra_loss_is_added(dtype: torch.dtype) -> None:
    model, inputs = mlp(), vectors()
    optimizer = optimizer_of(model, gs.Mean())
    losses = one_each(model(inputs))
    optimizer.backward(losses, extra_loss=losses.square().sum() + model[2].bias.sum())
    found = gradients_of(model)
    model.zero_grad()
    losses = one_each(model(inputs))
    (losses.mean() + losses.square().sum() + model[2].bias.sum()).backward()
    assert_near(found, gradients_of(model), 1e-6)


# --- samples that mix ----------------------------------------------------------------------------------------------


def in_pairs(outputs: Tensor) -> Tensor:
    return outputs.view(3, 2, -1).flip(1).reshape(SAMPLES, -1)


MIXED: dict[str, tuple[Case, Callable[[Tensor], Tensor]]] = {
    "mean subtracted": (Case(mlp), lambda outputs: one_each(outputs - outputs.mean(0))),
    "sum of those before": (Case(mlp), lambda outputs: one_each(outputs.cumsum(0))),
    "pairs": (Case(mlp), lambda outputs: one_each(outputs + in_pairs(outputs))),
    "pairs exchanged": (Case(mlp), lambda outputs: one_each(in_pairs(outputs))),
    "contrastive": (Case(mlp), lambda outputs: -(outputs @ outputs.T).log_softmax(1).diagonal()),
    "attention across the batch": (
        Case(lambda: nn.TransformerEncoderLayer(8, 2, 12), lambda: torch.randn(SAMPLES, LENGTH, 8)),
        one_each,
    ),
}


@pytest.mark.parametrize(("case", "losses"), MIXED.values(), ids=MIXED.keys())
def test_samples_that_mix_are_refused(case: Case, losses: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    model, inputs = case.model(), case.inputs()
    optimizer = optimizer_of(model)
    with pytest.raises(RuntimeError, match="samples that do not mix"):
        optimizer.backward(losses(model(inputs)))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert optimizer.last_surgery is None


@pytest.mark.parametrize(("case", "losses"), MIXED.values(), ids=MIXED.keys())
@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_samples_that_mix_take_a_pass_a_loss(
    engine: str, case: Case, losses: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    model, inputs = case.model().eval(), case.inputs()
    surgery = optimizer_of(model, gs.Mean(), engine=engine).backward(losses(model(inputs)))
    found = gradients_of(model)
    model.zero_grad()
    losses(model(inputs)).mean().backward()
    assert_near(found, gradients_of(model), 1e-4 if dtype == torch.float32 else 1e-10)
    assert surgery.engine.startswith("loop")


def test_batch_norm_in_train_mode_is_refused_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = optimizer_of(model)
    with pytest.raises(RuntimeError, match=r"BatchNorm in train mode on the way, over an input of shape \(6, 8\)"):
        optimizer.backward(one_each(model(vectors())))
    model[1].eval()
    assert optimizer.backward(one_each(model(vectors()))).engine.startswith("ghost")


def test_statistics_of_the_inputs_do_not_matter(dtype: torch.dtype) -> None:
    model = Lambda(mlp(), lambda inner, x: inner((x - x.mean(0)) / x.std(0)))
    compared(Case(lambda: model), one_each, dtype)


class Counted(torch.autograd.Function):
    """Does nothing, and counts the backward passes."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Counted.passes += 1
        return gradient


def passes_of(optimizer: gs.MultiObjectiveOptimizer, losses: Callable[[], Tensor]) -> int:
    Counted.passes = 0
    optimizer.backward(losses())
    return Counted.passes


def test_looks_once_for_each_structure() -> None:
    torch.manual_seed(0)
    model = mlp()
    optimizer = optimizer_of(model)

    def passes(samples: int, losses: Callable[[Tensor], Tensor] = one_each) -> int:
        return passes_of(optimizer, lambda: losses(Counted.apply(model(torch.randn(samples, FEATURES)))))

    assert [passes(6), passes(6), passes(4), passes(4), passes(6)] == [2, 1, 2, 1, 1]
    assert [passes(6, two_each), passes(6, two_each)] == [4, 2]
    copied = pickle.loads(pickle.dumps(optimizer))
    assert isinstance(copied, gs.MultiObjectiveOptimizer)


def test_layers_that_look_alike_are_told_apart() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, FEATURES) for _ in range(2)]
    inputs = torch.randn(SAMPLES, SAMPLES, FEATURES)

    def losses() -> Tensor:
        outputs = functional.linear(
            torch.tanh(layers[0](inputs)).transpose(0, 1).contiguous(), *layers[1].parameters()
        )
        return one_each(outputs.transpose(0, 1))

    model = nn.ModuleList(layers)
    optimizer, found = optimizer_of(model, gs.Mean()), []
    for trained in (layers[0], layers[1], model, layers[0]):
        model.requires_grad_(False)
        trained.requires_grad_(True)
        found.append(optimizer.backward(losses()).gramian)
    loop = optimizer_of(model, gs.Mean(), engine="loop")
    for trained, gramian in zip((layers[0], layers[1], model, layers[0]), found, strict=True):
        model.requires_grad_(False)
        trained.requires_grad_(True)
        assert_near(gramian, loop.backward(losses()).gramian, 1e-5)


def test_looks_again_until_something_has_arrived() -> None:
    torch.manual_seed(0)
    first, second, gate = nn.Linear(FEATURES, 4), nn.Linear(FEATURES, 4), torch.zeros(())
    optimizer = optimizer_of(nn.ModuleList([first, second]))

    def losses() -> Tensor:
        x = vectors()
        mixed = first(x) - first(x).mean(0)
        return one_each(gate * mixed + Counted.apply(second(x)))

    assert [passes_of(optimizer, losses), passes_of(optimizer, losses)] == [2, 2]
    gate.fill_(1.0)
    with pytest.raises(RuntimeError, match="samples that do not mix"):
        optimizer.backward(losses())


@pytest.mark.parametrize("samples", [*range(2, 20), 64, 100])
def test_halves_tell_any_two_samples_apart(samples: int) -> None:
    found = list(halves(samples, 0))
    told = torch.zeros(samples, samples, dtype=torch.bool)
    for one, other in found:
        assert bool((one ^ other).all())
        told |= one.unsqueeze(1) & other
    told |= told.T.clone()
    assert bool((told | torch.eye(samples, dtype=torch.bool)).all())


def test_layouts_are_those_that_fit_the_shape() -> None:
    found = layouts((6, 12, 5), (0, 1, 2), 6)
    assert found == [Layout(0, 1, 6, 1), Layout(1, 1, 6, 2), Layout(1, 2, 6, 1)]
    rows = torch.arange(12)
    assert Layout(0, 1, 6, 2).apart(rows).tolist() == rows.view(6, 2).tolist()
    assert Layout(0, 2, 6, 1).apart(rows).tolist() == rows.view(2, 6).T.tolist()
    assert [one.owners().tolist() for one in found[1:]] == [sorted([*range(6)] * 2), [*range(6)] * 2]


# --- numbers -------------------------------------------------------------------------------------------------------


def test_terms_that_cancel_within_a_sample() -> None:
    torch.manual_seed(0)
    model = nn.Linear(40, 30)
    inputs = torch.randn(SAMPLES, 1, 40) + 1e-4 * torch.randn(SAMPLES, 8, 40)
    signs = torch.tensor([1.0, -1.0]).repeat(4).unsqueeze(1)

    def gramian(model: nn.Module, dtype: torch.dtype, **options: Any) -> Tensor:
        return optimizer_of(model, **options).backward((model(inputs.to(dtype)) * signs).sum((1, 2))).gramian

    found = gramian(model, torch.float32)
    model.zero_grad()
    assert_near(found, gramian(model.double(), torch.float64, engine="loop"), 1e-9)


def test_terms_that_cancel_between_samples() -> None:
    torch.manual_seed(0)
    model, signs = nn.Linear(40, 30), torch.tensor([1.0, -1.0]).repeat(50)
    inputs = torch.randn(1, 40) + 1e-5 * torch.randn(100, 40)
    optimizer_of(model, gs.Sum()).backward(model(inputs).sum(1) * signs)
    found = gradients_of(model)
    model.double().zero_grad()
    (model(inputs.double()).sum(1) * signs).sum().backward()
    assert_near(found, gradients_of(model), 1e-5)


@pytest.mark.parametrize("exponent", [-40, 3, 60])
def test_powers_of_two_change_no_bit(exponent: int) -> None:
    for name in ("linear layers over sequences", "convolutions", "transformer, sequence first"):
        torch.manual_seed(0)
        model, inputs = CASES[name].model().eval(), CASES[name].inputs()
        results = []
        for scale in (1.0, 2.0**exponent):
            model.zero_grad()
            surgery = optimizer_of(model).backward(one_each(model(inputs)) * scale)
            results.append((surgery.gramian / scale**2, gradients_of(model) / scale))
        assert_same_bits(results[0], results[1])


def test_autocast_gives_products_of_the_same_factors() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(FEATURES, 4), vectors()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(inputs)
    factors = torch.tensor([1.0, -2.0, 0.5, 4.0])
    surgery = optimizer_of(model).backward((outputs.float() * factors).sum(1))
    rows = inputs.bfloat16().double()
    assert_near(surgery.gramian, float(factors.double().square().sum()) * (rows @ rows.T + 1), 1e-12)
    assert surgery.weights is not None
    assert_near(model.weight.grad, torch.outer(factors.double(), surgery.weights @ rows), 1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_sample_that_is_not_finite_gives_nan_and_changes_no_state(value: float) -> None:
    torch.manual_seed(0)
    model, good = Classifier(batch_first=True).eval(), words()
    optimizer = optimizer_of(model)
    factor = torch.ones(SAMPLES)

    def perform() -> None:
        model.zero_grad()
        optimizer.backward(one_each(model(good)) * factor)

    for _ in range(2):  # while it looks whether samples mix, and afterwards
        factor[2] = value
        before = optimizer.aggregator.generator.get_state()
        perform()
        assert bool(model.head.weight.grad.isnan().all())
        assert_same_bits(optimizer.aggregator.generator.get_state(), before)
        factor.fill_(1.0)
        perform()
        assert bool(gradients_of(model).isfinite().all())
        assert not torch.equal(optimizer.aggregator.generator.get_state(), before)


def test_samples_without_a_gradient_are_rows_of_zeros(dtype: torch.dtype) -> None:
    factor = torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0, 1.0])
    compared(CASES["mlp"], lambda outputs: one_each(outputs) * factor, dtype)
    compared(CASES["convolutions"], lambda outputs: one_each(outputs).detach() + 0.0 * one_each(outputs), dtype)


@given(
    st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99)
)
def test_products_without_gradients(samples: int, losses: int, rows: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    deltas = torch.randn(samples, losses, rows, height, generator=generator)
    inputs = torch.randn(samples, rows, width, generator=generator)
    formed = torch.einsum("nkth,ntw->nkhw", deltas.double(), inputs.double()).flatten(0, 1).flatten(1)
    wanted = (formed @ formed.T).tril()
    assert_near(inner_products.by_pairs(deltas, inputs).tril(), wanted, 1e-12)
    found = inner_products.by_gradients(deltas.unsqueeze(2), lambda first, last: inputs[first:last, None], width)
    assert_near(found.tril(), wanted, 1e-12)
    places = torch.randint(-1, 4, (samples, rows), generator=generator)
    hits = functional.one_hot(places + 1, 5)[..., 1:].double()
    formed = torch.einsum("nkth,ntv->nkvh", deltas.double(), hits).flatten(0, 1).flatten(1)
    assert_near(inner_products.by_occurrences(deltas, places).tril(), (formed @ formed.T).tril(), 1e-12, 1e-14)


# --- methods, and what else can be asked for -----------------------------------------------------------------------


@pytest.mark.parametrize("cls", CONTRACTS)
def test_methods_without_a_state_work_and_others_are_refused(cls: type[Aggregator]) -> None:
    torch.manual_seed(0)
    model, inputs = mlp().double(), vectors().double()
    method = CONTRACTS[cls].build()
    if method.keeps_buffers or not isinstance(method, GramianAggregator) or method.needs_jacobian:
        with pytest.raises(TypeError, match=f"with {cls.__name__}"):
            optimizer_of(model, method).backward(one_each(model(inputs)))
        return
    other = copy.deepcopy(method)  # which draws the same
    surgery = optimizer_of(model, method).backward(one_each(model(inputs)))
    found = gradients_of(model)
    model.zero_grad()
    expected = optimizer_of(model, other, engine="loop").backward(one_each(model(inputs)))
    assert_near(surgery.weights, expected.weights, 1e-6)
    assert_near(found, gradients_of(model), 1e-6)


def test_methods_over_the_jacobian_work_with_a_pass_a_loss() -> None:
    model, inputs = mlp(), vectors()
    surgery = optimizer_of(model, gs.GradDrop(), engine="loop").backward(one_each(model(inputs)))
    assert surgery.engine.startswith("loop")
    assert bool(gradients_of(model).isfinite().all())


def test_what_is_known_of_named_losses_stays() -> None:
    model, inputs = mlp(), vectors()
    optimizer = optimizer_of(model, gs.MGDA())
    outputs = model(inputs)
    optimizer.backward({"one": outputs[:, 0].sum(), "other": outputs[:, 1].sum()})
    before = optimizer.state_dict()["gradsurgery"]["losses"]
    surgery = optimizer.backward(two_each(model(inputs)))
    assert surgery.names[:3] == ("0, 0", "0, 1", "1, 0")
    assert optimizer.backward(one_each(model(inputs))).names == ("0", "1", "2", "3", "4", "5")
    assert optimizer.state_dict()["gradsurgery"]["losses"] == before == ["one", "other"]


def test_graph_is_kept_on_request_only() -> None:
    model, inputs = mlp(), vectors()
    optimizer = optimizer_of(model, gs.Mean())
    optimizer.backward(one_each(model(inputs)))  # to look whether samples mix, passes need the graph in any case
    model.zero_grad()
    losses = one_each(model(inputs))
    optimizer.backward(losses, retain_graph=True)
    once = gradients_of(model)
    optimizer.backward(losses)
    assert_same_bits(gradients_of(model), 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        optimizer.backward(losses)


def test_scale_of_mixed_precision_is_not_seen_by_the_method() -> None:
    model, inputs = mlp(), vectors()
    optimizer = optimizer_of(model, gs.MGDA())
    plain = optimizer.backward(one_each(model(inputs)))
    wanted = gradients_of(model)
    model.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled = optimizer.backward(one_each(model(inputs)), grad_scaler=scaler)
    assert_near(scaled.gramian, plain.gramian, 1e-6)
    assert_near(gradients_of(model), 1024 * wanted, 1e-4)


def test_one_scalar_whose_backward_is_the_surgery() -> None:
    model, inputs = mlp(), vectors()
    optimizer = optimizer_of(model, gs.MGDA())
    optimizer.backward(one_each(model(inputs)))
    wanted = gradients_of(model)
    model.zero_grad()
    losses = one_each(model(inputs))
    scalar = optimizer.scalarize(losses)
    assert_near(scalar, losses.sum(), 1e-6)
    (2 * scalar).backward()
    assert_near(gradients_of(model), 2 * wanted, 1e-5)


def test_jacobian_has_a_row_for_each_loss() -> None:
    model, inputs = mlp(), vectors()
    rows = optimizer_of(model, gs.MGDA()).jacobian(two_each(model(inputs)))
    assert [tuple(row.shape) for row in rows] == [(12, *parameter.shape) for parameter in model.parameters()]
    flat = torch.cat([row.flatten(1) for row in rows], 1).double()
    surgery = optimizer_of(model, gs.MGDA()).backward(lambda: two_each(model(inputs)))
    assert_near(surgery.gramian, flat @ flat.T, 1e-5)


def test_scalarizers_take_them_one_by_one() -> None:
    model, inputs = mlp(), vectors()
    surgery = optimizer_of(model, gs.scalarizers.Sum()).backward(one_each(model(inputs)))
    found = gradients_of(model)
    model.zero_grad()
    one_each(model(inputs)).sum().backward()
    assert_near(found, gradients_of(model), 1e-6)
    assert len(surgery.names) == SAMPLES
    with pytest.raises(TypeError, match="remembers something from step to step"):
        optimizer_of(model, gs.scalarizers.UncertaintyWeighting()).backward(one_each(model(inputs)))


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        (lambda outputs: outputs.sum(), TypeError, "not their sum"),
        (lambda outputs: outputs[:0], ValueError, r"of shape \(N,\) or \(N, K\)"),
        (lambda outputs: outputs.unsqueeze(0), ValueError, r"got \(1, 6, 7\)"),
        (lambda outputs: outputs.detach(), ValueError, "must require a gradient"),
        (lambda outputs: outputs.round().long(), TypeError, "must be floating point"),
        (lambda outputs: outputs.to(torch.complex64), TypeError, "must be floating point"),
    ],
)
def test_other_tensors_are_refused(losses: Callable[[Tensor], Tensor], error: type[Exception], message: str) -> None:
    model = mlp()
    with pytest.raises(error, match=message):
        optimizer_of(model).backward(losses(model(vectors())))


def test_engines_that_need_a_callable_are_refused() -> None:
    model = mlp()
    with pytest.raises(TypeError, match="must not need a callable"):
        optimizer_of(model, engine="func", shared=model).backward(one_each(model(vectors())))
    with pytest.raises(TypeError, match="not for engine='func'"):
        optimizer_of(model, engine="func", shared=model).backward(lambda: one_each(model(vectors())))


def test_hooks_on_parameters_are_obeyed(dtype: torch.dtype) -> None:
    model = mlp()
    model[0].weight.register_hook(lambda gradient: 2 * gradient)
    compared(Case(lambda: model), one_each, dtype)


class _Largest(TorchDispatchMode):
    """Knows the size of the largest tensor that was made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("length", [1, 40])
def test_no_gradients_of_all_samples_are_ever_held(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner_products, "SCRATCH", 1 << 12)
    model = nn.Sequential(nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 48))
    losses = one_each(model(torch.randn(32, length, 48)))
    with _Largest() as largest:
        optimizer_of(model, gs.MGDA()).backward(losses)
    assert largest.numel <= max(48 * 48, 32 * length * 48)  # a weight, or what a layer returns


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_what_samples_share_tasks_need_not(engine: str) -> None:
    """After a step on samples, which reach everything, a step on tasks finds shared what it found before."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 5), nn.ModuleList(nn.Linear(5, 1) for _ in range(2))
    plain = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], 0.0)
    optimizer = gs.MultiObjectiveOptimizer(plain, gs.MGDA(), engine=engine)
    x = torch.randn(6, 4)

    def tasks() -> dict[str, Tensor]:
        return {str(place): head(trunk(x)).square().mean() for place, head in enumerate(heads)}

    before = optimizer.backward(tasks()).gramian
    optimizer.backward(sum(head(trunk(x)) for head in heads).square().flatten())
    after = optimizer.backward(tasks()).gramian
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
