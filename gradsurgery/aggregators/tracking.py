"""What methods share that follow the gradients with rows of their own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import as_matrix, widened
from .base import Aggregator


class Tracking(Aggregator):
    """Keeps one row a loss, block by block, that moves towards its gradient. A loss that is absent keeps its row.

    Rows are kept in the dtype of the gradients, but float32 at least.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_per_loss("tracked", 0.0, dims=(0,), per_block=True)
        self.register_per_loss("calls", 0.0)

    def count(self, blocks: Sequence[Tensor]) -> Tensor:
        """Counts this call and returns the number of those that each loss was present in, ``(K,)``."""
        first = blocks[0]
        calls = self.recall("calls", first.new_empty(first.shape[0], dtype=torch.float64)) + 1
        self.remember("calls", calls)
        return calls

    def follow(self, blocks: Sequence[Tensor], factors: Tensor, rates: Tensor) -> list[Tensor]:
        r"""Moves the rows, :math:`v_k \leftarrow (1 - r_k) v_k + r_k f_k g_k`, and returns them.

        Shape:
            - factors: ``(K,)``.
            - rates: ``(K,)``.
        """
        rows = []
        for position, block in enumerate(blocks):
            gradients = widened(block)
            known = self.recall("tracked", gradients, position)
            moved = (known * _beside(1 - rates, known)).addcmul_(gradients, _beside(rates * factors, known))
            self.remember("tracked", moved, position)
            rows.append(moved)
        return rows


def row_norms(blocks: Sequence[Tensor]) -> Tensor:
    """The norms of the rows, ``(K,)``, float64, on the first block's device."""
    parts = [torch.linalg.vector_norm(as_matrix(block), dim=1, dtype=torch.float64) for block in blocks]
    norms: Tensor = torch.linalg.vector_norm(torch.stack([part.to(parts[0].device) for part in parts]), dim=0)
    return norms


def inverse(numbers: Tensor) -> Tensor:
    """One over each number; 0 for 0, NaN for what has overflowed."""
    inverses = torch.where(numbers > 0, 1 / torch.where(numbers > 0, numbers, 1.0), 0.0)
    return torch.where(numbers.isfinite(), inverses, torch.nan)


def _beside(factors: Tensor, rows: Tensor) -> Tensor:
    """One factor a row, shaped to be multiplied with the rows."""
    return factors.to(device=rows.device, dtype=rows.dtype).view(-1, *[1] * (rows.ndim - 1))
