"""The kernels for CPU tensors: float64 copies of a chunk at a time, small blocks side by side in one.

Skinny float64 products cost more than the conversions. Torch's take no notice that a Gramian is symmetric; NumPy's do
in ``a @ a.T``, and are faster where a few rows meet one. But threads of both libraries would fight for the cores. So
NumPy multiplies where torch has one thread or there is little to do, and what several threads are to share is a
batch of products of torch's.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import reference

_Array: TypeAlias = NDArray[np.float64]
_Factors: TypeAlias = tuple[_Array, _Array, _Array]
_Function: TypeAlias = Callable[..., _Array]

# Elements of a chunk for each thread: in float64 they fill a second-level cache.
_CHUNK_ELEMENTS = 1 << 17

# Up to so many rows, each so many times as long, one product for each row is faster than one for all.
_FEW_ROWS, _LONG_ROWS = 16, 512

# Multiplications, and elements of a weighted sum, that the libraries do not spread over threads.
_SERIAL_PRODUCT, _SERIAL_SUM = 1 << 18, 1 << 13


def gramian(blocks: Sequence[Tensor], groups: Sequence[int] | None = None) -> Tensor:
    """Computes what :func:`reference.gramian` defines.

    Guarantees:
        symmetric: bit for bit.

    Cost:
        One pass over the Jacobian; ``K (K + 1) P / 2`` multiplications where torch has one thread, else ``K^2 P``.
        For each thread, up to 16, ``128k`` float64 elements of scratch memory.
    """
    if not _is_plain(blocks):
        return reference.gramian(blocks, groups)
    indices, matrices, sizes, width = _prepared(blocks, groups)
    count = len(matrices[0])
    result = np.zeros((max(indices) + 1, count, count))
    with np.errstate(all="ignore"):  # what is not finite passes through
        for first, last in _packs(sizes, width):
            if sizes[first] > width:
                _add_product(matrices[first], width, result[indices[first]])
                continue
            wide = _side_by_side(matrices[first:last])
            for group, columns in _runs(indices[first:last], sizes[first:last]):
                result[group] += _product(wide[:, columns])
    if _is_long(count, sum(sizes)) or torch.get_num_threads() > 1:  # else it is symmetric
        for row in range(1, count):
            result[:, :row, row] = result[:, row, :row]
    return torch.from_numpy(result)


def combine(blocks: Sequence[Tensor], weights: Tensor, groups: Sequence[int] | None = None) -> list[Tensor]:
    """Computes what :func:`reference.combine` defines; large blocks there, for nothing was faster.

    Cost:
        One pass over the Jacobian, half of it the conversion to float64; ``128k`` float64 elements of scratch memory.
    """
    if not _is_plain([*blocks, weights]):
        return reference.combine(blocks, weights, groups)
    indices, matrices, sizes, width = _prepared(blocks, groups)
    rows = weights.detach().double().numpy()
    directions: list[Tensor] = []
    with np.errstate(all="ignore"):
        for first, last in _packs(sizes, width):
            if sizes[first] > width:
                directions += reference.combine(blocks[first:last], weights, indices[first:last])
                continue
            wide = _side_by_side(matrices[first:last])
            sums = np.empty(wide.shape[1])
            for group, columns in _runs(indices[first:last], sizes[first:last]):
                _weigh(rows[group], wide[:, columns], sums[columns])
            directions += _separated(torch.from_numpy(sums), blocks[first:last], sizes[first:last])
    return directions


def _is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether NumPy can share their memory, or that of a copy, and nobody wants to differentiate the result."""
    kinds = (Tensor, torch.nn.Parameter)
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return not recorded and all(tensor.is_cpu and type(tensor) in kinds and not tensor.is_neg() for tensor in tensors)


def _prepared(
    blocks: Sequence[Tensor], groups: Sequence[int] | None
) -> tuple[list[int], list[Tensor], list[int], int]:
    """The groups, the blocks as ``(K, n)``, their n, and how many columns a chunk has."""
    indices = [0] * len(blocks) if groups is None else [group for group, _ in zip(groups, blocks, strict=True)]
    plain = [block.detach() if block.requires_grad else block for block in blocks]
    matrices = [block if block.ndim == 2 else reference.as_matrix(block) for block in plain]
    return indices, matrices, [matrix.shape[1] for matrix in matrices], _width(len(matrices[0]))


