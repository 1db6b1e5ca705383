"""The direction in Triton, written straight to where it belongs."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton import DTYPES, piece_of
from .worklist import adjacent, launch, work_list

COMBINED = 1024  # columns that a program combines at a time


def combine(
    blocks: Sequence[Tensor], weights: Tensor, groups: Sequence[int], outputs: Sequence[Tensor], add: Sequence[bool]
) -> None:
    """Computes what :func:`gradsurgery.kernels.reference.combine` defines, in one launch for each dtype.

    Args:
        outputs: Contiguous, of the blocks' dtypes.
        add: For each block whether its output is added to instead of overwritten, which is a launch of its own.
    """
    weights = weights.detach().to(blocks[0].device, torch.float64, non_blocking=True).contiguous()
    kinds = [(block.dtype, adds) for block, adds in zip(blocks, add, strict=True)]
    for dtype, adds in dict.fromkeys(kinds):
        members = [position for position, kind in enumerate(kinds) if kind == (dtype, adds)]
        rows = [adjacent(blocks[i]) for i in members]
        owners, targets = [groups[i] for i in members], [outputs[i] for i in members]
        work = work_list(rows, owners, len(weights), targets, COMBINED, 1 << 16)
        if work.pieces:
            options = combine_options(weights.shape[1], dtype, adds)
            launch(combinations, (work.pieces,), weights.device, work.table, weights, *work[1:4], **options)


def combine_options(size: int, dtype: torch.dtype, add: bool) -> dict[str, Any]:
    """What :func:`combinations` is compiled for."""
    return {"K": size, "DTYPE": DTYPES[dtype], "WIDTH": COMBINED, "ADD": add, "num_warps": 4}


@triton.jit(do_not_specialize=["weights", "blocks", "steps", "chunk"])
def combinations(
    table,
    weights,
    blocks,
    steps,
    chunk,
    K: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDTH: tl.constexpr,
    ADD: tl.constexpr,
):
    """The weighted sum of the rows over one piece, in float64, rounded once to the dtype it is written in."""
    piece = tl.program_id(0)
    block, start, address, stride, columns = piece_of(table, piece, blocks, steps, chunk, DTYPE)
    weights += tl.load(table + 4 * blocks + block) * K
    output = tl.load(table + 5 * blocks + block).to(tl.pointer_type(DTYPE)) + start
    for offset in range(0, columns, WIDTH):
        column = offset + tl.arange(0, WIDTH)
        mask = column < columns
        total = tl.zeros([WIDTH], tl.float64)
        for k in tl.static_range(K):
            entry = tl.load(address + k * stride + column, mask=mask, other=0.0)
            total = tl.fma(entry.to(tl.float64), tl.load(weights + k), total)
        direction = total.to(tl.float32).to(DTYPE)
        if ADD:
            present = tl.load(output + column, mask=mask, other=0.0).to(tl.float32)
            direction = (present + direction.to(tl.float32)).to(DTYPE)
        tl.store(output + column, direction, mask=mask)
