"""The shortest vector in the convex hull of the gradients."""

import numpy as np

from .nnls import Array, nonnegative_quadratic
from .scaling import RIDGE, unit_gramian


def min_norm_weights(gramian: Array, ridge: float = RIDGE) -> Array:
    r"""Finds the shortest convex combination of the non-zero rows.

    .. math:: w = \arg\min_{w \in \Delta_K} w^\top G w

    The simplex is folded into the objective: the minimiser of :math:`x^\top G x + (a^\top x - 1)^2` over
    :math:`x \ge 0` is a multiple of w for every a proportional to :math:`1`, also where the minimum is zero.

    Laws:
        ``w >= 0``, sums to 1; ``(G w)_i >= w^T G w`` up to rounding; zero rows get weight zero, unless all are
        zero: then the weights are equal.

    Args:
        gramian: G, finite.
        ridge: Added to the unit diagonal in every solve, then refined away, > 0.

    Shape:
        - gramian: ``(B, K, K)``.
        - output: ``(B, K)``.

    Cost:
        One non-negative least-squares problem of size K.

    References:
        Wolfe, Finding the nearest point in a polytope, Math. Programming 11 (1976).
    """
    cosines, norms, nonzero = unit_gramian(gramian)
    size = norms.shape[1]
    inverse = np.where(nonzero, 1.0 / norms, 0.0)
    largest = inverse.max(axis=1, keepdims=True)
    simplex = inverse / np.where(largest > 0, largest, 1.0)
    matrix = cosines + simplex[:, :, None] * simplex[:, None, :]
    weights = nonnegative_quadratic(matrix, simplex[:, None], ridge)[:, 0] * simplex
    total = weights.sum(axis=1, keepdims=True)
    equal = np.full_like(weights, 1.0 / size)
    return np.where(total > 0, weights / np.where(total > 0, total, 1.0), equal)
