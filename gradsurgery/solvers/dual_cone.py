"""Projection on the cone of the directions that make no loss worse."""

import numpy as np

from .arrays import TINY, Array
from .nnls import nonnegative_quadratic
from .scaling import RIDGE, unit_gramian


def project_on_dual_cone(gramian: Array, combinations: Array, ridge: float = RIDGE) -> Array:
    r"""Projects combinations of the rows on the dual cone of the rows.

    .. math:: w = u + \arg\min_{\lambda \ge 0} \lVert J^\top (u + \lambda) \rVert^2,
        \quad\text{so that } J^\top w = \arg\min_{d : J d \ge 0} \lVert d - J^\top u \rVert

    Laws:
        ``w >= u``; ``G w >= 0`` up to rounding; ``(w - u) * (G w) = 0`` up to rounding. Zero rows constrain
        nothing and keep their entry of u.

    Args:
        gramian: G, finite.
        combinations: u, one or several for each Gramian.
        ridge: As in ``nonnegative_quadratic``.

    Shape:
        - gramian: ``(B, K, K)``.
        - combinations: ``(B, M, K)``.
        - output: ``(B, M, K)``.

    Cost:
        M non-negative least-squares problems of size K for each Gramian, solved together.
    """
    cosines, norms, nonzero = unit_gramian(gramian)
    start = combinations * (norms * nonzero)[:, None]  # coordinates in unit rows
    largest = np.maximum(np.maximum.reduce(np.abs(start), axis=2, keepdims=True), TINY)
    multipliers = nonnegative_quadratic(cosines, (start / -largest) @ cosines, ridge)
    result: Array = combinations + multipliers * largest / norms[:, None]
    return result


def mean_of_projected_rows(gramian: Array, preference: Array | float, ridge: float = RIDGE) -> Array:
    r"""Projects each row on the dual cone of all rows and averages.

    .. math:: w = \sum_k p_k \Bigl(e_k + \arg\min_{\lambda \ge 0} \lVert J^\top (e_k + \lambda) \rVert^2\Bigr)

    Args:
        gramian: G, finite.
        preference: p, non-negative.
        ridge: As in ``nonnegative_quadratic``.

    Shape:
        - gramian: ``(B, K, K)``.
        - preference: ``(K,)`` or a number for all rows.
        - output: ``(B, K)``.

    Cost:
        K non-negative least-squares problems of size K for each Gramian, solved together.
    """
    cosines, norms, _ = unit_gramian(gramian)
    multipliers = nonnegative_quadratic(cosines, -cosines, ridge)  # row k: what is added to unit row k
    result: Array = preference + ((preference * norms)[:, None] @ multipliers)[:, 0] / norms
    return result
