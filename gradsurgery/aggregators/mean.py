"""The mean of the gradients."""

import torch
from torch import Tensor

from .base import GramianAggregator


class Mean(GramianAggregator):
    r"""Averages the gradients, as differentiating the mean of the losses does.

    .. math:: d = \frac1K \sum_k g_k

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        linear_under_scaling: d is linear in the scale of each row.
        scale_equivariant: ``d(sJ) = s d(J)``.
        equals_mean_without_conflict: it is the mean, with or without conflict.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.
        no_host_sync: nothing is copied to the host.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, all ``1 / K``.

    Raises:
        ValueError: ``gramian`` is not square in its last two dimensions.

    Cost:
        None.

    Example:
        >>> Mean()(torch.tensor([[4.0, 2.0], [-2.0, 0.0]]))
        tensor([1., 1.])
    """

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return torch.full_like(gramian[..., 0], 1.0 / gramian.shape[-1])
