"""Projection on the cone of the directions that make no loss worse."""

import numpy as np

from .nnls import Array, nonnegative_quadratic
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
        ridge: Added to the unit diagonal in every solve, then refined away, > 0.

    Shape:
        - gramian: ``(B, K, K)``.
        - combinations: ``(B, M, K)``.
        - output: ``(B, M, K)``.

    Cost:
        M non-negative least-squares problems of size K for each Gramian, solved together.
    """
    cosines, norms, nonzero = unit_gramian(gramian)
    start = np.where(nonzero[:, None], combinations, 0.0) * norms[:, None]  # coordinates in unit rows
    largest = np.abs(start).max(axis=2, keepdims=True)
    start = start / np.where(largest > 0, largest, 1.0)
    multipliers = nonnegative_quadratic(cosines, -start @ cosines, ridge)
    added = multipliers * largest / norms[:, None]
    return combinations + np.where(nonzero[:, None], added, 0.0)
