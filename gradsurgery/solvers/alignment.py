"""The inverse square root of a Gramian: what makes its rows orthogonal and equally long."""

from typing import Literal

import numpy as np
import torch

from .arrays import EPSILON, Array
from .scaling import NULL

Scale = Literal["min", "median", "rmse"]

_SEPARATED = 1e-6
"""A smallest eigenvalue larger than this, relative to the largest, is exact enough as it comes."""

_ROUNDING = 8.0
"""How many units of the last place, for each row, the rows of unit length may be off."""

_CONVERGED, _MOST_STEPS = 1e-9, 60


def aligned_weights(gramian: Array, preference: Array, scale: Scale) -> Array:
    r"""Computes the weights that replace the rows by the closest orthogonal ones of equal length.

    .. math:: w = \sigma \, (G^+)^{1/2} \, p

    :math:`\sigma` is the smallest singular value of the rows that is not zero, the median one (of an even number the
    lower) or their root mean square.

    An eigendecomposition of G has errors relative to its largest eigenvalue. Where the smallest one vanishes in them,
    because rows are dependent or of very different length, w comes from the orthogonal factor Q of
    :math:`L = D B = H Q` instead, with the norms D and :math:`B B^\top = C`, B having as many columns as C has rank:
    :math:`n_i w_i = \sigma \, ((B^+)^\top Q^\top p)_i`. Newton's iteration for Q works on rows brought to unit
    length, so that its error depends on C alone. Dependent rows leave w a choice, which changes nothing in
    :math:`J^\top w`.

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
        An eigendecomposition; another one and a dozen inversions for each Gramian that is ill-conditioned.

    References:
        Higham, Computing the polar decomposition, with applications, SIAM J. Sci. Stat. Comput. 7 (1986).
    """
    largest = np.einsum("bii->bi", gramian).max(axis=1)
    relative = gramian / (largest + (largest == 0))[:, None, None]
    # torch brings a LAPACK that takes a tenth less than NumPy's, which counts in a batch or for many losses.
    values, vectors = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(relative)))
    separated = values[:, 0] > _SEPARATED * values[:, -1]
    if separated.all():
        return _weights(values, vectors, preference, scale)
    weights = np.zeros(gramian.shape[:2])
    weights[separated] = _weights(values[separated], vectors[separated], preference, scale)
    for problem in np.flatnonzero(~separated & (largest > 0)):
        present = np.flatnonzero(np.diagonal(relative[problem]) > 0)
        if len(present) < gramian.shape[1]:
            rest = relative[problem][present][:, present]
            weights[problem, present] = aligned_weights(rest[None], preference[present], scale)[0]
        else:
            weights[problem] = _of_any_rank(relative[problem], values[problem], vectors[problem], preference, scale)
    return weights


def _weights(values: Array, vectors: Array, preference: Array, scale: Scale) -> Array:
    """From the eigenvalues that are not zero, ascending, and their eigenvectors."""
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


def _of_any_rank(gramian: Array, values: Array, vectors: Array, preference: Array, scale: Scale) -> Array:
    """One Gramian without zero rows, with its eigenvalues; the rows may be dependent or of very different length."""
    norms = np.sqrt(np.diagonal(gramian))
    unit_values, unit_vectors = np.linalg.eigh(gramian / norms[:, None] / norms)
    spanned = unit_values > NULL
    values, vectors = values[spanned], vectors[:, spanned]  # as many, and the largest
    if values[0] > _SEPARATED * values[-1]:
        return _weights(values, vectors, preference, scale)
    return _by_polar_factor(unit_values[spanned], unit_vectors[:, spanned], norms, preference, scale)


def _by_polar_factor(values: Array, vectors: Array, norms: Array, preference: Array, scale: Scale) -> Array:
    """From the positive eigenvalues and eigenvectors of the rows at unit length."""
    unit = vectors * np.sqrt(values)
    axes, coordinates = _graded_axes(unit, norms, _ROUNDING * len(unit) * EPSILON / np.sqrt(values[0]))
    rows = coordinates * norms[:, None]
    # Columns of equal length, so that the errors of the factor R depend on C alone.
    lengths = np.linalg.norm(rows, axis=0)
    orthonormal, triangle = np.linalg.qr(rows / lengths)
    inverse = np.linalg.inv(triangle) / lengths[:, None]
    triangle *= lengths
    factor = orthonormal @ _polar_factor(triangle.T, inverse).T
    size = np.sqrt(_squared(_singular_values(triangle, inverse) ** 2, scale))
    weights: Array = size * (vectors @ (axes.T @ (factor.T @ preference) / np.sqrt(values))) / norms
    return weights


def _graded_axes(unit: Array, norms: Array, rounding: float) -> tuple[Array, Array]:
    """Orthonormal axes along the longest row, along what is longest beside it, and so on; the rows along them.

    What is left of a row that is a combination of the axes before is rounding, in which long rows would drown short
    ones.
    """
    rest = unit.copy()
    axes, coordinates = np.zeros((unit.shape[1], unit.shape[1])), np.zeros_like(unit)
    for k in range(unit.shape[1]):
        lengths = np.sqrt(np.einsum("ij,ij->i", rest, rest))
        lengths[lengths <= rounding] = 0.0
        chosen = np.argmax(norms * lengths)
        axis = rest[chosen] / lengths[chosen]
        axis -= axes.T @ (axes @ axis)
        axes[k] = axis / np.linalg.norm(axis)
        coordinates[:, k] = np.where(lengths > 0.0, rest @ axes[k], 0.0)
        rest -= coordinates[:, k, None] * axes[k]
    return axes, coordinates


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
