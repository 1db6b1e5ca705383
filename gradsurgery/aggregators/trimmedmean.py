"""The trimmed mean: every coordinate without its extremes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Aggregator

_WORTH_AN_OPERATION = 100
"""Entries that can be sorted while one more operation is started: fewer are sorted, more are compared row by row."""


class TrimmedMean(Aggregator):
    r"""Averages, in every coordinate, what is left without the largest and the smallest entries.

    .. math:: d_p = \frac{1}{K - 2 t} \sum_{k = t + 1}^{K - t} g_{(k) p}, \qquad
        g_{(1) p} \le \dots \le g_{(K) p}

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``.
        one_loss_is_identity: with one loss, ``d = g``.
        batched: leading dimensions are separate problems.
        no_host_sync: nothing is copied to the host.

    Made for workers that differentiate the same loss; between different losses, a coordinate that only one of them
    needs is ignored. Zero rows are gradients like any other.

    Args:
        trim_number: t, how many entries are dropped at either end, >= 0. ``None``: as many as K allows,
            ``(K - 1) // 2``, which makes d the coordinate-wise median; with one or two losses, the mean.

    Shape:
        - jacobian: ``(..., K, P)`` or a list of blocks ``(K, ...)``; K > 2t.
        - output: ``(..., P)`` or a list of tensors ``(...)``.

    Raises:
        ValueError: ``trim_number`` is no integer >= 0, or there are too few losses for it.

    Cost:
        4t(K - t) comparisons of whole rows, or sorting where that is faster; memory for two copies of a block.

    References:
        Yin, Chen, Ramchandran and Bartlett, Byzantine-robust distributed learning: towards optimal statistical
        rates, ICML 2018, definitions 1 and 2.

    Example:
        >>> TrimmedMean(trim_number=1)(torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, -100.0], [900.0, 8.0]]))
        tensor([2.5000, 5.5000])
    """

    def __init__(self, trim_number: int | None = None) -> None:
        super().__init__()
        if trim_number is not None and not (isinstance(trim_number, int) and trim_number >= 0):
            raise ValueError(f"TrimmedMean: `trim_number` must be None or an integer >= 0, got {trim_number!r}.")
        self.trim_number = trim_number

    @property
    def works_on_parts(self) -> bool:
        return True

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        count = blocks[0].shape[0]
        trimmed = (count - 1) // 2 if self.trim_number is None else self.trim_number
        if count <= 2 * trimmed:
            raise ValueError(
                f"TrimmedMean: `trim_number` must be less than half the number of losses, {count}, got {trimmed}. "
                f"Use None for as many as there can be."
            )
        return [_trimmed_mean(block, trimmed) for block in blocks]


def _trimmed_mean(block: Tensor, trimmed: int) -> Tensor:
    if block.dtype.itemsize < 4:
        return _trimmed_mean(block.float(), trimmed).to(block.dtype)
    if trimmed == 0:
        return block.mean(dim=0)
    operations = 4 * trimmed * (len(block) - trimmed)
    if _WORTH_AN_OPERATION * operations > block.numel():
        return block.sort(dim=0).values[trimmed:-trimmed].mean(dim=0)
    rows = list(block)
    for _ in range(trimmed):
        rows = _without_extremes(rows)
    return torch.stack(rows).mean(dim=0)


def _without_extremes(rows: list[Tensor]) -> list[Tensor]:
    """What is left, in every coordinate, without the largest and the smallest entry; in any order."""
    largest, lower = rows[0], []
    for row in rows[1:]:
        lower.append(torch.minimum(largest, row))
        largest = torch.maximum(largest, row)
    smallest, inner = lower[0], []
    for row in lower[1:]:
        inner.append(torch.maximum(smallest, row))
        smallest = torch.minimum(smallest, row)
    return inner