def _width(count: int) -> int:
    return max(1024, _CHUNK_ELEMENTS * min(16, torch.get_num_threads()) // count)


def _packs(sizes: list[int], width: int) -> Iterator[tuple[int, int]]:
    """Ranges of blocks that together fit in a chunk; one that does not fit is on its own."""
    first = used = 0
    for position, size in enumerate(sizes):
        used += size
        if used > width and position > first:
            yield first, position
            first, used = position, size
    yield first, len(sizes)


def _runs(indices: Sequence[int], sizes: list[int]) -> list[tuple[int, slice]]:
    """The columns of neighbours of one group."""
    if min(indices) == max(indices):
        return [(indices[0], slice(None))]
    runs = []
    start = stop = 0
    for position, size in enumerate(sizes, 1):
        stop += size
        if position == len(sizes) or indices[position] != indices[position - 1]:
            runs.append((indices[position - 1], slice(start, stop)))
            start = stop
    return runs


def _side_by_side(matrices: list[Tensor]) -> _Array:
    together = matrices[0] if len(matrices) == 1 else torch.cat(matrices, 1)
    wide: _Array = together.double().numpy()
    return wide


def _separated(sums: Tensor, blocks: Sequence[Tensor], sizes: list[int]) -> list[Tensor]:
    """Each block's part of a direction, with memory of its own and no view of anything."""
    dtype = blocks[0].dtype
    if len(blocks) == 1:
        parts: Sequence[Tensor] = [sums.to(dtype)]
    elif all(block.dtype == dtype for block in blocks):
        parts = torch.ops.aten.split_with_sizes_copy(sums.to(dtype), sizes)
    else:
        parts = [part.to(block.dtype, copy=True) for part, block in zip(sums.split(sizes), blocks, strict=True)]
    return [
        part if block.ndim == 2 else part.resize_(list(block.shape[1:]))
        for part, block in zip(parts, blocks, strict=True)
    ]


def _add_product(matrix: Tensor, width: int, total: _Array) -> None:
    """Adds the Gramian of a large block, valid on and below the diagonal."""
    whole = 0 if matrix.dtype == torch.float64 else matrix.shape[1] // width * width
    if whole > 0:  # the same copy and the same views of it for all chunks
        scratch = torch.empty(len(matrix), width, dtype=torch.float64)
        product = np.zeros(total.shape)
        multiply, steps = _steps(scratch.numpy(), product)
        for chunk in matrix[:, :whole].split(width, 1):
            scratch.copy_(chunk)
            for left, right, out in steps:
                multiply(left, right, out)
            total += product
    for chunk in matrix[:, whole:].split(width, 1):
        total += _product(chunk.double().numpy())


def _product(wide: _Array) -> _Array:
    """A Gramian, valid on and below the diagonal."""
    count, columns = wide.shape
    if columns * count * count <= _SERIAL_PRODUCT and not _is_long(count, columns):
        return _multiply(wide)(wide, wide.T)
    product = np.zeros((count, count))
    multiply, steps = _steps(wide, product)
    for left, right, out in steps:
        multiply(left, right, out)
    return product


def _steps(wide: _Array, product: _Array) -> tuple[_Function, list[_Factors]]:
    """How to compute a Gramian: a function, and what it multiplies, one pair after another."""
    count, columns = wide.shape
    shared = torch.get_num_threads() > 1
    if shared and columns * max(32, count * count) > _SERIAL_PRODUCT:
        return _multiply_batched, [(wide, wide.T, product)]
    if shared or not _is_long(count, columns):
        return _multiply(wide), [(wide, wide.T, product)]
    if count <= 3:
        pairs = [(row, other) for row in range(count) for other in range(row + 1)]
        return np.dot, [(wide[row], wide[other], product[row, other, ...]) for row, other in pairs]
    ends = [row + 1 if row % 4 == 0 else min(count, row - row % 4 + 4) for row in range(count)]  # fours are faster
    return _multiply(wide), [(wide[:end], wide[row], product[row, :end]) for row, end in enumerate(ends)]


def _multiply(wide: _Array) -> _Function:
    return np.dot if wide.flags.c_contiguous else np.matmul  # np.dot would copy parts of a matrix


def _is_long(count: int, columns: int) -> bool:
    return count <= _FEW_ROWS and columns >= _LONG_ROWS * count


def _multiply_batched(left: _Array, right: _Array, out: _Array) -> _Array:
    """Sums up a batch of products, which threads share."""
    number = left.shape[1] // 1024
    whole = number * 1024
    first = torch.from_numpy(left[:, :whole]).view(len(left), number, 1024).transpose(0, 1)
    second = torch.from_numpy(right[:whole]).unflatten(0, (number, 1024))
    rest = torch.mm(torch.from_numpy(left[:, whole:]), torch.from_numpy(right[whole:]))
    torch.add(rest, torch.bmm(first, second).sum(0), out=torch.from_numpy(out))
    return out


def _weigh(weights: _Array, wide: _Array, out: _Array) -> None:
    if wide.size > _SERIAL_SUM and torch.get_num_threads() > 1:
        torch.mv(torch.from_numpy(wide).T, torch.from_numpy(weights), out=torch.from_numpy(out))
    else:
        _multiply(wide)(weights, wide, out)
