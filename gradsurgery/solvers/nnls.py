"""Non-negative least squares in normal form, by Lawson and Hanson's active-set method, batched over problems.

Both the dual-cone projection and the min-norm point are this one problem. It runs in NumPy float64: at K <= 64
a call is dominated by overhead, and NumPy has a third of torch's.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_EPSILON = float(np.finfo(np.float64).eps)


def nonnegative_quadratic(hessian: Array, linear: Array) -> Array:
    r"""Minimises a convex quadratic over the non-negative orthant.

    .. math:: x = \arg\min_{x \ge 0} \tfrac12 x^\top H x - q^\top x

    Laws:
        ``x >= 0``; ``H x - q >= 0`` up to rounding; ``x * (H x - q) = 0`` up to rounding.

    Args:
        hessian: H, symmetric positive definite, diagonal of the order of 1. A ridge of 1e-13 on a singular
            matrix is enough.
        linear: q.

    Shape:
        - hessian: ``(B, K, K)``.
        - linear: ``(B, K)``.
        - output: ``(B, K)``.

    Cost:
        As a rule one K x K solve for each positive entry of x, at most 3K.

    References:
        Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    batch, size = linear.shape
    x = np.zeros_like(linear)
    passive = np.zeros((batch, size), dtype=bool)
    refused = np.zeros((batch, size), dtype=bool)  # entered and thrown out again by rounding
    for _ in range(3 * size):
        gradient = linear - _apply(hessian, x)
        noise = 4 * size * _EPSILON * (np.abs(linear) + _apply(np.abs(hessian), x))
        candidates = np.where(passive | refused, -np.inf, gradient - noise)
        entering = candidates.argmax(axis=1)
        open_problems = np.flatnonzero(candidates[np.arange(batch), entering] > 0)
        if open_problems.size == 0:
            break
        chosen = entering[open_problems]
        passive[open_problems, chosen] = True
        before = x[open_problems]
        x[open_problems], passive[open_problems] = _descend(
            hessian[open_problems], linear[open_problems], before, passive[open_problems]
        )
        thrown_out = ~passive[open_problems, chosen]
        moved = (x[open_problems] != before).any(axis=1)
        refused[open_problems[moved]] = False
        refused[open_problems[thrown_out], chosen[thrown_out]] = True
    return x


def _descend(hessian: Array, linear: Array, x: Array, passive: Mask) -> tuple[Array, Mask]:
    """Moves each problem to the minimiser over its passive set, dropping the entries that reach zero."""
    for _ in range(x.shape[1] + 1):
        target = _solve_passive(hessian, linear, passive)
        blocking = passive & (target <= 0)
        if not blocking.any():
            return target, passive
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(blocking, x / (x - target), np.inf)
        ratios = np.where(np.isnan(ratios), 0.0, ratios)  # 0 / 0: an entry that stays at zero
        step = ratios.min(axis=1, keepdims=True)
        leaving = blocking & (ratios <= step)
        x = np.where(passive, x + np.minimum(step, 1.0) * (target - x), 0.0)
        x = np.where(leaving, 0.0, np.maximum(x, 0.0))
        passive = passive & ~leaving
    return x, passive


def _solve_passive(hessian: Array, linear: Array, passive: Mask) -> Array:
    """Solves for the passive entries with the others held at zero."""
    both = passive[:, :, None] & passive[:, None, :]
    matrix = np.where(both, hessian, np.eye(hessian.shape[1]))
    solution: Array = np.linalg.solve(matrix, np.where(passive, linear, 0.0)[..., None])[..., 0]
    return np.where(passive, solution, 0.0)


def _apply(matrix: Array, vector: Array) -> Array:
    product: Array = np.einsum("bij,bj->bi", matrix, vector)
    return product
