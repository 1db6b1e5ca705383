"""Weights that are a falling power of the progress they bring: the solution of a bargaining game."""

import numpy as np

from .arrays import EPSILON, Array, Mask
from .dual_cone import project_on_dual_cone
from .scaling import NULL, RIDGE, unit_gramian

_STUCK = 0.1
"""A weight with a larger share of its equation in the ridge has no bound: its row is one of those that cancel."""

_SETTLED, _MOST_STEPS = 0.1, 1000
_CONVERGED, _MOST_REFINEMENTS = 1e-6, 6
"""The relative change of a weight below which Newton's method roughly squares it, and after which it has."""

_LEAST_FACTOR = 1e-8
"""No weight falls by more in one step: it would reach zero by rounding."""

_LEAST = 1e-150
"""A smaller weight, relative to that of the longest row alone, adds nothing to d, and its powers are not floats."""


def bargaining_weights(gramian: Array, power: float) -> Array:
    r"""Solves :math:`(G w)_i = w_i^{-p}` for the non-zero rows.

    The solution is the only minimum of :math:`\tfrac12 w^\top G w - \sum_i \varphi(w_i)` with
    :math:`\varphi'(x) = x^{-p}`. Newton's method finds it, damped so that every step descends. In units that do not
    depend on the norms, :math:`b_i = n_i w_i`, :math:`v_i = w_i^{1-p}` and :math:`a_i = b_i / \sqrt{v_i}`, it changes
    the weights by the factors :math:`1 + \delta_i`, where

    .. math:: (A C A + p I) \sqrt{v} \, \delta = \sqrt{v} - A C b

    Where a positive combination of rows is zero there is no solution: no direction brings progress for all of them.
    Returned is the limit that a vanishing ridge on C leads to, in which they have none: the other rows bargain for
    what is left in the directions orthogonal to them, and their own weights, of either sign, make room for it.

    Laws:
        ``G w >= 0`` up to rounding; ``w > 0`` and ``w * (G w)**(1 / p) = 1`` on the non-zero rows, unless a positive
        combination of rows is zero: then ``G w = 0`` for these. Zero rows get weight zero. A weight that p makes
        smaller than 1e-150, relative to that of the longest row alone, is 1e-150.

    Args:
        gramian: G, finite.
        power: p, > 0.

    Shape:
        - gramian: ``(B, K, K)``.
        - output: ``(B, K)``.

    Cost:
        As a rule 5 to 10 solves of size K; more where p is far from 1 and the norms are far apart.
    """
    cosines, norms, nonzero = unit_gramian(gramian)
    longest = np.maximum.reduce(norms * nonzero, axis=1, keepdims=True)
    longest += longest == 0
    relative = np.where(nonzero, norms / longest, 1.0)
    b, stuck = _minimum(cosines, relative, power)
    for problem in np.flatnonzero(stuck.any(axis=1)) if stuck.any() else ():
        present = nonzero[problem]
        inner = cosines[problem][present][:, present]
        b[problem, present] = _limit(inner, relative[problem, present], power, stuck[problem, present])
    return np.where(nonzero, b / relative * longest ** (-2.0 / (1.0 + power)), 0.0)


def _minimum(cosines: Array, norms: Array, power: float) -> tuple[Array, Mask]:
    """The weights times the norms, which are at most 1, and which of them have no bound."""
    size = norms.shape[1]
    b = norms ** ((power - 1.0) / (power + 1.0))
    if size == 1:
        return b, np.zeros(b.shape, dtype=bool)
    identity = np.eye(size)
    ridged = cosines + RIDGE * identity
    least = _LEAST * norms
    # The best point on a ray.
    linear = np.add.reduce((b / norms) ** (1.0 - power), axis=1, keepdims=True)
    quadratic = np.add.reduce(b * _apply(ridged, b), axis=1, keepdims=True)
    b *= (linear / np.maximum(quadratic, RIDGE)) ** (1.0 / (1.0 + power))

    def newton(matrix: Array) -> float:
        """Makes a step; its goal is the solution for ``matrix``, whatever the ridge in the second derivative."""
        nonlocal b
        roots = np.ones_like(b) if power == 1.0 else (b / norms) ** (0.5 - 0.5 * power)
        a = b / roots
        hessian = ridged * (a[:, :, None] * a[:, None, :])
        hessian += power * identity
        change = np.linalg.solve(hessian, (roots - a * _apply(matrix, b))[..., None])[..., 0] / roots
        if b"\1" in (b <= least).tobytes():  # any(), at a quarter of its overhead
            change = np.where(b <= least, np.maximum(change, 0.0), change)
        b = np.maximum(b * np.maximum(1.0 + _damped(change, power), _LEAST_FACTOR), least)
        return float(np.maximum.reduce(np.abs(change), axis=None))

    for _ in range(_MOST_STEPS):
        if newton(ridged) * max(power, 1.0) < _SETTLED:
            break
    stuck = RIDGE * b * b > _STUCK * (b / norms) ** (1.0 - power)
    for _ in range(_MOST_REFINEMENTS):
        if newton(cosines) < _CONVERGED:
            break
    return b, stuck


def _damped(change: Array, power: float) -> Array:
    """The longest part of a step along which the derivative is known to be negative.

    It is as long as no weight falls by more than the factor :math:`(1 + p x)^{-1/p}` where the step's largest fall
    is x, and :math:`1 / (1 + x)` is not below that for p < 1.
    """
    fall = np.maximum(-np.minimum.reduce(change, axis=1, keepdims=True), 1e-12)
    if power <= 1.0:
        return change / (1.0 + fall)
    return change * ((1.0 - (1.0 + power * fall) ** (-1.0 / power)) / fall)


def _limit(cosines: Array, norms: Array, power: float, stuck: Mask) -> Array:
    """The solution of one problem among the combinations that are orthogonal to the rows that cancel."""
    values, vectors = np.linalg.eigh(cosines)
    rows = vectors * np.sqrt(np.maximum(values, 0.0))  # unit vectors with these cosines
    left, lengths, right = np.linalg.svd(rows[stuck], full_matrices=False)
    spanned = lengths**2 > NULL
    left, lengths, right = left[:, spanned], lengths[spanned], right[spanned]
    across = rows - rows @ right.T @ right
    rest = across @ across.T
    free = ~stuck & (np.diagonal(rest) > 64 * EPSILON * len(rows) / lengths[-1] ** 2)
    b = np.zeros_like(norms)
    if free.any():
        scale = norms[free]
        b[free] = bargaining_weights((rest[free][:, free] * np.outer(scale, scale))[None], power)[0] * scale
        b[stuck] = -(b[free] @ rows[free] @ right.T / lengths) @ left.T
    b = project_on_dual_cone(cosines[None], b[None, None])[0, 0]  # what rounding has left of a conflict
    rounding = 4 * len(b) * EPSILON * np.abs(b).max() ** 2
    return np.where(b @ cosines @ b > rounding, b, 0.0)


def _apply(matrix: Array, vector: Array) -> Array:
    product: Array = (matrix @ vector[..., None])[..., 0]
    return product
