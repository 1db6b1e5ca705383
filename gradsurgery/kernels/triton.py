"""The Gramian in Triton, for blocks on one GPU; loaded at the first use.

A launch takes any number of blocks: each program finds its piece of one block in a table. Programs write what they
found to memory of their own, and sums are taken in a fixed order: results are the same bits in every call.

With ``TRITON_INTERPRET=1`` set before Triton is first imported, its interpreter runs the same kernels on the CPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .worklist import adjacent, launch, work_list

LANES = tl.constexpr(32)  # of the one warp that is a program: its sums need no shared memory
SIDE = tl.constexpr(8)  # rows of each of the two groups of rows that a program multiplies
LARGEST_TRIANGLE = 16  # losses up to which one program multiplies all pairs of rows: as many as registers hold
NEUTRAL = tl.constexpr(127)  # as float32 stores the exponent of 1
LOWEST, HIGHEST = tl.constexpr(127 - 40), tl.constexpr(127 + 50)  # between them, float32 products need no scaling

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
"""What Triton calls the dtypes of blocks."""


def gramian(blocks: Sequence[Tensor], groups: Sequence[int]) -> Tensor:
    """Computes what :func:`gradsurgery.kernels.reference.gramian` defines, in two launches for each dtype."""
    total: Tensor | None = None
    for dtype in dict.fromkeys(block.dtype for block in blocks):
        members = [position for position, block in enumerate(blocks) if block.dtype == dtype]
        found = _gramian([blocks[i] for i in members], [groups[i] for i in members], max(groups) + 1)
        total = found if total is None else total + found
    if total is None:
        raise ValueError("gramian: `blocks` must hold at least one block, got none.")
    return total


def _gramian(blocks: list[Tensor], groups: list[int], problems: int) -> Tensor:
    size, device = blocks[0].shape[0], blocks[0].device
    options = gramian_options(size, blocks[0].dtype)
    rows = [adjacent(block) for block in blocks]
    work = work_list(rows, groups, problems, None, options["TILE"], most_pieces(size))
    result = torch.empty(problems, size, size, dtype=torch.float64, device=device)
    partial = torch.empty(work.pieces, size, size, dtype=torch.float64, device=device)
    if work.pieces:
        grid = (work.pieces * options["PAIRS"],)
        launch(partial_gramians, grid, device, work.table, partial, *work[1:4], **options)
    sums = sum_options(size)
    grid = (problems, triton.cdiv(size**2, sums["WIDTH"]))
    launch(sums_of_partials, grid, device, work.table, partial, result, work.blocks, **sums)
    return result


def most_pieces(size: int) -> int:
    """About how many pieces keep a GPU busy, and the memory for their K x K matrices small."""
    return max(256, min(8192, 2**20 // size**2))


def gramian_options(size: int, dtype: torch.dtype) -> dict[str, Any]:
    """What :func:`partial_gramians` is compiled for."""
    triangle = size <= LARGEST_TRIANGLE
    sides = triton.cdiv(size, SIDE.value)
    return {
        "K": size,
        "DTYPE": DTYPES[dtype],
        "TRIANGLE": triangle,
        "SIZE": triton.next_power_of_2(size) if triangle else SIDE.value,
        "PAIRS": 1 if triangle else sides * (sides + 1) // 2,
        "PARTS": max(1, min(8, 32 // size)) if triangle else 2,  # loads in flight, as many as registers hold
        "TILE": 4096 if dtype == torch.float32 else 8192,  # a lane adds up 128 or 256 products in float32
        "SCALABLE": dtype != torch.float16,  # whose range is so small that float32 products cannot leave theirs
        "num_warps": 1,
    }


def sum_options(size: int) -> dict[str, Any]:
    """What :func:`sums_of_partials` is compiled for."""
    width = min(32, triton.next_power_of_2(size**2))
    return {"SIZE": size**2, "WIDTH": width, "DEPTH": 4096 // width, "num_warps": 4}


@triton.jit
def piece_of(table, piece, blocks, steps, chunk, DTYPE: tl.constexpr):
    """The block that a piece belongs to, the piece's first column and where it lies, stride and number of columns."""
    low = 0
    high = blocks
    for _ in range(steps):
        middle = (low + high) // 2
        here = tl.load(table + middle) <= piece
        low = tl.where(here, middle, low)
        high = tl.where(here, high, middle)
    start = (piece - tl.load(table + low)) * chunk
    address = tl.load(table + blocks + low).to(tl.pointer_type(DTYPE)) + start
    stride = tl.load(table + 2 * blocks + low)
    columns = tl.minimum(tl.load(table + 3 * blocks + low) - start, chunk).to(tl.int32)
    return low, start, address, stride, columns


