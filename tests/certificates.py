"""Proofs that weights belong to the optimum, which give the exact direction; for any K, not only the small ones.

A proof takes from the weights only which rows are active. The optimum with these rows active is the solution of a
linear system, here in extended precision; that it satisfies the conditions for all rows proves it the only one.
"""

import numpy as np
from numpy.typing import NDArray
from precise import eliminate

Array = NDArray[np.float64]
Precise = NDArray[np.longdouble]

SLACK = 1e-12
"""Of the length of what is projected: changes the direction by less than SLACK times the root of the condition."""


def certified_projection(jacobian: Array, start: Array, weights: Array) -> Array:
    """The point of {d : J d >= 0} closest to the combination ``start`` of the rows."""
    unit, norms = _unit_rows(jacobian)
    begin = start * norms
    active = _positive((weights - start) * norms)
    lengths = begin.copy()
    lengths[active] += _solution(unit[active], -unit[active] @ (begin @ unit))
    _check(lengths - begin, unit @ (lengths @ unit), np.abs(begin).max())
    return np.asarray(lengths @ unit, dtype=np.float64)


def certified_min_norm(jacobian: Array, weights: Array) -> Array:
    """The shortest convex combination of the rows."""
    unit, norms = _unit_rows(jacobian)
    active = _positive(weights * norms)
    lengths = np.zeros_like(norms)
    lengths[active] = _solution(unit[active], 1 / norms[active])
    lengths /= (lengths / norms).sum()
    shortest = lengths @ unit
    _check(lengths, unit @ shortest - shortest @ shortest / norms, lengths.max())
    return np.asarray(shortest, dtype=np.float64)


def certified_conflict_averse(jacobian: Array, c: float, weights: Array) -> Array:
    """The direction in the ball around the mean that maximises the least product with a row."""
    unit, norms = _unit_rows(jacobian)
    mean = (norms / len(norms)) @ unit
    length = np.sqrt(mean @ mean)
    active = _positive((weights - 1 / len(norms)) * norms)
    rise = _solution(unit[active], 1 / norms[active])
    rest = -_solution(unit[active], unit[active] @ mean)
    # |(v rise + rest) U| = c |mean| is a quadratic equation for the level v, of which the larger root counts.
    a, b, e = (first @ unit[active] @ (second @ unit[active]) for first, second in _pairs(rise, rest))
    level = (np.sqrt(b * b - a * (e - (c * length) ** 2)) - b) / a
    lengths = np.zeros_like(norms)
    lengths[active] = level * rise + rest
    direction = mean + lengths @ unit
    _check(lengths, unit @ direction - level / norms, length)
    return np.asarray(direction, dtype=np.float64)


def _unit_rows(jacobian: Array) -> tuple[Precise, Precise]:
    rows = jacobian.astype(np.longdouble)
    norms = np.sqrt((rows**2).sum(axis=1))
    return rows / norms[:, None], norms


def _positive(lengths: Precise) -> NDArray[np.bool_]:
    positive: NDArray[np.bool_] = lengths > 1e-10 * np.abs(lengths).max()
    return positive


def _solution(unit: Precise, right: Precise) -> Precise:
    return eliminate(unit @ unit.T, right)


def _pairs(first: Precise, second: Precise) -> list[tuple[Precise, Precise]]:
    return [(first, first), (first, second), (second, second)]


def _check(lengths: Precise, excess: Precise, scale: np.longdouble) -> None:
    assert lengths.min() >= 0, f"an active row pulls the wrong way: {lengths.min()}"
    assert excess.min() >= -SLACK * scale, f"a row that is not active is violated: {excess.min()}"
