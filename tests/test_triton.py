"""The fused kernels against the ones that define them: on a GPU where there is one, else in Triton's interpreter."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_near, assert_same_bits, gaussian
from torch import Tensor

from gradsurgery import kernels
from gradsurgery.aggregators.gradvac import _vaccinate
from gradsurgery.aggregators.pcgrad import random_order
from gradsurgery.kernels import obstacles, reference, worklist

tl = pytest.importorskip("triton.language")
InterpretedFunction = importlib.import_module("triton.runtime.interpreter").InterpretedFunction
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
with patch.dict(os.environ, {} if DEVICE == "cuda" else {"TRITON_INTERPRET": "1"}):  # read where kernels are defined
    from gradsurgery.kernels import triton as fused
    from gradsurgery.kernels import triton_combine, triton_project

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda block: block.T.contiguous().T,
    "every other column": lambda block: block.repeat_interleave(2, dim=1)[:, ::2],
    "every other row": lambda block: block.repeat_interleave(2, dim=0)[::2],
    "offset": lambda block: torch.cat([block, block], dim=1)[:, block.shape[1] :],
    "permuted": lambda block: block.reshape(len(block), 1, 1, -1).permute(0, 3, 1, 2),
    "expanded rows": lambda block: block[:1].expand(len(block), -1),
    "expanded columns": lambda block: block[:, :1].expand(-1, block.shape[1]),
}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's own functions are for GPUs where torch imported it before this file, so the interpreter gets copies.

    It computes 0 / 0 and overflows aloud.
    """
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        for name in ("max", "sum", "zeros"):
            function = getattr(tl, name)
            monkeypatch.setattr(tl, name, InterpretedFunction(function.fn))
    with np.errstate(all="ignore"):
        yield


