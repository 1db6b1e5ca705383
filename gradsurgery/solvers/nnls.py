"""Non-negative least squares in normal form, by active-set methods, batched over problems.

Both the dual-cone projection and the min-norm point are this one problem. It runs in NumPy float64: at K <= 64
a call is dominated by overhead, and NumPy has a third of torch's.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]

_EPSILON = float(np.finfo(np.float64).eps)
_ROUNDS_OF_PIVOTING = 12  # random problems of size 64 settle in 3 to 6
_WORTH_COMPRESSING = 16  # below this size, gathering the passive entries costs more than it saves


def nonnegative_quadratic(hessian: Array, linear: Array, ridge: float) -> Array:
    r"""Minimises convex quadratics over the non-negative orthant, several for each matrix.

    .. math:: x = \arg\min_{x \ge 0} \tfrac12 x^\top H x - q^\top x

    Block pivoting finds the passive set of most problems in a few rounds. It may cycle where H is singular; the
    problems that it leaves are solved by Lawson and Hanson's method, which cannot where the ridge is part of H.

    Laws:
        ``x >= 0``; ``H x - q >= 0`` up to rounding; ``x * (H x - q) = 0`` up to rounding.

    Args:
        hessian: H, symmetric positive semidefinite, diagonal of the order of 1.
        linear: q, in the range of H.
        ridge: Added to the diagonal of H in every solve, > 0, and taken out of the result by one step of refinement,
            unless H is so close to singular that this makes it worse. 1e-13 is enough.

    Shape:
        - hessian: ``(B, K, K)``.
        - linear: ``(B, M, K)``.
        - output: ``(B, M, K)``.

    Cost:
        As a rule 3 to 6 solves a problem, no larger than the number of positive entries of x; else at most 3K more.

    References:
        Portugal, Júdice and Vicente, A comparison of block pivoting and interior-point algorithms for linear
        least squares problems with nonnegative variables, Math. Comp. 63 (1994). Lawson and Hanson, Solving
        Least Squares Problems (1974), chapter 23.
    """
    x, settled = _block_pivoting(hessian, linear, ridge)
    if not settled.all():
        owner, member = np.nonzero(~settled)
        matrices, right = hessian[owner], linear[owner, member]
        found = _lawson_hanson(matrices + ridge * np.eye(linear.shape[-1]), right)
        x[owner, member] = _refined(matrices, right, found, ridge)
    return x


def _block_pivoting(hessian: Array, linear: Array, ridge: float) -> tuple[Array, Mask]:
    """Exchanges all entries of the wrong sign at once; also says which problems have none left."""
    x = np.zeros_like(linear)
    passive = np.zeros(linear.shape, dtype=bool)
    wrong = linear > 0
    for _ in range(_ROUNDS_OF_PIVOTING):
        owner, member = np.nonzero(wrong.any(axis=-1))
        if owner.size == 0:
            break
        passive ^= wrong
        x[owner, member] = _solve_passive(hessian, owner, linear[owner, member], passive[owner, member], ridge)
        wrong = np.where(passive, x <= 0, _descent(hessian, linear, x) > 0)
    settled: Mask = np.logical_not(wrong.any(axis=-1))
    return x, settled


def _lawson_hanson(regular: Array, linear: Array) -> Array:
    """Lets one entry in at a time and descends to the minimiser over those that are in; one problem a matrix."""
    batch, size = linear.shape
    x = np.zeros_like(linear)
    passive = np.zeros((batch, size), dtype=bool)
    refused = np.zeros((batch, size), dtype=bool)  # entered and thrown out again by rounding
    for _ in range(3 * size):
        descent = _descent(regular, linear[:, None], x[:, None])[:, 0]
        candidates = np.where(passive | refused, -np.inf, descent)
        entering = candidates.argmax(axis=1)
        unsolved = np.flatnonzero(candidates[np.arange(batch), entering] > 0)
        if unsolved.size == 0:
            break
        chosen = entering[unsolved]
        passive[unsolved, chosen] = True
        before = x[unsolved]
        x[unsolved], passive[unsolved] = _descend(regular, unsolved, linear[unsolved], before, passive[unsolved])
        thrown_out = ~passive[unsolved, chosen]
        moved = (x[unsolved] != before).any(axis=1)
        refused[unsolved[moved]] = False
        refused[unsolved[thrown_out], chosen[thrown_out]] = True
    return x


def _descend(regular: Array, owner: Indices, linear: Array, x: Array, passive: Mask) -> tuple[Array, Mask]:
    """Moves each problem to the minimiser over its passive set, dropping the entries that reach zero."""
    for _ in range(x.shape[1] + 1):
        target = _solve_passive(regular, owner, linear, passive)
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


def _refined(hessian: Array, linear: Array, x: Array, ridge: float) -> Array:
    """Takes the ridge out of each solution, where that violates no condition more than the ridge does."""
    passive = x > 0
    if not passive.any():
        return x
    remainder = linear - _apply(hessian, x)
    owner = np.arange(len(linear))
    refined = x + _solve_passive(hessian + ridge * np.eye(x.shape[1]), owner, remainder, passive)
    better = (linear - _apply(hessian, refined)).max(axis=1) <= remainder.max(axis=1)
    return np.where((better & (refined >= 0).all(axis=1))[:, None], refined, x)


def _descent(hessian: Array, linear: Array, x: Array) -> Array:
    """The negative gradients, less what rounding may have added to them."""
    noise = 4 * x.shape[-1] * _EPSILON * (np.abs(linear) + x @ np.abs(hessian))
    descent: Array = linear - x @ hessian - noise
    return descent


def _solve_passive(hessian: Array, owner: Indices, right: Array, passive: Mask, ridge: float = 0.0) -> Array:
    """Solves for the passive entries with the others held at zero; problem i is over matrix ``owner[i]``."""
    size = right.shape[1]
    if size < _WORTH_COMPRESSING:
        return _solve_masked(hessian[owner], right, passive, ridge)
    width = int(passive.sum(axis=1).max())
    first = np.argsort(~passive, axis=1, kind="stable")[:, :width]  # the passive entries, then some others
    inner = hessian[owner[:, None, None], first[:, :, None], first[:, None, :]]
    inside = np.take_along_axis(passive, first, 1)
    solution = np.zeros_like(right)
    values = _solve_masked(inner, np.take_along_axis(right, first, 1), inside, ridge)
    np.put_along_axis(solution, first, values, 1)
    return solution


def _solve_masked(matrix: Array, right: Array, passive: Mask, ridge: float) -> Array:
    """With a ridge, one step of refinement takes out what it changed."""
    both = passive[:, :, None] & passive[:, None, :]
    identity = np.eye(right.shape[1])
    system = np.where(both, matrix, identity)
    values = np.where(passive, right, 0.0)[..., None]
    regular = system + ridge * identity
    solution = np.linalg.solve(regular, values)
    if ridge > 0.0:
        solution += np.linalg.solve(regular, values - system @ solution)
    result: Array = np.where(passive, solution[..., 0], 0.0)
    return result


def _apply(matrix: Array, vector: Array) -> Array:
    product: Array = np.einsum("bij,bj->bi", matrix, vector)
    return product
