"""The plain sum of the gradients: what training does without surgery."""

import torch
from torch import Tensor

from .base import GramianAggregator


class Sum(GramianAggregator):
    r"""Adds the gradients, as differentiating the sum of the losses does.

    .. math:: d = \sum_k g_k

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        linear_under_scaling: d is linear in the scale of each row.
        scale_equivariant: ``d(sJ) = s d(J)``.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.
        no_host_sync: nothing is copied to the host.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, ones.

    Raises:
        ValueError: ``gramian`` is not square in its last two dimensions.

    Cost:
        None.

    Example:
        >>> Sum()(torch.tensor([[4.0, 2.0], [-2.0, 0.0]]))
        tensor([2., 2.])
    """

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return torch.ones_like(gramian[..., 0])
