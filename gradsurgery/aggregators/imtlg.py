"""IMTL-G: equal projections on all gradients."""

import numpy as np
import torch
from torch import Tensor

from ..solvers import device, equal_projections
from ..solvers.arrays import EPSILON, Array
from ..solvers.scaling import NULL, unit_gramian
from .base import GramianAggregator
from .host import on_host_or_device

_DOUBTFUL = 1e-3
"""A smaller sum, relative to the largest that its terms could have, may be rounding."""

_LAST_PLACES = 4.0
"""How many units of the last place an inner product of unit rows may be off, for each row."""


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
        no_host_sync: on a GPU nothing is read on the host for up to 8 losses, nor for more in a CUDA graph.

    Weights can be negative, and so can the common projection when the norms are very different: the paper's
    condition sets the sum of the weights to 1, not the sign of the step. The length of d has a pole where the
    sum of :math:`\beta_k / \lVert g_k \rVert` changes its sign.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``; sums to 1, or is zero: where d = 0, and at that pole, as far as rounding has its sign.

    Raises:
        ValueError: ``gramian`` is not square in its last two dimensions.

    Cost:
        A Cholesky factorization and a solve of size K; on the host an eigendecomposition where the rows are close to
        linearly dependent.

    References:
        Liu et al., Towards impartial multi-task learning, ICLR 2021, section 3.1.

    Example:
        >>> J = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> IMTLG()(J)
        tensor([0.8000, 0.8000])
    """

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return on_host_or_device(_weights, _weights_on_device, gramian)


def _weights(gramian: Array) -> Array:
    cosines, norms, nonzero = unit_gramian(gramian)
    inverse = nonzero / norms
    shared = equal_projections(cosines, nonzero.astype(np.float64), approximate=False)
    weights: Array = shared * inverse
    total = np.add.reduce(weights, axis=1, keepdims=True)
    size = np.add.reduce(np.abs(shared), axis=1, keepdims=True) * np.maximum.reduce(inverse, axis=1, keepdims=True)
    if b"\1" in (np.abs(total) <= _DOUBTFUL * size).tobytes():  # any(), at a quarter of its overhead
        # Departs from Liu et al., section 3.1: where the sign of the sum is rounding, it is no divisor.
        total = np.where(np.abs(total) > _rounding(cosines) * size, total, np.inf)
    weights /= total
    return weights


def _rounding(cosines: Array) -> Array:
    """What rounding may have added to a weighted sum of the solution, relative to what adds up without signs."""
    values = np.linalg.eigvalsh(cosines)
    smallest = np.minimum.reduce(values, axis=1, keepdims=True, where=values > NULL, initial=np.inf)
    relative: Array = _LAST_PLACES * cosines.shape[1] * EPSILON / smallest
    return relative


def _weights_on_device(gramian: Tensor) -> Tensor:
    cosines, norms, nonzero = device.unit_gramian(gramian)
    inverse = nonzero / norms
    shared, smallest = device.equal_projections(cosines, nonzero.double(), approximate=False)
    weights = shared * inverse
    total = weights.sum(-1, keepdim=True)
    size = shared.abs().sum(-1, keepdim=True) * inverse.amax(-1, keepdim=True)
    rounding = (_LAST_PLACES * cosines.shape[1] * EPSILON / smallest).clamp(max=_DOUBTFUL)
    return weights / torch.where(total.abs() > rounding * size, total, torch.inf)
