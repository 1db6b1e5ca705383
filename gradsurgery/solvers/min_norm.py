"""The shortest vector in the convex hull of the gradients."""

import numpy as np

from .arrays import TINY, Array
from .nnls import nonnegative_quadratic
from .scaling import RIDGE, UnitGramian, unit_gramian


def min_norm_weights(gramian: Array, ridge: float = RIDGE) -> Array:
    r"""Finds the shortest convex combination of the non-zero rows.

    .. math:: w = \arg\min_{w \in \Delta_K} w^\top G w

    Laws:
        ``w >= 0``, sums to 1; ``(G w)_i >= w^T G w`` up to rounding; zero rows get weight zero, unless all are
        zero: then the weights are equal.

    Args:
        gramian: G, finite.
        ridge: As in ``nonnegative_quadratic``.

    Shape:
        - gramian: ``(B, K, K)``.
        - output: ``(B, K)``.

    Cost:
        One non-negative least-squares problem of size K.

    References:
        Wolfe, Finding the nearest point in a polytope, Math. Programming 11 (1976).
    """
    unit = unit_gramian(gramian)
    lengths = min_norm_lengths(unit, ridge)
    weights = lengths * unit.nonzero / unit.norms
    total = weights.sum(axis=1, keepdims=True)
    if not total.all():
        weights = np.where(total > 0, weights, 1.0)
        total = np.where(total > 0, total, weights.shape[1])
    result: Array = weights / total
    return result


def min_norm_lengths(unit: UnitGramian, ridge: float = RIDGE) -> Array:
    r"""Finds what each unit row contributes to a multiple of the shortest convex combination of the rows.

    The simplex is folded into the objective: the minimiser of :math:`x^\top C x + (a^\top x - 1)^2` over
    :math:`x \ge 0` is that for every a proportional to the inverse norms, also where the minimum is zero.

    Args:
        unit: The Gramian in unit-diagonal form.
        ridge: As in ``nonnegative_quadratic``.

    Shape:
        - output: ``(B, K)``, non-negative, zero for zero rows.
    """
    inverse = unit.nonzero / unit.norms
    simplex = inverse / np.maximum(inverse.max(axis=1, keepdims=True), TINY)
    matrix = unit.cosines + simplex[:, :, None] * simplex[:, None, :]
    return nonnegative_quadratic(matrix, simplex[:, None], ridge)[:, 0]


def optimality_gap(gramian: Array, weights: Array) -> Array:
    r"""Reports how far weights on the simplex can be from those of the shortest convex combination.

    .. math:: \max_i \frac{w^\top G w - (G w)_i}{\lVert g_i \rVert \max_{j : w_j > 0} \lVert g_j \rVert}

    over the non-zero rows. It is zero only at the optimum, where rounding leaves some 1e-15.

    Shape:
        - gramian: ``(B, K, K)``.
        - weights: ``(B, K)``.
        - output: ``(B,)``.
    """
    _, norms, nonzero = unit_gramian(gramian)
    image = (weights[:, None] @ gramian)[:, 0]
    excess = (weights * image).sum(axis=1, keepdims=True) - image
    longest = np.where((weights > 0) & nonzero, norms, 0.0).max(axis=1, keepdims=True)
    gap: Array = np.where(nonzero, excess / norms / np.where(longest > 0, longest, 1.0), 0.0).max(axis=1)
    return gap
