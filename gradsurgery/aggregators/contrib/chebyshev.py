"""The direction furthest from making any loss worse."""

import numpy as np
from torch import Tensor

from ...solvers import min_norm_weights
from ...solvers.arrays import Array
from ...solvers.scaling import RIDGE, unit_gramian
from ..base import GramianAggregator
from ..host import on_host


class ChebyshevCenter(GramianAggregator):
    r"""Steps along the unit vector furthest inside the cone of the directions that make no loss worse.

    .. math:: v = \arg\max_{\lVert v \rVert \le 1} \min_k \langle u_k, v \rangle, \quad
        u_k = \frac{g_k}{\lVert g_k \rVert}, \qquad d = \Big(\sum_k \langle g_k, v \rangle\Big) v

    By duality v is the direction of the shortest convex combination of the :math:`u_k`.

    Guarantees:
        non_conflicting: ``J @ d >= 0`` up to rounding.
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``; v does not depend on the scale of any row.
        stationary: on the non-zero rows, ``d = 0`` exactly when no direction helps every loss, seen with the
            precision of a Gramian: also where every unit vector helps some loss by less than 3e-7.
        zero_rows_constrain_nothing: a zero row gets weight zero.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, non-negative.

    Raises:
        ValueError: ``gramian`` is not square in its last two dimensions.

    Cost:
        One non-negative least-squares problem of size K on the host; nothing that depends on P.

    References:
        Yoon, Bae, Ho-Nguyen and Lee, Chebyshev center-based direction selection for multi-objective optimization
        and training PINNs (2026, arXiv:2605.09975), the Euclidean case.

    Example:
        >>> J = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> ChebyshevCenter()(J)
        tensor([2., 2.])
    """

    # Departs from Yoon et al., section 3: the dual is solved exactly for every K, where theirs uses Frank-Wolfe
    # steps from four losses on.

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return on_host(_center, gramian)


def _center(gramian: Array) -> Array:
    cosines, norms, nonzero = unit_gramian(gramian)
    unit_rows = np.where(nonzero[:, :, None] & nonzero[:, None, :], cosines, 0.0)
    shortest = min_norm_weights(unit_rows)
    inner = (unit_rows @ shortest[..., None])[..., 0]
    squared = (inner * shortest).sum(axis=1, keepdims=True)
    progress = (inner * norms).sum(axis=1, keepdims=True)
    helpful = squared > RIDGE
    return np.where(helpful & nonzero, shortest * (progress / norms) / np.where(helpful, squared, 1.0), 0.0)