def block(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return gaussian(rows, columns, seed).to(DEVICE, dtype)


def assert_gramian(
    found: Tensor, blocks: list[Tensor], groups: list[int] | None = None, relative: float = 5e-7
) -> None:
    """Fails unless each entry is right to a fraction of the norms of its two rows."""
    expected = reference.gramian(blocks, groups)
    assert found.shape == expected.shape
    assert found.dtype == torch.float64
    norms = expected.diagonal(dim1=1, dim2=2).sqrt()
    allowed = relative * norms.unsqueeze(1) * norms.unsqueeze(2)
    assert bool(((found - expected).abs() <= allowed).all()), float(((found - expected).abs() / allowed).max())
    assert_same_bits(found, found.mT.contiguous())


def assert_directions(found: list[Tensor], expected: list[Tensor]) -> None:
    """Fails unless each entry is the same up to the last bit; the interpreter cuts bfloat16 off."""
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    for one, other in zip(found, expected, strict=True):
        error = (one.double() - other.double()).abs()
        smallest = torch.finfo(other.dtype).smallest_normal * torch.finfo(other.dtype).eps
        assert bool((error <= torch.finfo(other.dtype).eps * other.double().abs() + smallest).all()), error.max()


def test_the_kernels_run_here() -> None:
    """Were they defined before this file was read, nothing below would test them."""
    assert DEVICE == "cuda" or fused.INTERPRETED
    kinds = {type(triton_combine.combinations), type(triton_project.projections), type(fused.partial_gramians)}
    assert (kinds == {InterpretedFunction}) == (DEVICE == "cpu")


# --- gramian -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 300), (2, 31), (3, 700), (7, 129), (8, 33), (16, 65)])
def test_gramian(rows: int, columns: int, dtype: torch.dtype) -> None:
    blocks = [block(rows, columns, dtype)]
    assert_gramian(kernels.gramian(blocks, fused=True), blocks)


@pytest.mark.parametrize("rows", [17, 33, 64])
def test_gramian_of_many_rows(rows: int) -> None:
    blocks = [block(rows, 65)]
    assert_gramian(kernels.gramian(blocks, fused=True), blocks)


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("rows", [1, 3])
def test_gramian_of_strided_blocks(rows: int, strides: str) -> None:
    blocks = [STRIDES[strides](block(rows, 37))]
    assert_gramian(kernels.gramian(blocks, fused=True), blocks)


def test_gramian_adds_up_blocks_of_all_kinds() -> None:
    blocks = [
        block(3, 5, seed=1),
        block(3, 12, torch.bfloat16, seed=2).reshape(3, 2, 3, 2),
        block(3, 1, seed=3).squeeze(1),
        block(3, 0),
        block(3, 4, torch.float16, seed=4),
    ]
    assert_gramian(kernels.gramian(blocks, fused=True), blocks)
    assert_same_bits(kernels.gramian([block(3, 0)], fused=True), torch.zeros(1, 3, 3, dtype=torch.float64))


@pytest.mark.parametrize("rows", [3, 17])
def test_groups_are_surgeries_of_their_own(rows: int) -> None:
    blocks = [block(rows, columns, seed=columns) for columns in (4, 1, 7, 0, 2)]
    groups = [2, 0, 2, 1, 3]
    mixed = [part.to(dtype) for part, dtype in zip(blocks, 2 * DTYPES, strict=False)]
    assert_gramian(kernels.gramian(mixed, groups, fused=True), mixed, groups)


@pytest.mark.parametrize(("rows", "most"), [(2, 1), (2, 3), (2, 100), (17, 1)])
def test_tiles_and_pieces_meet(rows: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of many tiles, in few pieces of several tiles or in many of one."""
    options = fused.gramian_options
    monkeypatch.setattr(fused, "gramian_options", lambda *kind: {**options(*kind), "TILE": 64})
    monkeypatch.setattr(fused, "most_pieces", lambda size: most)
    columns = (64, 300, 1, 128) if rows == 2 else (65, 1)
    blocks = [block(rows, length, seed=length) for length in columns]
    groups = list(range(len(blocks)))[::-1]
    assert_gramian(kernels.gramian(blocks, fused=True), blocks)
    assert_gramian(kernels.gramian(blocks, groups, fused=True), blocks, groups)


def test_pieces_are_added_up_in_depth() -> None:
    partial = gaussian(5000, 4).to(DEVICE)
    table = torch.tensor([0, 1, 4999, 5000], device=DEVICE)
    found = torch.empty(3, 4, dtype=torch.float64, device=DEVICE)
    worklist.launch(fused.sums_of_partials, (3, 1), partial.device, table, partial, found, 0, **fused.sum_options(2))
    expected = torch.stack([partial[0], partial[1:4999].sum(0), partial[4999]])
    assert_near(found.cpu(), expected.cpu(), 1e-14)


@pytest.mark.parametrize(("rows", "dtype"), [(4, torch.bfloat16), (4, torch.float32), (17, torch.float32)])
def test_tiny_and_huge_rows(rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also side by side, where one row changes its size from tile to tile, and below the normal numbers."""
    options = fused.gramian_options
    monkeypatch.setattr(fused, "gramian_options", lambda *kind: {**options(*kind), "TILE": 64})
    wide = gaussian(rows, 150)
    wide[0] *= 1e-30
    wide[1] *= 1e30
    wide[2, :64] *= 1e-36
    wide[2, 64:128] *= 1e36
    if dtype == torch.float32 or DEVICE == "cuda":  # the interpreter misreads the smallest bfloat16 numbers
        wide[3] *= 1e-39
    blocks = [wide.to(DEVICE, dtype)]
    assert_gramian(kernels.gramian(blocks, fused=True), blocks)


def test_tiny_half_precision_rows() -> None:
    wide = gaussian(3, 50)
    blocks = [(wide * torch.tensor([[3e-7], [1.0], [1e4]])).to(DEVICE, torch.float16)]
    assert_gramian(kernels.gramian(blocks, fused=True), blocks)


@settings(max_examples=15)
@given(rows=st.integers(1, 5), columns=st.integers(1, 40), data=st.data())
def test_powers_of_two_pass_through(rows: int, columns: int, data: st.DataObject) -> None:
    """Bit for bit, whether the rows have to be scaled or not."""
    seed = data.draw(st.integers(0, 99))
    exponents = data.draw(st.lists(st.integers(-90, 90), min_size=rows, max_size=rows))
    factors = torch.tensor([2.0**exponent for exponent in exponents], dtype=torch.float64)
    plain = gaussian(rows, columns, seed).float()
    scaled = plain * factors.float().unsqueeze(1)
    expected = kernels.gramian([plain.to(DEVICE)], fused=True).cpu()[0] * torch.outer(factors, factors)
    assert_same_bits(kernels.gramian([scaled.to(DEVICE)], fused=True).cpu()[0], expected)


def test_products_that_underflow_are_small() -> None:
    """Of entries far below others of their rows, where these need no scaling."""
    rows = torch.zeros(2, 100)
    rows[0, 0] = rows[1, 1] = 2.0**-39
    rows[:, 2:] = 2.0**-66
    blocks = [rows.to(DEVICE)]
    assert_gramian(kernels.gramian(blocks, fused=True), blocks, relative=1e-10)


@pytest.mark.parametrize("rows", [5, 17])
def test_same_bits_every_time(rows: int) -> None:
    blocks = [block(rows, columns, seed=columns) for columns in (40, 3)]
    assert_same_bits(kernels.gramian(blocks, fused=True), kernels.gramian(blocks, fused=True))
    weights = gaussian(1, rows).to(DEVICE)
    assert_same_bits(kernels.combine(blocks, weights, fused=True), kernels.combine(blocks, weights, fused=True))


@pytest.mark.parametrize("rows", [3, 17])
def test_zero_rows(rows: int) -> None:
    rows_of_zeros = block(rows, 40)
    rows_of_zeros[1] = 0.0
    found = kernels.gramian([rows_of_zeros], fused=True)
    assert_gramian(found, [rows_of_zeros])
    assert_same_bits(found[0, 1], torch.zeros_like(found[0, 1]))
    assert_same_bits(kernels.gramian([torch.zeros(3, 9, device=DEVICE)], fused=True), 0 * found[:, :3, :3])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nonfinite_entries_pass_through(bad: float, dtype: torch.dtype) -> None:
    spoilt = block(3, 40, dtype)
    spoilt[1, 7] = bad
    finite = kernels.gramian([spoilt], fused=True)[0].isfinite()
    assert finite.tolist() == [[True, False, True], [False, False, False], [True, False, True]]
    weights = torch.ones(1, 3, device=DEVICE)
    assert kernels.combine([spoilt], weights, fused=True)[0].isfinite().sum() == 39


def test_gramian_comparison_can_fail() -> None:
    blocks = [block(2, 9)]
    right = reference.gramian(blocks)
    upper = torch.tensor([[0.0, 1e-9], [0.0, 0.0]], device=DEVICE)
    for wrong in (right * 1.000001, -right, right * torch.nan, right.float(), right[0], right + upper):
        with pytest.raises(AssertionError):
            assert_gramian(wrong, blocks)


# --- combine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 31), (3, 2500), (7, 129), (16, 65), (33, 5), (64, 9)])
def test_combine(rows: int, columns: int, dtype: torch.dtype) -> None:
    blocks, weights = [block(rows, columns, dtype)], gaussian(1, rows, seed=9).to(DEVICE)
    assert_directions(kernels.combine(blocks, weights, fused=True), reference.combine(blocks, weights))


@pytest.mark.parametrize("strides", STRIDES)
def test_combine_strided_blocks(strides: str) -> None:
    blocks, weights = [STRIDES[strides](block(3, 37))], gaussian(1, 3, seed=9).to(DEVICE)
    found = kernels.combine(blocks, weights, fused=True)
    assert_directions(found, reference.combine(blocks, weights))
    assert found[0].is_contiguous()


def test_combine_blocks_of_all_kinds_in_groups() -> None:
    blocks = [
        block(3, 5, seed=1),
        block(3, 12, torch.bfloat16, seed=2).reshape(3, 2, 3, 2),
        block(3, 1, seed=3).squeeze(1),
        block(3, 0),
        block(3, 4, torch.float16, seed=4),
    ]
    weights, groups = gaussian(4, 3, seed=5).to(DEVICE), [2, 0, 2, 3, 1]
    found = kernels.combine(blocks, weights, groups, fused=True)
    assert_directions(found, reference.combine(blocks, weights, groups))
    assert_directions(kernels.combine([block(3, 0)], weights, fused=True), [block(1, 0)[0]])


def test_combine_with_one_weight_is_that_row() -> None:
    rows = block(3, 1500)
    weights = torch.tensor([[0.0, 1.0, 0.0]], device=DEVICE)
    assert_same_bits(kernels.combine([rows], weights, fused=True)[0], rows[1])


def test_combine_keeps_digits_where_rows_cancel() -> None:
    row = block(1, 300)
    rows = torch.cat([row, -row + 1e-4 * block(1, 300, seed=1)])
    weights = torch.full((1, 2), 1 / 3, dtype=torch.float64, device=DEVICE)
    assert_directions(kernels.combine([rows], weights, fused=True), reference.combine([rows], weights))


TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda like: torch.empty_like(like),
    "channels last": lambda like: torch.empty_like(like).to(memory_format=torch.channels_last),
    "every other": lambda like: torch.empty(*like.shape[:-1], 2 * like.shape[-1], device=DEVICE)[..., ::2],
    "wider": lambda like: torch.empty_like(like, dtype=torch.float64),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("by_kernel", [False, True])
def test_directions_go_where_they_belong(target: str, add: bool, by_kernel: bool) -> None:
    blocks = [block(3, 36, seed=1).view(3, 2, 3, 3, 2), block(3, 5, seed=2)]
    weights = gaussian(1, 3).to(DEVICE)
    directions = reference.combine(blocks, weights)
    out = [TARGETS[target](directions[0]).copy_(block(2, 18).view(2, 3, 3, 2)), block(1, 5, seed=3)[0]]
    expected = [present + new if add else new.to(present) for present, new in zip(out, directions, strict=True)]
    places = [(tensor.data_ptr(), tensor.stride()) for tensor in out]
    found = kernels.combine(blocks, weights, fused=by_kernel, out=out, add=add)
    assert all(one is other for one, other in zip(found, out, strict=True))
    assert [(tensor.data_ptr(), tensor.stride()) for tensor in out] == places
    for one, other in zip(found, expected, strict=True):
        assert_near(one.cpu(), other.cpu(), 3e-7)


@pytest.mark.parametrize("by_kernel", [False, True])
def test_directions_are_added_to_gradients(by_kernel: bool) -> None:
    parameter = torch.nn.Parameter(block(2, 3))
    parameter.grad = torch.ones_like(parameter)
    place = parameter.grad.data_ptr()
    weights = torch.tensor([[1.0, 2.0]], device=DEVICE)
    rows = torch.stack([torch.full((2, 3), 3.0), torch.full((2, 3), 5.0)]).to(DEVICE)
    kernels.combine([rows], weights, fused=by_kernel, out=[parameter.grad], add=True)
    assert parameter.grad.data_ptr() == place
    assert parameter.grad.eq(14.0).all()


def test_out_is_checked() -> None:
    blocks, weights = [block(2, 3)], torch.ones(1, 2, device=DEVICE)
    with pytest.raises(ValueError, match=r"combine: `out` must be tensors of the shapes \[\(3,\)\], got \[\(4,\)\]"):
        kernels.combine(blocks, weights, out=[torch.zeros(4)])
    with pytest.raises(ValueError, match="combine: `add` must be False without `out`, got True"):
        kernels.combine(blocks, weights, add=True)
    same = torch.zeros(3, device=DEVICE)
    with pytest.raises(ValueError, match="two tensors of `out` share memory"):
        kernels.combine(blocks * 2, weights, fused=True, out=[same, same])


# --- project -----------------------------------------------------------------------------------------------------


def problems(count: int, *batch: int, columns: int = 6) -> tuple[Tensor, Tensor]:
    """Gramians with a zero row each, and orders."""
    rows = gaussian(count * max(1, int(np.prod(batch))), columns, seed=count).view(*batch, count, columns)
    rows[..., -1, :] *= 1e-6
    if count > 2:
        rows[..., 1, :] = 0.0
    gramians = rows @ rows.mT
    order = torch.from_numpy(random_order(gramians.shape, torch.Generator().manual_seed(count)))
    return gramians.to(DEVICE), order.to(DEVICE)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 17, 64])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_project(count: int, batch: tuple[int, ...]) -> None:
    gramians, order = problems(count, *batch)
    found = kernels.project(gramians, order, fused=True)
    expected = reference.project(gramians, order)
    assert_near(found.cpu(), expected.cpu(), 1e-9)
    narrow = kernels.project(gramians.float(), order, fused=True)
    assert narrow.dtype == torch.float32
    assert_near(narrow.cpu(), reference.project(gramians.float().double(), order).float().cpu(), 1e-6)


