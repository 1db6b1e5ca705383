"""UPGrad: the mean of the gradients, each first made harmless to all losses."""

import numpy as np
from torch import Tensor

from ..solvers import project_on_dual_cone
from ..solvers.nnls import Array
from .base import GramianAggregator
from .host import on_host


class UPGrad(GramianAggregator):
    r"""Projects each gradient on the cone of directions that make no loss worse, then averages.

    .. math:: d = \frac1K \sum_k \arg\min_{x : J x \ge 0} \lVert x - g_k \rVert

    Guarantees:
        non_conflicting: ``J @ d >= 0`` up to rounding.
        permutation_equivariant: the order of the losses does not matter.
        linear_under_scaling: d is linear in the scale of each row.
        scale_equivariant: ``d(sJ) = s d(J)``.
        equals_mean_without_conflict: the mean of the rows when no two conflict.
        zero_rows_constrain_nothing: a zero row counts in the average and constrains nothing.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, at least ``1 / K`` each.

    Raises:
        ValueError: ``gramian`` is not square in its last two dimensions.

    Cost:
        K non-negative least-squares problems of size K on the host, solved together; nothing that depends
        on P.

    References:
        Quinton and Rey, Jacobian descent for multi-objective optimization (arXiv:2406.16232), section 2.2.

    Example:
        >>> J = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
        >>> J @ UPGrad()(J)
        tensor([2.0000, 0.4000])
    """

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return on_host(_mean_of_projections, gramian)


def _mean_of_projections(gramian: Array) -> Array:
    each_row = np.broadcast_to(np.eye(gramian.shape[-1]), gramian.shape)
    mean: Array = project_on_dual_cone(gramian, each_row).mean(axis=1)
    return mean
