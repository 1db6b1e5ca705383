"""Defines the kernels in plain torch; every faster form has to agree with this file.

A Jacobian is a list of blocks, each ``(K, ...)``: row ``k`` is the gradient of loss ``k`` for some of the
parameters. Blocks are never concatenated. ``groups[i]`` says which of the B surgeries block ``i`` takes part
in; with ``groups=None`` all blocks take part in one (B = 1).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Columns of one chunk times K: the float64 copy of a chunk stays within a second-level cache.
_CHUNK_ELEMENTS = 1 << 17


def gramian(blocks: Sequence[Tensor], groups: Sequence[int] | None = None) -> Tensor:
    r"""Computes the inner products of all pairs of rows.

    .. math:: G_b = \sum_{i : \mathrm{groups}_i = b} J_i J_i^\top

    Products and sums are float64. A float32 product of two rows of four million elements was off by 5e-4
    relative to their norms, a chunked float64 one by 4e-13, at a tenth of the price of the K backward passes.

    Args:
        blocks: The Jacobian's blocks, each ``(K, ...)``, any floating dtype, any strides.
        groups: For each block the surgery it belongs to, in ``range(B)``. ``None``: one surgery.

    Shape:
        - output: ``(B, K, K)``, float64, on the first block's device.

    Cost:
        One pass over the Jacobian, ``K^2 P`` multiplications, ``128k`` float64 elements of scratch memory.
    """
    number_of_losses = blocks[0].shape[0]
    indices = [0] * len(blocks) if groups is None else groups
    device = blocks[0].device
    result = torch.zeros(max(indices) + 1, number_of_losses, number_of_losses, dtype=torch.float64, device=device)
    for block, index in zip(blocks, indices, strict=True):
        rows = as_matrix(block)
        partial = result[index] if block.device == device else torch.zeros_like(result[0], device=block.device)
        for chunk in rows.split(_columns_of_chunk(rows), dim=1):
            wide = chunk.double()
            partial.addmm_(wide, wide.mT)
        if block.device != device:
            result[index] += partial.to(device)
    return result


def cross_gramian(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    r"""Computes the inner products of the rows of one Jacobian with those of another, :math:`J_1 J_2^\top`.

    Products and sums are float64, as in :func:`gramian`.

    Args:
        first: Blocks, each ``(K, ...)``, any floating dtype, any strides.
        second: Blocks of the same shapes.

    Shape:
        - output: ``(K, K)``, float64, on the first block's device; not symmetric.

    Cost:
        One pass over both, ``K^2 P`` multiplications, ``256k`` float64 elements of scratch memory.
    """
    number_of_losses = first[0].shape[0]
    result = torch.zeros(number_of_losses, number_of_losses, dtype=torch.float64, device=first[0].device)
    for one, other in zip(first, second, strict=True):
        rows, others = as_matrix(one), as_matrix(other)
        columns = _columns_of_chunk(rows)
        for chunk, opposite in zip(rows.split(columns, dim=1), others.split(columns, dim=1), strict=True):
            result += (chunk.double() @ opposite.to(chunk.device).double().mT).to(result.device)
    return result


def project(gramian: Tensor, order: Tensor) -> Tensor:
    r"""Removes from every row its conflicts with the others, one after another, as PCGrad does.

    Row ``i`` starts as :math:`\hat g_i = g_i` and meets the other original rows in the order ``order[:, ..., i]``:

    .. math:: \hat g_i \leftarrow \hat g_i - \min(0, \langle \hat g_i, g_j \rangle) / \lVert g_j \rVert^2 \; g_j

    Args:
        gramian: Inner products of the original rows.
        order: Which other row each row meets at each step; all of them once.

    Shape:
        - gramian: ``(..., K, K)``.
        - order: ``(K - 1, ..., K)``, int64.
        - output: ``(..., K, K)``; row ``i`` holds the coefficients of :math:`\hat g_i` in the original rows.

    Cost:
        K - 1 steps, each over all K rows at once.
    """
    squared_norms = gramian.diagonal(dim1=-2, dim2=-1)
    coefficients = torch.eye(gramian.shape[-1], dtype=gramian.dtype, device=gramian.device)
    coefficients = coefficients.expand(gramian.shape).clone()
    for other in order:  # (..., K)
        index = other.unsqueeze(-1)
        columns = gramian.gather(-2, index.expand(gramian.shape))  # (..., K, K), row i = G[other_i]
        inner = (coefficients * columns).sum(-1)
        squared = squared_norms.gather(-1, other)
        conflicts = (inner < 0) & (squared > 0)
        change = torch.where(conflicts, inner / squared, torch.zeros_like(inner))
        coefficients.scatter_add_(-1, index, -change.unsqueeze(-1))
    return coefficients


def combine(blocks: Sequence[Tensor], weights: Tensor, groups: Sequence[int] | None = None) -> list[Tensor]:
    r"""Computes the direction, the weighted sum of the rows: :math:`d_i = w_{\mathrm{groups}_i} J_i`.

    Args:
        blocks: The Jacobian's blocks, each ``(K, ...)``.
        weights: Weights of the rows for each surgery.
        groups: As in :func:`gramian`.

    Shape:
        - weights: ``(B, K)``.
        - output: one tensor ``(...)`` a block, in the block's dtype, each with memory of its own.

    Cost:
        One pass over the Jacobian, ``128k`` float64 elements of scratch memory. Products and sums are float64: where
        the rows nearly cancel, float32 sums lost up to three digits of d.
    """
    indices = [0] * len(blocks) if groups is None else groups
    directions = []
    for block, index in zip(blocks, indices, strict=True):
        rows = as_matrix(block)
        row_weights = weights[index].to(device=block.device, dtype=torch.float64)
        direction = block.new_empty(block.shape[1:])  # filled in place: autograd frowns on gradients that are views
        columns = _columns_of_chunk(rows)
        for target, chunk in zip(direction.view(-1).split(columns), rows.split(columns, dim=1), strict=True):
            target.copy_(row_weights @ chunk.double())
        directions.append(direction)
    return directions


def widened(block: Tensor) -> Tensor:
    """The block in float32 or better."""
    return block.to(torch.promote_types(block.dtype, torch.float32))


def as_matrix(block: Tensor) -> Tensor:
    """A block as ``(K, P)``; that of a scalar parameter is ``(K,)``."""
    return block.unsqueeze(1) if block.ndim == 1 else block.flatten(1)


def _columns_of_chunk(rows: Tensor) -> int:
    return max(1024, _CHUNK_ELEMENTS // rows.shape[0])