def test_project_passes_over_zero_rows_and_none() -> None:
    gramians, order = problems(4)
    found = kernels.project(gramians, order, fused=True)
    assert_same_bits(found[1], torch.eye(4, dtype=torch.float64, device=DEVICE)[1])
    assert kernels.project(gramians.new_zeros(0, 4, 4), order.new_zeros(3, 0, 4), fused=True).shape == (0, 4, 4)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("beta", [0.01, 1.0])
def test_vaccinate(count: int, batch: tuple[int, ...], beta: float) -> None:
    gramians, order = problems(count, *batch)
    targets = torch.zeros_like(gramians)
    for _ in range(3):
        weights, moved = kernels.vaccinate(gramians, targets, order, beta)
        expected = _vaccinate(gramians.cpu().numpy(), targets.cpu().numpy(), order.cpu().numpy(), beta)
        assert weights.shape == gramians.shape[:-1]
        assert_near(weights.cpu(), torch.from_numpy(expected[0]), 1e-9)
        assert_near(moved.cpu(), torch.from_numpy(expected[1]), 1e-9)
        targets = torch.where(moved.abs() > 0, moved * 0.5 + 0.4, moved)


def test_vaccinate_nonfinite() -> None:
    gramians, order = problems(3)
    gramians[0, 2] = gramians[2, 0] = torch.nan
    weights, _ = kernels.vaccinate(gramians, torch.zeros_like(gramians), order, 0.1)
    assert not bool(weights.isfinite().all())


