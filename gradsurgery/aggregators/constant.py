"""Fixed weights, one a loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import GramianAggregator
from .preference import numbers_of


class Constant(GramianAggregator):
    r"""Adds the gradients with fixed weights, as differentiating a weighted sum of the losses does.

    .. math:: d = \sum_k w_k g_k

    Guarantees:
        linear_under_scaling: d is linear in the scale of each row.
        scale_equivariant: ``d(sJ) = s d(J)``.
        batched: leading dimensions are separate problems.
        no_host_sync: nothing is copied to the host.

    Args:
        weights: Finite numbers, one a loss; of losses that are absent, they are not used.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, the weights.

    Raises:
        TypeError: ``weights`` holds no numbers.
        ValueError: ``weights`` is no vector or not finite, or there are fewer of them than losses.

    Cost:
        None.

    Example:
        >>> Constant([1.0, 0.5])(torch.tensor([[4.0, 2.0], [-2.0, 0.0]]))
        tensor([3., 2.])
    """

    def __init__(self, weights: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.constants = numbers_of(weights, "Constant: `weights` must be finite numbers, one a loss")
        self._on_device = torch.tensor(self.constants, dtype=torch.float64)
        self._usual = torch.Size([len(self.constants)] * 2)  # one Gramian of all losses: the case worth being fast in

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        weights = self._on_device
        if gramian.shape == self._usual and self._rows is None and gramian.device == weights.device:
            return weights.clone()
        if weights.device != gramian.device:
            weights = self._on_device = torch.tensor(self.constants, dtype=torch.float64, device=gramian.device)
        rows = self._known_rows(gramian.shape[-1])
        if len(rows) < len(weights) or rows != sorted(rows):  # a list as index would be copied to the device
            weights = torch.stack([weights[row] for row in rows])
        return weights.expand(gramian.shape[:-1]).clone()

    def _known_rows(self, count: int) -> list[int]:
        rows = self.current_rows(count)
        if max(rows) >= len(self.constants):
            raise ValueError(
                f"Constant: `weights` must have one entry a loss, got {len(self.constants)} for loss {max(rows)}."
            )
        return rows