@triton.jit
def _products(
    address,
    stride,
    begin,
    end,
    first,
    second,
    scales,
    K: tl.constexpr,
    TRIANGLE: tl.constexpr,
    PARTS: tl.constexpr,
    SCALED: tl.constexpr,
):
    """For each lane the products of pairs of rows, summed up over its columns, and the largest entry of each row."""
    ROWS: tl.constexpr = K if TRIANGLE else 2 * SIDE
    lane = tl.arange(0, LANES)
    rows = ()
    for i in tl.static_range(ROWS):
        rows = rows + ((first if i < SIDE else second - 1) * SIDE + i,)
    largest = ()
    for _ in tl.static_range(ROWS):
        largest = largest + (tl.zeros([LANES], tl.float32),)
    sums = ()
    for _ in tl.static_range(K * (K + 1) // 2 if TRIANGLE else SIDE * SIDE):
        sums = sums + (tl.zeros([LANES], tl.float32),)
    for offset in range(begin, end, PARTS * LANES):
        for part in tl.static_range(PARTS):
            inside = offset + part * LANES + lane < end
            entries = ()
            for i in tl.static_range(ROWS):
                mask = inside if TRIANGLE else inside & (rows[i] < K)
                entry = tl.load(address + rows[i] * stride + offset + lane + part * LANES, mask=mask, other=0.0)
                entry = entry.to(tl.float32)
                if SCALED:
                    entry = entry * scales[i]
                entries = entries + (entry,)
            if not SCALED:
                seen = ()
                for i in tl.static_range(ROWS):
                    seen = seen + (tl.maximum(largest[i], tl.abs(entries[i])),)
                largest = seen
            added = ()
            if TRIANGLE:
                for i in tl.static_range(ROWS):
                    for j in tl.static_range(i + 1):
                        added = added + (tl.fma(entries[i], entries[j], sums[i * (i + 1) // 2 + j]),)
            else:
                for i in tl.static_range(SIDE):
                    for j in tl.static_range(SIDE):
                        added = added + (tl.fma(entries[i], entries[SIDE + j], sums[i * SIDE + j]),)
            sums = added
    return sums, largest


@triton.jit
def _sides(pair, TRIANGLE: tl.constexpr):
    """Which two groups of eight rows a program multiplies; those of a triangle are its only ones."""
    if TRIANGLE:
        return 0, 1
    first = 0
    for i in tl.static_range(1, 8):
        first = tl.where(pair >= i * (i + 1) // 2, i, first)
    return first, pair - first * (first + 1) // 2


@triton.jit
def _matrix(sums, exponents, K: tl.constexpr, TRIANGLE: tl.constexpr, SIZE: tl.constexpr):
    """Adds up over lanes, puts each sum in its place of a float64 matrix and takes the scaling back."""
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    matrix = tl.zeros([SIZE, SIZE], tl.float32)
    of_rows = tl.full([SIZE, SIZE], 0, tl.int32)
    of_columns = tl.full([SIZE, SIZE], 0, tl.int32)
    for i in tl.static_range(K if TRIANGLE else SIDE):
        of_rows = tl.where(row == i, exponents[i], of_rows)
        of_columns = tl.where(column == i, exponents[i if TRIANGLE else SIDE + i], of_columns)
        for j in tl.static_range(i + 1 if TRIANGLE else SIDE):
            total = tl.sum(sums[i * (i + 1) // 2 + j if TRIANGLE else i * SIDE + j])
            matrix = tl.where((row == i) & (column == j), total, matrix)
    bits = (of_rows + of_columns + (1023 - 254)).to(tl.int64) << 52  # of a float64 that is a power of two
    return matrix.to(tl.float64) * bits.to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["blocks", "steps", "chunk"])
def partial_gramians(
    table,
    partial,
    blocks,
    steps,
    chunk,
    K: tl.constexpr,
    DTYPE: tl.constexpr,
    TRIANGLE: tl.constexpr,
    SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    SCALABLE: tl.constexpr,
):
    """The inner products over one piece, of all rows up to 16, above that of two groups of eight rows.

    Products are float32 within a tile and float64 from tile to tile. A tile with a row whose largest entry is so
    small or large that products could leave the range of float32 is read once more, with each row multiplied by the
    power of two that brings its largest entry near 1.
    """
    ROWS: tl.constexpr = K if TRIANGLE else 2 * SIDE
    piece = tl.program_id(0) // PAIRS
    first, second = _sides(tl.program_id(0) % PAIRS, TRIANGLE)
    _, _, address, stride, columns = piece_of(table, piece, blocks, steps, chunk, DTYPE)
    total = tl.zeros([SIZE, SIZE], tl.float64)
    for begin in range(0, columns, TILE):
        end = tl.minimum(begin + TILE, columns)
        sums, largest = _products(address, stride, begin, end, first, second, (), K, TRIANGLE, PARTS, False)
        exponents = ()
        scales = ()
        out_of_range = False
        for i in tl.static_range(ROWS):
            bits = tl.max(largest[i]).to(tl.int32, bitcast=True)
            exponent = bits >> 23
            exponents = exponents + (tl.minimum(exponent, 253),)
            scales = scales + (((254 - exponents[i]) << 23).to(tl.float32, bitcast=True),)
            extreme = (exponent < LOWEST) | (exponent > HIGHEST)
            out_of_range = out_of_range | ((bits > 0) & extreme & (exponent < 255))
        kept = ()
        if SCALABLE:
            if out_of_range:
                sums = _products(address, stride, begin, end, first, second, scales, K, TRIANGLE, PARTS, True)[0]
        for i in tl.static_range(ROWS):
            kept = kept + (tl.where(out_of_range & SCALABLE, exponents[i], NEUTRAL),)
        total += _matrix(sums, kept, K, TRIANGLE, SIZE)
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    if TRIANGLE:
        mask = (column <= row) & (row < K)
    else:
        row, column = row + first * SIDE, column + second * SIDE
        mask = (row < K) & (column < K)
    target = partial + piece.to(tl.int64) * (K * K)
    tl.store(target + row * K + column, total, mask=mask)
    tl.store(target + column * K + row, total, mask=mask)


@triton.jit(do_not_specialize=["blocks"])
def sums_of_partials(table, partial, result, blocks, SIZE: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr):
    """Adds up the pieces of one group in the order of the table, for some of the K x K entries."""
    group = tl.program_id(0)
    entry = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    bounds = table + 6 * blocks + group
    end = tl.load(bounds + 1)
    total = tl.zeros([DEPTH, WIDTH], tl.float64)
    for begin in range(tl.load(bounds), end, DEPTH):
        piece = (begin + tl.arange(0, DEPTH))[:, None]
        total += tl.load(partial + piece * SIZE + entry, mask=(piece < end) & (entry < SIZE), other=0.0)
    tl.store(result + group.to(tl.int64) * SIZE + entry, tl.sum(total, axis=0), mask=entry < SIZE)


INTERPRETED = not isinstance(partial_gramians, triton.JITFunction)
"""Whether kernels run in Triton's interpreter, which takes tensors on the CPU."""