# --- choosing ----------------------------------------------------------------------------------------------------


class Subclass(Tensor):
    pass


REFUSED: dict[str, Callable[[], list[Tensor]]] = {
    "a tensor is torch.float64": lambda: [block(2, 3, torch.float64)],
    "there are 65 losses, not 1 to 64": lambda: [block(65, 3)],
    "a tensor requires a gradient": lambda: [block(2, 3).requires_grad_()],
    "a tensor is of a subclass": lambda: [block(2, 3).as_subclass(Subclass)],
    "the blocks have different numbers of rows": lambda: [block(2, 3), block(3, 3)],
    "the blocks are on several devices": lambda: [block(2, 3), torch.zeros(2, 3, device="meta")],
    "a tensor is negated when it is read": lambda: [torch._neg_view(block(2, 3))],
    "there are no blocks": list,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_fused_says_why_not(reason: str) -> None:
    with pytest.raises(ValueError, match=f"gramian: `fused` must be None or False where {reason}.*, got True"):
        kernels.gramian(REFUSED[reason](), fused=True)


def test_where_projections_can_be_fused() -> None:
    assert kernels.can_project(torch.eye(3, device=DEVICE)) == (DEVICE == "cuda")
    assert not kernels.can_project(torch.eye(65, device=DEVICE))
    with pytest.raises(ValueError, match="vaccinate: `gramian` must be .*, got one where there are 65 losses"):
        kernels.vaccinate(torch.eye(65), torch.eye(65), torch.zeros(64, 65, dtype=torch.int64), 0.1)


@pytest.mark.parametrize(("groups", "weights"), [([-1], (1, 2)), ([0, 0], (1, 2)), ([1], (1, 2)), ([0], (1, 3))])
def test_nothing_is_read_beyond_the_tensors(groups: list[int], weights: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="combine: `fused` must be None or False where"):
        kernels.combine([block(2, 3)], torch.ones(weights, device=DEVICE), groups, fused=True)


def test_no_gradient_is_lost() -> None:
    weights = torch.ones(1, 2, device=DEVICE, requires_grad=True)
    with pytest.raises(ValueError, match="where the weights require a gradient, got True"):
        kernels.combine([block(2, 3)], weights, fused=True)
    with torch.no_grad():
        assert kernels.combine([block(2, 3)], weights, fused=True)[0].shape == (3,)


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (1, 3), (3, 2, 3)])
def test_nothing_is_read_beyond_orders_and_targets(shape: tuple[int, ...]) -> None:
    gramians, order = problems(3, 2)
    wrong, reason = torch.zeros(shape, dtype=torch.int64), r"where an order of shape .* does not fit Gramians"
    with pytest.raises(ValueError, match=reason):
        kernels.project(gramians, wrong.to(DEVICE), fused=True)
    with pytest.raises(ValueError, match=reason):
        kernels.vaccinate(gramians, gramians, wrong.to(DEVICE), 0.1)
    with pytest.raises(ValueError, match=r"where targets of shape \(3, 3\) do not fit Gramians of shape \(2, 3, 3\)"):
        kernels.vaccinate(gramians, gramians[0], order, 0.1)


