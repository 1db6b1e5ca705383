"""Euclidean projection on the probability simplex."""

import numpy as np

from .arrays import Array


def project_on_simplex(points: Array) -> Array:
    r"""Finds the closest point with non-negative entries that add up to 1, exactly, by sorting.

    .. math:: w_i = \max(0, p_i - \tau), \quad \tau = \max_j \frac1j \Bigl(\sum_{i \le j} p_{(i)} - 1\Bigr), \quad
        p_{(1)} \ge p_{(2)} \ge \dots

    Args:
        points: Any numbers, finite.

    Shape:
        - points: ``(..., K)``.
        - output: ``(..., K)``.

    Cost:
        One sort of K numbers a point.

    References:
        Held, Wolfe and Crowder, Validation of subgradient optimization, Mathematical Programming 6 (1974).

    Example:
        >>> project_on_simplex(np.array([0.5, 0.25, -3.0]))
        array([0.625, 0.375, 0.   ])
    """
    lowered = points - points.max(axis=-1, keepdims=True)  # where p is large, 1 would be lost
    ordered = np.sort(lowered, axis=-1)[..., ::-1]
    thresholds = (ordered.cumsum(axis=-1) - 1.0) / np.arange(1, points.shape[-1] + 1)
    weights: Array = np.maximum(lowered - thresholds.max(axis=-1, keepdims=True), 0.0)
    return weights


def start_on_simplex(weights: Array) -> Array:
    """The weights of the losses that are present, together 1; NaN stands for a loss that is new and starts at 1/K."""
    return project_on_simplex(np.where(np.isnan(weights), 1.0 / weights.shape[-1], weights))
