"""Solutions that share nothing with the library: exact rational arithmetic over all active sets.

Every float64 is a rational number, so the minimum over the simplex and the projection on the dual cone have exact
answers. Enumerating which constraints are active needs 2^K small systems: for K <= 6.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rationals = list[list[Fraction]]


def exact_rows(jacobian: Array) -> Rationals:
    """The same numbers as rationals, without rounding."""
    return [[Fraction(float(entry)) for entry in row] for row in jacobian]


def exact_gramian(rows: Rationals) -> Rationals:
    """All inner products."""
    return [[_dot(first, second) for second in rows] for first in rows]


def exact_min_norm(jacobian: Array) -> Array:
    """The shortest convex combination of the rows that are not zero."""
    rows = [row for row in exact_rows(jacobian) if any(row)]
    if not rows:
        return np.zeros(jacobian.shape[1])
    gramian = exact_gramian(rows)
    for support in _supports(len(rows), smallest=1):
        bordered = [[gramian[i][j] for j in support] + [Fraction(-1)] for i in support]
        bordered.append([Fraction(1)] * len(support) + [Fraction(0)])
        solution = _solve(bordered, [[Fraction(0)]] * len(support) + [[Fraction(1)]])
        if solution is None:
            continue
        weights = _scatter([entry[0] for entry in solution[:-1]], support, len(rows))
        level = solution[-1][0]
        if min(weights) >= 0 and all(_dot(gramian[i], weights) >= level for i in range(len(rows))):
            return _combine(rows, weights)
    raise AssertionError("no face of the simplex satisfies the optimality conditions")


def exact_dual_cone_projections(jacobian: Array, combinations_of_rows: Array) -> Array:
    """The points of {d : J d >= 0} closest to each combination of the rows."""
    rows = exact_rows(jacobian)
    gramian = exact_gramian(rows)
    size = len(rows)
    starts = exact_rows(combinations_of_rows)
    pulls = [[_dot(gramian[i], start) for start in starts] for i in range(size)]  # (K, M)
    found: dict[int, Array] = {}
    for support in _supports(size, smallest=0):
        system = [[gramian[i][j] for j in support] for i in support]
        solution = _solve(system, [[-pull for pull in pulls[i]] for i in support])
        if solution is None:
            continue
        for index, start in enumerate(starts):
            multipliers = _scatter([entry[index] for entry in solution], support, size)
            if index in found or min(multipliers) < 0:
                continue
            total = [u + added for u, added in zip(start, multipliers, strict=True)]
            if all(_dot(gramian[i], total) >= 0 for i in range(size)):
                found[index] = _combine(rows, total)
        if len(found) == len(starts):
            return np.stack([found[index] for index in range(len(starts))])
    raise AssertionError("no active set satisfies the optimality conditions")


def exact_upgrad(jacobian: Array) -> Array:
    """The mean of the projections of the rows."""
    mean: Array = exact_dual_cone_projections(jacobian, np.eye(len(jacobian))).mean(axis=0)
    return mean


def exact_dualproj(jacobian: Array) -> Array:
    """The projection of the mean."""
    mean = np.full((1, len(jacobian)), 1 / len(jacobian))
    projection: Array = exact_dual_cone_projections(jacobian, mean)[0]
    return projection


def exact_cagrad(jacobian: Array, c: float = 0.4) -> Array:
    """The direction within ``c |g0|`` of the mean row g0 that maximises the least product with a row.

    If rows S have that product v and the others more, then ``d = g0 + sum of x_i g_i`` over S with ``x >= 0``, and v
    is the larger root of ``|d - g0| = c |g0|``. If no S has such a solution, the optimal v is zero and the closest
    direction that attains it is the projection of g0 on the dual cone. Roots are exact to 40 digits.
    """
    nonzero = [index for index, row in enumerate(jacobian) if row.any()]
    rows = exact_rows(jacobian)
    mean = [sum(column, Fraction(0)) / len(rows) for column in zip(*rows, strict=True)]
    rows = [rows[index] for index in nonzero]
    radius = Fraction(c) ** 2 * _dot(mean, mean)
    if radius == 0:
        return np.array([float(entry) for entry in mean])
    gramian, products = exact_gramian(rows), [_dot(row, mean) for row in rows]
    for support in _supports(len(rows), smallest=1):
        right = [[Fraction(1), products[i]] for i in support]
        solution = _solve([[gramian[i][j] for j in support] for i in support], right)
        if solution is None:
            continue
        a = sum((rise for rise, _ in solution), Fraction(0))
        b = sum((rest for _, rest in solution), Fraction(0))
        e = sum((products[i] * rest for i, (_, rest) in zip(support, solution, strict=True)), Fraction(0))
        inside = b * b - a * (e - radius)
        if inside < 0:
            continue
        level = (b + _root(inside)) / a
        added = _scatter([level * rise - rest for rise, rest in solution], support, len(rows))
        reached = [product + _dot(line, added) for product, line in zip(products, gramian, strict=True)]
        slack = Fraction(1, 10**25)
        if all(x >= -slack * abs(level) for x in added) and all(
            v >= level - slack * gramian[i][i] for i, v in enumerate(reached)
        ):
            return np.array([float(g) for g in mean]) + _combine(rows, added)
    start = np.full((1, len(jacobian)), 1 / len(jacobian))
    projection: Array = exact_dual_cone_projections(jacobian, start)[0]
    return projection


def exact_equal_projections(jacobian: Array) -> Array:
    """Weights beta with ``C beta = 1`` on the unit-diagonal Gramian, to float64 accuracy; full row rank only."""
    gramian = exact_gramian(exact_rows(jacobian))
    size = len(gramian)
    norms = [_root(gramian[i][i]) for i in range(size)]
    cosines = [[gramian[i][j] / norms[i] / norms[j] for j in range(size)] for i in range(size)]
    solution = _solve(cosines, [[Fraction(1)]] * size)
    if solution is None:
        raise ValueError("the rows are linearly dependent")
    alpha = [entry[0] / norm for entry, norm in zip(solution, norms, strict=True)]
    total = sum(alpha, Fraction(0))
    return _combine(exact_rows(jacobian), [weight / total for weight in alpha])


def _supports(size: int, smallest: int) -> Iterator[tuple[int, ...]]:
    for count in range(smallest, size + 1):
        yield from combinations(range(size), count)


def _solve(matrix: Rationals, right: Rationals) -> Rationals | None:
    """Gauss-Jordan elimination; None where the matrix is singular."""
    size = len(matrix)
    table = [list(row) + list(values) for row, values in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = next((row for row in range(column, size) if table[row][column] != 0), None)
        if pivot is None:
            return None
        table[column], table[pivot] = table[pivot], table[column]
        head = table[column][column]
        table[column] = [entry / head for entry in table[column]]
        for row in range(size):
            factor = table[row][column]
            if row != column and factor != 0:
                table[row] = [entry - factor * above for entry, above in zip(table[row], table[column], strict=True)]
    return [row[size:] for row in table]


def _root(value: Fraction) -> Fraction:
    """A square root to 40 digits."""
    top, bottom = value.numerator, value.denominator
    return Fraction(math.isqrt(top * bottom * 10**80), bottom * 10**40)


def _scatter(values: Sequence[Fraction], support: Sequence[int], size: int) -> list[Fraction]:
    full = [Fraction(0)] * size
    for position, value in zip(support, values, strict=True):
        full[position] = value
    return full


def _combine(rows: Rationals, weights: Sequence[Fraction]) -> Array:
    columns = range(len(rows[0]))
    return np.array(
        [float(sum((w * row[p] for w, row in zip(weights, rows, strict=True)), Fraction(0))) for p in columns]
    )


def _dot(first: Sequence[Fraction], second: Sequence[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(first, second, strict=True)), Fraction(0))