@pytest.mark.parametrize(("version", "reason"), [(None, "is not installed"), ("3.2.0", "is older than 3.3: 3.2.0")])
def test_fused_says_what_is_missing(version: str | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    language = ModuleType("triton.language")
    package = ModuleType("triton")
    vars(package).update(__version__=version, language=language)
    monkeypatch.setitem(sys.modules, "triton", package if version else None)
    monkeypatch.setitem(sys.modules, "triton.language", language if version else None)
    monkeypatch.setattr(obstacles, "_missing", obstacles._missing.__wrapped__)  # without what it remembers
    with pytest.raises(ValueError, match=f"gramian: `fused` must be .* Triton {reason}, got True"):
        kernels.gramian([block(2, 3)], fused=True)
    with pytest.raises(ValueError, match=f"vaccinate: .* Triton {reason}"):
        kernels.vaccinate(torch.eye(2), torch.eye(2), torch.tensor([[1, 0]]), 0.1)


@pytest.mark.parametrize("choice", [None, False])
def test_plain_kernels_on_a_cpu(choice: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "gramian", None)
    blocks, weights = [gaussian(2, 3)], torch.ones(1, 2)
    assert_same_bits(kernels.gramian(blocks, fused=choice), reference.gramian(blocks))
    assert_same_bits(kernels.combine(blocks, weights, fused=choice), reference.combine(blocks, weights))
    order = torch.tensor([[1, 0]])
    assert_same_bits(kernels.project(torch.eye(2), order, fused=choice), reference.project(torch.eye(2), order))


def test_the_kernels_are_imported_at_first_use() -> None:
    code = "import sys, gradsurgery, gradsurgery.kernels as k, torch; k.gramian([torch.ones(2, 3)])\n"
    code += "assert 'gradsurgery.kernels.triton' not in sys.modules"  # torch may have imported Triton itself
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- what the interpreter does not see ---------------------------------------------------------------------------


def test_tables_can_be_written_without_a_copy() -> None:
    values = [0, 1, -5, 2**62 + 1, *range(1000)]
    assert worklist.written_by_kernels(values, torch.device(DEVICE)).tolist() == values


class Recorder:
    """Stands for a kernel."""

    __name__ = "recorder"

    def __init__(self) -> None:
        self.launches: list[tuple[object, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **options: self.launches.append((grid, arguments, options))


def test_kernels_are_loaded_before_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    capturing = [True]
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(worklist, "_LAUNCHED", set())
    device, kernel = torch.device("cuda", 0), Recorder()
    wide, narrow = torch.zeros(1, dtype=torch.float64), torch.zeros(1)  # another dtype is another kernel
    steps = ((True, 1, wide, 0), (False, 1, wide, 1), (True, 1, wide, 2), (True, 2, wide, 2), (True, 1, narrow, 2))
    for now, size, argument, expected in steps:
        capturing[0] = now
        refused = expected == len(kernel.launches)
        with pytest.raises(RuntimeError, match="got recorder with .* Run one step") if refused else nullcontext():
            worklist.launch(kernel, (7,), device, argument, K=size)
        assert len(kernel.launches) == expected
    assert kernel.launches[0] == ((7,), (wide,), {"K": 1})


COMPILATION = """
import sys, torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from gradsurgery.kernels import triton, triton_combine, triton_project

def check(kernel, arguments, options):
    options = dict(options)
    warps = {"num_warps": options.pop("num_warps")}
    kinds = {**dict(zip(kernel.arg_names, arguments.split())), **dict.fromkeys(options, "constexpr")}
    constants = {(kernel.arg_names.index(name),): value for name, value in options.items()}
    for architecture in (80, 90) if options.get("K", 0) < 8 else (90,):
        source = ASTSource(kernel, kinds, constexprs=constants)
        assert compile(source, target=GPUTarget("cuda", architecture, 32), options=warps).asm["cubin"]

for size, dtype in ((3, torch.bfloat16), (17, torch.float32)):
    check(triton.partial_gramians, "*i64 *fp64 i32 i32 i32", triton.gramian_options(size, dtype))
    check(triton.sums_of_partials, "*i64 *fp64 *fp64 i32", triton.sum_options(size))
    check(triton_combine.combinations, "*i64 *fp64 i32 i32 i32", triton_combine.combine_options(size, dtype, True))
    options = triton_project.project_options(size)
    check(triton_project.projections, "*fp64 *i64 *fp64 i32", options)
    check(triton_project.vaccinations, "*fp64 *fp64 *i64 *fp64 *fp64 i32", {"BETA": 0.01, **options})
"""


def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """Down to machine code, for which no GPU is needed."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    variables["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILATION]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_captured_step_of_pcgrad() -> None:
    blocks = [block(4, 3000, seed=1), block(4, 7, torch.bfloat16, seed=2)]
    out = [torch.zeros_like(rows[0]) for rows in blocks]
    order = torch.from_numpy(random_order(torch.Size((4, 4)), torch.Generator().manual_seed(0))).to(DEVICE)

    def step() -> None:
        weights = kernels.project(kernels.gramian(blocks, fused=True)[0], order, fused=True).sum(-2)
        kernels.combine(blocks, weights.unsqueeze(0), fused=True, out=out)

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for seed in (3, 4):
        for rows in blocks:
            rows.copy_(gaussian(*rows.shape, seed=seed))
        graph.replay()
        replayed = [tensor.clone() for tensor in out]
        step()
        assert_same_bits(replayed, out)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_the_first_launch_comes_before_a_capture() -> None:
    blocks = [block(13, 8)]
    kernels.gramian([block(2, 8)], fused=True)
    with pytest.raises(RuntimeError, match="Run one step"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        kernels.gramian(blocks, fused=True)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 12, 16, 17, 24, 33, 48, 64])
def test_many_numbers_of_losses_on_a_gpu(rows: int, dtype: torch.dtype) -> None:
    blocks, weights = [block(rows, 9001, dtype), block(rows, 70, dtype, seed=1)], gaussian(1, rows).to(DEVICE)
    assert_gramian(kernels.gramian(blocks), blocks, relative=2e-6)
    assert_directions(kernels.combine(blocks, weights), reference.combine(blocks, weights))
    gramians, order = problems(rows, 2)
    assert_near(kernels.project(gramians, order).cpu(), reference.project(gramians, order).cpu(), 1e-8)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_block_of_more_than_two_billion_entries() -> None:
    columns = 2**31 // 2 + 5
    rows = torch.ones(2, columns, dtype=torch.bfloat16, device=DEVICE)
    rows[1, -1] = 3.0
    assert kernels.gramian([rows])[0].tolist() == [[columns, columns + 2], [columns + 2, columns + 8]]
    assert float(kernels.combine([rows], torch.ones(1, 2, device=DEVICE))[0][-1]) == 4.0
