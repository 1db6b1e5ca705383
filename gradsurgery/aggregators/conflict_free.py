"""ConFIG: a conflict-free direction with equal cosine to all gradients."""

import numpy as np
from torch import Tensor

from ..solvers import device, equal_projections
from ..solvers.arrays import Array
from ..solvers.scaling import unit_gramian
from .base import GramianAggregator
from .host import on_host_or_device


class ConFIG(GramianAggregator):
    r"""Finds the direction with equal cosine to all gradients, as long as the sum of their projections on it.

    .. math:: d = \Bigl( \sum_k \langle g_k, v \rangle \Bigr) v, \quad v = \frac{U^+ 1}{\lVert U^+ 1 \rVert}

    U holds the unit rows. Where no direction has equal cosine to all of them, :math:`U^+ 1` comes closest in the
    sense of least squares; for two opposed rows that is d = 0.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``.
        zero_rows_constrain_nothing: a zero row gets weight zero.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.
        no_host_sync: on a GPU nothing is read on the host for up to 8 losses, nor for more in a CUDA graph.

    As long as the rows are linearly independent, d makes no loss worse. Weights can be negative.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``.

    Raises:
        ValueError: ``gramian`` is not square in its last two dimensions.

    Cost:
        A Cholesky factorization and a solve of size K; on the host an eigendecomposition where the rows are close to
        linearly dependent.

    References:
        Liu, Chu and Thuerey, ConFIG: towards conflict-free training of physics informed neural networks, ICLR
        2025 (arXiv:2408.11104), section 3.1.

    Example:
        >>> J = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
        >>> d = ConFIG()(J)
        >>> J @ d / J.norm(dim=1)  # the same progress for both, relative to their norms
        tensor([0.3416, 0.3416])
    """

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return on_host_or_device(conflict_free_weights, _weights_on_device, gramian)


def conflict_free_weights(gramian: Array) -> Array:
    """The weights of ConFIG, for Gramians ``(B, K, K)``."""
    cosines, norms, nonzero = unit_gramian(gramian)
    solution = equal_projections(cosines, nonzero.astype(np.float64), approximate=True)
    progress = (cosines @ solution[..., None])[..., 0]  # on each unit row; all equal where they can be
    length = np.add.reduce(norms * progress, axis=1, keepdims=True)
    squared = np.add.reduce(solution * progress, axis=1, keepdims=True)
    weights: Array = solution * (length / (squared + (squared == 0))) / norms
    return weights


def _weights_on_device(gramian: Tensor) -> Tensor:
    cosines, norms, nonzero = device.unit_gramian(gramian)
    solution, _ = device.equal_projections(cosines, nonzero.double(), approximate=True)
    progress = (cosines @ solution.unsqueeze(-1)).squeeze(-1)
    length = (norms * progress).sum(-1, keepdim=True)
    squared = (solution * progress).sum(-1, keepdim=True)
    return solution * (length / (squared + (squared == 0))) / norms
