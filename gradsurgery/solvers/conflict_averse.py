"""The step within a ball around the mean gradient that helps the worst-off loss most."""

import numpy as np

from .arrays import EPSILON, TINY, Array, Mask
from .min_norm import min_norm_lengths
from .nnls import is_well_conditioned, nonnegative_quadratic
from .scaling import RIDGE, UnitGramian, unit_gramian

_ROUNDS_OF_PIVOTING = 12  # most problems settle in one to five
_STEPS = 60  # of Newton's method, which takes 2 to 8


def conflict_averse_weights(gramian: Array, radius: float, ridge: float = RIDGE) -> Array:
    r"""Finds the weights of the direction that maximises the least inner product with a row, near the mean row.

    .. math:: d = \arg\max_d \min_i \langle g_i, d \rangle
        \quad\text{where } \lVert d - g_0 \rVert \le c \lVert g_0 \rVert, \; g_0 = \tfrac1K \textstyle\sum_i g_i

    and of several such directions the one that is closest to :math:`g_0`. For a level v of that inner product, the
    closest point with ``J d >= v`` is a non-negative least-squares problem, and its distance from :math:`g_0` is
    convex in v: Newton's method, started at a bound from above, goes down to the level where it is the radius.
    For known active rows that level is the root of a quadratic, which mostly makes it a matter of pivoting.

    Laws:
        ``min(J d) = max(J d)`` over the rows whose weight exceeds ``1 / K``, up to rounding, and ``|d - g_0|`` is
        the radius, unless ``min(J d) = 0`` and no direction helps every loss. Zero rows count in the mean and
        constrain nothing.

    Args:
        gramian: G, finite.
        radius: c, relative to the length of the mean row, >= 0.
        ridge: As in ``nonnegative_quadratic``.

    Shape:
        - gramian: ``(B, K, K)``.
        - output: ``(B, K)``, at least ``1 / K`` each.

    Cost:
        One to five solves of size K; 2 to 9 non-negative least-squares problems where the rows are nearly dependent.
    """
    if radius == 0.0:
        return np.full(gramian.shape[:2], 1.0 / gramian.shape[2])
    unit = unit_gramian(gramian)
    rows = unit.norms * unit.nonzero
    longest = rows.max(axis=1, keepdims=True)
    rows = rows / np.maximum(longest, TINY)  # K times the mean, as lengths along the unit rows
    products = (rows[:, None] @ unit.cosines)[:, 0]
    square = _dot(rows, products)
    moving = square > EPSILON * rows.shape[1] * _sum(rows) ** 2  # otherwise the rows add up to nothing
    length = np.sqrt(np.where(moving, square, 1.0))
    added = _correction(unit, rows / length, products / length, radius, ridge)
    result: Array = (1.0 + added * (np.where(moving, length * longest, 0.0) / unit.norms)) / rows.shape[1]
    return result


def _correction(unit: UnitGramian, mean: Array, products: Array, radius: float, ridge: float) -> Array:
    """What to add to a mean of length 1, as lengths along the unit rows, which have these ``products`` with it."""
    inverse = unit.nonzero / unit.norms
    scaled = inverse / np.maximum(inverse.max(axis=1, keepdims=True), TINY)
    single = np.where(unit.nonzero, (products + radius) / np.maximum(scaled, TINY), np.inf).min(axis=1, keepdims=True)
    if not is_well_conditioned(unit.cosines):
        level = np.minimum(single, _bound_of_shortest(unit, products, scaled, radius, ridge))
        return _newton(unit, products, scaled, radius, ridge, level)
    level = np.minimum(single, _bound(mean, 1.0, products, scaled, radius))
    added = _pivot(unit, products, scaled, radius, level * scaled > products)
    return _newton(unit, products, scaled, radius, 0.0, level) if added is None else added


def _pivot(unit: UnitGramian, products: Array, scaled: Array, radius: float, passive: Mask) -> Array | None:
    """Exchanges all entries of the wrong sign at once, at the level where those left are as far as the radius."""
    right = np.stack([scaled, -products], axis=2)
    identity = np.eye(scaled.shape[1])
    for _ in range(_ROUNDS_OF_PIVOTING):
        solution = np.linalg.solve(np.where(passive[:, None], unit.cosines, identity), right)
        rise, rest = solution[:, :, 0], solution[:, :, 1]  # at level v, v * rise + rest: negative gradients elsewhere
        curvature, slope = _dot(rise * passive, scaled), _dot(rest * passive, scaled)
        excess = _dot(rest * passive, products) + radius * radius  # of the radius squared at level 0
        root = np.sqrt(np.maximum(slope * slope + curvature * excess, 0.0))
        z = (root - slope) / np.maximum(curvature, TINY) * rise + rest
        positive = z > 0
        if positive.tobytes() == passive.tobytes():
            return np.maximum(z, 0.0)
        passive = positive
    return None


def _newton(unit: UnitGramian, products: Array, scaled: Array, radius: float, ridge: float, level: Array) -> Array:
    """Lowers the level until what has to be added to the mean for it is as long as the radius."""
    passive = None
    for _ in range(_STEPS):
        added = nonnegative_quadratic(unit.cosines, (level * scaled - products)[:, None], ridge, passive)[:, 0]
        distance = _length(unit, added)
        lower = _bound(added, distance, products, scaled, radius)
        falling = (distance > radius * (1.0 + 1e-13)) & (lower < level)
        if not falling.any():
            break
        level = np.where(falling, lower, level)
        passive = added > 0
    result: Array = added * np.minimum(1.0, radius / np.maximum(distance, TINY))
    return result


def _bound(lengths: Array, distance: Array | float, products: Array, scaled: Array, radius: float) -> Array:
    """The level that no direction in the ball exceeds, because it does not for one combination of the rows.

    Taken for what the last level adds to the mean, it is the next one of Newton's method.
    """
    bound: Array = (_dot(lengths, products) + radius * distance) / np.maximum(_dot(lengths, scaled), TINY)
    return bound


def _bound_of_shortest(unit: UnitGramian, products: Array, scaled: Array, radius: float, ridge: float) -> Array:
    """The same for the shortest combination: zero where no direction helps every loss.

    That level is not reached then, and the closest direction that harms no loss is within the ball.
    """
    lengths = min_norm_lengths(unit, ridge)
    distance = _length(unit, lengths)
    stationary = distance <= 4.0 * np.sqrt(EPSILON * lengths.shape[1]) * _sum(lengths)
    bound: Array = np.where(stationary, 0.0, _bound(lengths, distance, products, scaled, radius))
    return bound


def _length(unit: UnitGramian, lengths: Array) -> Array:
    length: Array = np.sqrt(np.maximum(_dot((lengths[:, None] @ unit.cosines)[:, 0], lengths), 0.0))
    return length


def _dot(first: Array, second: Array) -> Array:
    return _sum(first * second)


def _sum(values: Array) -> Array:
    total: Array = np.add.reduce(values, axis=1, keepdims=True)
    return total
