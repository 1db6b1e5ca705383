"""The CPU's kernels against the reference: what lies side by side, what is cut in chunks, one thread and several."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import assert_near, assert_same_bits, gaussian
from torch import Tensor

from gradsurgery.kernels import cpu, reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def assert_same_gramian(found: Tensor, expected: Tensor, relative: float = 1e-13) -> None:
    """Fails unless entries agree relative to the norms of their rows."""
    assert found.shape == expected.shape
    assert found.dtype == torch.float64
    norms = expected.diagonal(dim1=-2, dim2=-1).sqrt()
    allowed = relative * norms.unsqueeze(-1) * norms.unsqueeze(-2)
    assert bool(((found - expected).abs() <= allowed).all()), f"off by {float((found - expected).abs().max())}"


def assert_same_directions(found: list[Tensor], expected: list[Tensor], weighed: list[Tensor]) -> None:
    """Fails unless directions agree up to a rounding; the sizes of what was summed add up to ``weighed``."""
    assert len(found) == len(expected)
    for one, other, terms in zip(found, expected, weighed, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        allowed = torch.finfo(one.dtype).eps * other.double().abs() + 1e-14 * terms
        if one.dtype == torch.float16:
            allowed += 2.0**-24
        assert bool(((one.double() - other.double()).abs() <= allowed).all())


def compare(blocks: list[Tensor], groups: list[int] | None = None) -> None:
    assert_same_gramian(cpu.gramian(blocks, groups), reference.gramian(blocks, groups))
    number = 1 if groups is None else max(groups) + 1
    weights = gaussian(number, len(blocks[0]), seed=7)
    positive = reference.combine([block.double().abs() for block in blocks], weights.abs(), groups)
    found = cpu.combine(blocks, weights, groups)
    assert_same_directions(found, reference.combine(blocks, weights, groups), positive)
    assert len({direction.untyped_storage().data_ptr() for direction in found if direction.numel()}) == sum(
        direction.numel() > 0 for direction in found
    )
    assert not any(direction._is_view() for direction in found)


def block_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return gaussian(shape[0], math.prod(shape[1:]), seed).to(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 300, 5000, 50_000])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 16, 17, 40])
@pytest.mark.usefixtures("threads")
def test_one_block(rows: int, columns: int, dtype: torch.dtype) -> None:
    compare([block_of((rows, columns), dtype, seed=rows)])


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 3, 3, 0, 0, 1]])
@pytest.mark.parametrize("dtypes", [DTYPES, [torch.float32]])
@pytest.mark.parametrize("rows", [2, 9])
@pytest.mark.usefixtures("threads")
def test_blocks_of_all_kinds(rows: int, dtypes: list[torch.dtype], groups: list[int] | None) -> None:
    shapes: list[tuple[int, ...]] = [(), (5,), (30, 40), (70_000,), (0,), (9_000,), (3, 1, 3), (8,)]
    blocks = [
        block_of((rows, *shape), dtypes[position % len(dtypes)], position) for position, shape in enumerate(shapes)
    ]
    compare(blocks, groups)
    blocks[2] = blocks[2].mT
    blocks[5] = blocks[5].repeat_interleave(2, dim=1)[:, ::2]
    blocks[7] = blocks[7][:1].expand(rows, -1)
    compare(blocks, groups)


@given(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=12))
def test_any_blocks_in_small_chunks(rows: int, kinds: list[tuple[int, int]]) -> None:
    blocks = [block_of((rows, columns), seed=position) for position, (columns, _) in enumerate(kinds)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_width", lambda count: 5)
        patch.setattr(cpu, "_LONG_ROWS", 1)
        compare(blocks)
        compare(blocks, [group for _, group in kinds])


def test_columns_of_one_matrix() -> None:
    matrix = block_of((8, 40_000))
    parts = list(matrix.split([100, 20_000, 1, 5_899, 14_000], dim=1))
    compare(parts)
    assert_same_gramian(cpu.gramian(parts), reference.gramian([matrix]))


@pytest.mark.parametrize("rows", [2, 5, 8, 16, 30])
@pytest.mark.usefixtures("threads")
def test_symmetric_and_the_same_every_time(rows: int) -> None:
    blocks = [block_of((rows, columns), seed=columns) for columns in (90_000, 10_000, 64)]
    gramian = cpu.gramian(blocks, [0, 1, 0])
    assert_same_bits(gramian, gramian.mT)
    assert_same_bits(cpu.gramian(blocks, [0, 1, 0]), gramian)
    powers = 2.0 ** (torch.arange(rows) - rows // 2).unsqueeze(1)
    scaled = cpu.gramian([block * powers for block in blocks], [0, 1, 0])
    assert_same_bits(scaled, gramian * (powers.double() @ powers.double().mT))


@pytest.mark.parametrize("rows", [3, 6, 20])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.usefixtures("threads")
def test_nonfinite_entries_pass_through(rows: int, bad: float) -> None:
    blocks = [block_of((rows, columns), seed=columns) for columns in (80_000, 12_000, 3, 30)]
    blocks[0][1, 7] = blocks[0][1, 79_999] = bad
    blocks[3][2, 5], blocks[3][2, 6] = -bad, bad
    groups = [0, 0, 1, 2]
    found = cpu.gramian(blocks, groups).isfinite()
    assert_same_bits(found, reference.gramian(blocks, groups).isfinite())
    assert not bool(found[0, 1].any())
    assert bool(found[1].all())
    weights = torch.ones(3, rows)
    for one, other in zip(
        cpu.combine(blocks, weights, groups), reference.combine(blocks, weights, groups), strict=True
    ):
        assert_same_bits(one.isfinite(), other.isfinite())


def test_blocks_that_are_negated_when_they_are_read() -> None:
    for dtype in (torch.float32, torch.float64):
        compare([torch._neg_view(block_of((3, 40), dtype))])
        compare([torch._neg_view(block_of((3, 40), dtype)), block_of((3, 7), dtype)])


def test_sums_are_exact_where_rounding_is_not_needed() -> None:
    """Float32 sums of so many small integers would not be."""
    for rows in (2, 8, 16, 20):
        block = (gaussian(rows, 90_001) * 300).round().float()
        assert_same_bits(cpu.gramian([block])[0], block.double() @ block.double().mT)


def test_every_block_needs_a_group() -> None:
    blocks = [block_of((3, 4)), block_of((3, 5))]
    for groups in ([0], [0, 0, 0]):
        with pytest.raises(ValueError, match="zip"):
            cpu.gramian(blocks, groups)
        with pytest.raises(ValueError, match="zip"):
            cpu.combine(blocks, torch.ones(1, 3), groups)


def test_gradients_flow_as_in_the_reference() -> None:
    block = block_of((3, 4), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: cpu.gramian([given]), (block,))
    with torch.no_grad():
        compare([block])


def test_comparisons_can_fail() -> None:
    block = block_of((3, 50))
    gramian = cpu.gramian([block])
    with pytest.raises(AssertionError):
        assert_same_gramian(gramian * (1 + 1e-12), gramian)
    with pytest.raises(AssertionError):
        assert_same_gramian(gramian.float().double(), gramian)
    with pytest.raises(AssertionError):
        assert_same_directions([block * (1 + 1e-6)], [block], [torch.zeros_like(block)])
    assert_near(gramian, gramian, 0.0)
