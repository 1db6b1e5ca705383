"""IMTL-G: equal projections on all gradients."""

import numpy as np
from torch import Tensor

from ..solvers import equal_projections
from ..solvers.nnls import Array
from ..solvers.scaling import unit_gramian
from .base import GramianAggregator
from .host import on_host

_CANCELLED = 1e-16
"""Weights whose sum squared is this small, relative to the sum of their magnitudes, add up to nothing."""


class IMTLG(GramianAggregator):
    r"""Finds the combination whose projections on all unit gradients are equal.

    .. math:: d = \sum_k \alpha_k g_k, \quad \sum_k \alpha_k = 1, \quad
        \langle d, u_i \rangle = \langle d, u_j \rangle \text{ for all } i, j

    In unit rows :math:`C \beta = 1`, :math:`\alpha_k \propto \beta_k / \lVert g_k \rVert`. Where the rows are
    linearly dependent, parallel ones share their weight, and rows that no direction serves equally, such as two
    opposed ones, get weight zero: d = 0.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``.
        zero_rows_constrain_nothing: a zero row gets weight zero.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.

    Weights can be negative, and so can the common projection when the norms are very different: the paper's
    condition sets the sum of the weights to 1, not the sign of the step. The length of d has a pole where the
    sum of :math:`\beta_k / \lVert g_k \rVert` changes its sign.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``; sums to 1, or is zero: at that pole and where d = 0.

    Raises:
        ValueError: ``gramian`` is not square in its last two dimensions.

    Cost:
        A Cholesky factorization and a solve of size K on the host; an eigendecomposition where the rows are close
        to linearly dependent.

    References:
        Liu et al., Towards impartial multi-task learning, ICLR 2021, section 3.1.

    Example:
        >>> J = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> IMTLG()(J)
        tensor([0.8000, 0.8000])
    """

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return on_host(_weights, gramian)


def _weights(gramian: Array) -> Array:
    cosines, norms, nonzero = unit_gramian(gramian)
    shared = equal_projections(cosines, nonzero.astype(np.float64), approximate=False) / norms
    size = np.add.reduce(np.abs(shared), axis=1, keepdims=True)
    relative = shared / np.maximum(size, np.finfo(np.float64).tiny)
    total = np.add.reduce(relative, axis=1, keepdims=True)
    # Departs from Liu et al., section 3.1: the division by the sum is damped so close to the pole that its sign is
    # rounding, which makes the weights continuous there.
    weights: Array = relative * (total / (total * total + _CANCELLED))
    return weights
