"""The ghost engine against the loop: the same Gramian and direction, in every form and mode, in every precision."""

import math

import ghosts
import pytest
import torch
from ghosts import (
    TOLERANCE,
    Equal,
    Model,
    Watched,
    assert_agrees,
    assert_same_surgery,
    mlp,
    over,
    plain,
    run,
    wrap,
)
from support import assert_near
from test_engines import CASES, Problem
from test_ghost_layers import LAYERS
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.engines import ghost, measured, pieces
from gradsurgery.engines.factored import compressed, saving
from gradsurgery.engines.products import Size

form, mode = ghosts.form, ghosts.mode


def test_the_comparison_can_fail() -> None:
    wanted = run(plain, "loop", torch.float64)
    assert_same_surgery(run(plain, "loop", torch.float64), wanted, 1e-15)
    module, surgery = run(plain, "loop", torch.float64)
    module[0].weight.grad[0, 0] += 1e-8 * float(ghosts.flat({"all": module[0].weight.grad}).norm())
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


@pytest.mark.parametrize("width", [96, 512])
def test_compressed_layers_side_by_side(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "saving", lambda size, _: 1.0)
    forms, _ = assert_agrees(lambda: over(mlp(width, width), torch.randn(80, width), losses=2))
    assert list(forms.values()).count("Compressed") == 3


def test_products_over_few_rows_are_compressed() -> None:
    forms, surgery = assert_agrees(LAYERS["wide linear"].built)
    assert forms == {"0.weight": "Compressed", "0.bias": "Summed", "2.weight": "Compressed", "2.bias": "Summed"}
    assert surgery.engine == "ghost: gradients formed of 2 of 4 parameters"
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
    assert saving(Size(1, 0, 4096, 4096), 8) < 0
