"""The inverse square root of a Gramian: what makes its rows orthogonal and equally long."""

from typing import Literal

import numpy as np
import torch

from .nnls import Array

Scale = Literal["min", "median", "rmse"]

_SEPARATED = 1e-6
"""A smallest eigenvalue larger than this, relative to the largest, is exact enough as it comes."""

_NULL = 1e-12
"""Eigenvalues of a unit-diagonal Gramian below it are rounding."""

_CONVERGED, _MOST_STEPS = 1e-9, 60


def aligned_weights(gramian: Array, preference: Array, scale: Scale) -> Array:
    r"""Computes the weights that replace the rows by the closest orthogonal ones of equal length.

    .. math:: w = \sigma \, (G^+)^{1/2} \, p

    :math:`\sigma` is the smallest singular value of the rows that is not zero, the median one (of an even number the
    lower) or their root mean square.

    An eigendecomposition of G has errors relative to its largest eigenvalue. Where rows of very different length make
    the smallest one vanish in them, :math:`G^{-1/2}` comes from the orthogonal factor Q of :math:`L = D B = H Q`
    instead, with the norms D and :math:`B B^\top = C`: :math:`n_i w_i = \sigma \, (B^{-\top} Q^\top p)_i`. Newton's
    iteration for Q works on rows brought to unit length, so that its error depends on C alone.

    Laws:
        ``G w`` and the weights do not depend on the order of the rows; zero rows get weight zero.

    Args:
        gramian: G, finite.
        preference: p.
        scale: Which singular value.

    Shape:
        - gramian: ``(B, K, K)``.
        - preference: ``(K,)``.
        - output: ``(B, K)``.

    Cost:
        An eigendecomposition; a dozen inversions for each Gramian that is ill-conditioned.

    References:
        Higham, Computing the polar decomposition, with applications, SIAM J. Sci. Stat. Comput. 7 (1986).
    """
    largest = np.einsum("bii->bi", gramian).max(axis=1)
    relative = gramian / (largest + (largest == 0))[:, None, None]
    # torch brings a LAPACK that takes a tenth less than NumPy's, which counts in a batch or for many losses.
    values, vectors = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(relative)))
    if (values[:, 0] > _SEPARATED * values[:, -1]).all():
        return _weights(values, vectors, preference, scale)
    return np.stack([_weights_of_nonzero(matrix, preference, scale) for matrix in relative])


def _weights(values: Array, vectors: Array, preference: Array, scale: Scale) -> Array:
    """From positive eigenvalues, ascending, and their eigenvectors; the others may be left out."""
    shares = (preference @ vectors) * np.sqrt(_squared(values, scale) / values)
    weights: Array = (vectors @ shares[..., None])[..., 0]
    return weights


def _squared(values: Array, scale: Scale) -> Array:
    if scale == "min":
        return values[..., :1]
    if scale == "median":
        middle = (values.shape[-1] - 1) // 2
        return values[..., middle : middle + 1]
    mean: Array = values.mean(axis=-1, keepdims=True)
    return mean


def _weights_of_nonzero(gramian: Array, preference: Array, scale: Scale) -> Array:
    """One Gramian with zero rows, dependent rows, or rows of very different length."""
    weights = np.zeros(len(gramian))
    present = np.flatnonzero(np.diagonal(gramian) > 0)
    if present.size == 0:
        return weights
    gramian, preference = gramian[present][:, present], preference[present]
    norms = np.sqrt(np.diagonal(gramian))
    cosines = gramian / norms[:, None] / norms
    spectrum = np.linalg.eigvalsh(cosines)
    rank = int(np.sum(spectrum > _NULL))
    values, vectors = np.linalg.eigh(gramian)
    if rank == len(present) and values[0] <= _SEPARATED * values[-1]:
        weights[present] = _by_polar_factor(cosines, norms, preference, scale)
    else:
        values = np.maximum(values[-rank:], np.finfo(np.float64).eps * values[-1])
        weights[present] = _weights(values, vectors[:, -rank:], preference, scale)
    return weights


def _by_polar_factor(cosines: Array, norms: Array, preference: Array, scale: Scale) -> Array:
    root = np.linalg.cholesky(cosines)
    rows = root * norms[:, None]
    inverse = np.linalg.inv(root) / norms
    values = _singular_values(rows, inverse) ** 2
    turned = _polar_factor(rows, inverse.T).T @ preference
    weights: Array = np.sqrt(_squared(values, scale)) * (inverse.T @ turned)
    return weights


def _singular_values(matrix: Array, inverse: Array) -> Array:
    """Ascending: the large ones from the matrix and the small ones from its inverse, each with its relative error."""
    direct = np.linalg.svd(matrix, compute_uv=False)[::-1]
    reciprocal = 1.0 / np.linalg.svd(inverse, compute_uv=False)
    return np.where(direct**2 > direct[-1] * reciprocal[0], direct, reciprocal)


def _polar_factor(matrix: Array, inverse_transposed: Array) -> Array:
    """Newton's iteration: the mean of the matrix and its inverse transposed, scaled to be of equal size."""
    for _ in range(_MOST_STEPS):
        sizes = [np.abs(side).sum(axis=axis).max() for side in (inverse_transposed, matrix) for axis in (0, 1)]
        factor = (sizes[0] * sizes[1] / (sizes[2] * sizes[3])) ** 0.25
        following = 0.5 * (factor * matrix + inverse_transposed / factor)
        change = np.abs(following - matrix).max()
        matrix = following
        norms = np.linalg.norm(matrix, axis=1, keepdims=True)
        inverse_transposed = np.linalg.inv(matrix / norms).T / norms
        if change < _CONVERGED:
            break
    return 0.5 * (matrix + inverse_transposed)
