"""Non-negative least squares in normal form, by active-set methods, batched over problems.

The dual-cone projection and the min-norm point are both this one problem. It runs in NumPy float64: at K <= 64
a call is dominated by overhead, and NumPy has a third of torch's.
"""

from functools import cache
from typing import cast

import numpy as np

from .arrays import EPSILON, Array, Indices, Mask

_WELL_CONDITIONED = 1e-8  # a smallest eigenvalue from which plain solves lose half the digits at worst
_ROUNDS_OF_PIVOTING = 8  # most problems settle in one or two
_SMALL_ROUNDS = 4
_PROXIMAL_STEPS = 5  # two are enough
_LARGE = 1024  # entries in all solutions over one matrix, from which a round costs more than some gradient steps
_WORTH_GATHERING = 24  # below this size, picking the passive entries costs more than it saves
_LARGEST_BLOCK = 2**22  # entries of the systems solved at once: 32 MiB


def nonnegative_quadratic(hessian: Array, linear: Array, ridge: float, guess: Mask | None = None) -> Array:
    r"""Minimises convex quadratics over the non-negative orthant, several for each matrix.

    .. math:: x = \arg\min_{x \ge 0} \tfrac12 x^\top H x - q^\top x

    Where all H are well conditioned, pivoting exchanges all entries of the wrong sign at once, until there are none.
    It may cycle, and on singular H it does: there the minimum is approached from face to face of the orthant, which
    ends because the objective falls. A singular H gets a ridge, which proximal steps take out of the result.

    Laws:
        ``x >= 0``; ``H x - q >= 0`` up to rounding; ``x * (H x - q) = 0`` up to rounding.

    Args:
        hessian: H, symmetric positive semidefinite, diagonal of the order of 1.
        linear: q, in the range of H, entries of the order of 1.
        ridge: Added to the diagonal of a singular H, more if that does not make it definite. 1e-13 is enough for H
            that is exact to float64; 0 where all H are known to be well conditioned.
        guess: Where x may be positive. ``None``: a few gradient steps tell.

    Shape:
        - hessian: ``(B, K, K)``.
        - linear: ``(B, M, K)``.
        - output: ``(B, M, K)``.

    Cost:
        As a rule one or two solves of size K a problem; 3 to 8 where H is singular.

    References:
        Portugal, Júdice and Vicente, A comparison of block pivoting and interior-point algorithms for linear
        least squares problems with nonnegative variables, Math. Comp. 63 (1994). Lawson and Hanson, Solving
        Least Squares Problems (1974), chapter 23. Rockafellar, Monotone operators and the proximal point
        algorithm, SIAM J. Control Optim. 14 (1976).
    """
    if b"\1" not in (linear > 0).tobytes():  # any(), at a quarter of its overhead
        return np.zeros_like(linear)
    batch, count, size = linear.shape
    large = count * size >= _LARGE
    if batch > 1 and (large or linear.size * size > _LARGEST_BLOCK):
        halves = np.array_split(np.arange(batch), 2)
        return np.concatenate([nonnegative_quadratic(hessian[half], linear[half], ridge) for half in halves])
    matrix = hessian if batch == 1 or count == 1 else hessian[np.repeat(np.arange(batch), count)]
    right = linear.reshape(-1, size)
    orthogonal = size <= 16 and _is_nearly_orthogonal(hessian)
    if ridge > 0.0 and not orthogonal and not is_well_conditioned(hessian):
        while ridge < 1.0 and not _is_definite(hessian, ridge):  # products that were added up in low precision
            ridge *= 10.0
        x = _approach(matrix, right, _search(hessian, linear, min(4 + count * size // 32, 32)), ridge)
    elif guess is not None:
        x = _pivot(matrix, right, guess.reshape(-1, size).copy())
    elif not large:
        x = _pivot(matrix, right, _after_unit_steps(hessian, linear, 2 if size >= 8 else int(orthogonal)))
    else:
        passive = _search(hessian, linear, 6) > 0
        pivot = _pivot_gradient if 2 * np.count_nonzero(passive) > passive.size else _pivot
        x = pivot(matrix, right, passive)
    return x.reshape(linear.shape)


def is_well_conditioned(hessian: Array) -> bool:
    """Whether the smallest eigenvalue of every matrix is large enough for plain solves."""
    return _is_definite(hessian, -_WELL_CONDITIONED)


def _is_definite(hessian: Array, shift: float) -> bool:
    try:
        np.linalg.cholesky(hessian + _identity(hessian.shape[2], shift))
    except np.linalg.LinAlgError:
        return False
    return True


def _is_nearly_orthogonal(hessian: Array) -> bool:
    """Whether trace and norm alone show that all eigenvalues are within 99.9 % of their mean; of one matrix.

    Wolkowicz and Styan, Bounds for eigenvalues using traces, Linear Algebra Appl. 29 (1980).
    """
    size = hessian.shape[2]
    if hessian.size != size * size:
        return False
    mean = float(np.vdot(hessian, _identity(size))) / size
    variance = float(np.vdot(hessian, hessian)) / size - mean * mean
    return bool(variance * (size - 1) < (0.999 * mean) ** 2)


def _after_unit_steps(hessian: Array, linear: Array, steps: int) -> Mask:
    """Guesses which entries are positive, one row a problem, from projected gradient steps of length one."""
    z = linear
    for _ in range(steps):
        x = np.maximum(z, 0.0)
        z = x - x @ hessian + linear
    return (z > 0).reshape(-1, z.shape[2])


def _search(hessian: Array, linear: Array, steps: int) -> Array:
    """Takes projected gradient steps of Barzilai and Borwein's shorter length; one row a problem."""
    x = np.maximum(linear, 0.0)
    gradient = x @ hessian - linear
    move, change = gradient, gradient @ hessian
    for _ in range(steps):
        curvature = np.vdot(change, change)
        if not curvature > 0.0:
            break
        move = np.maximum(x - np.vdot(move, change) / curvature * gradient, 0.0) - x
        change = move @ hessian
        x = x + move
        gradient = gradient + change
    return np.maximum(x, 0.0).reshape(-1, x.shape[2])


# From here on, ``right`` and all that has its shape are (N, K), one row a problem; ``matrix`` is (N, K, K), or
# (1, K, K) for all of them.


def _pivot(matrix: Array, right: Array, passive: Mask) -> Array:
    """Exchanges all entries of the wrong sign at once, until there are none."""
    z = _solve(matrix, right, passive)
    for _ in range(_SMALL_ROUNDS if right.size < _LARGE else 0):
        positive = z > 0
        if positive.tobytes() == passive.tobytes():  # the fastest comparison at this size
            return np.maximum(z, 0.0)
        passive, z = positive, _solve(matrix, right, positive)  # all: faster than picking those in need
    for _ in range(_ROUNDS_OF_PIVOTING):
        left = np.flatnonzero(((z > 0) != passive).any(axis=1))
        wrong = ((z[left] > 0) != passive[left]) & (np.abs(z[left]) > _noise(z[left]))
        left = left[wrong.any(axis=1)]
        if left.size == 0:
            return np.maximum(z, 0.0)
        passive[left] = z[left] > 0
        z[left] = _solve(_of(matrix, left), right[left], passive[left])
    return _approach(matrix, right, np.maximum(z, 0.0), 0.0)


def _pivot_gradient(matrix: Array, right: Array, passive: Mask) -> Array:
    """Pivots for the gradients y = H x - q, where fewer of them are positive: the same problem, with the inverse."""
    inverse = cast(Array, np.linalg.inv(matrix))
    if not np.vdot(inverse, inverse) < 1.0 / _WELL_CONDITIONED:
        return _pivot(matrix, right, passive)
    shift = _apply(inverse, right)
    gradient = _pivot(inverse, -shift, ~passive)
    return np.where(gradient > 0, 0.0, np.maximum(_apply(inverse, gradient) + shift, 0.0))


def _approach(matrix: Array, right: Array, x: Array, ridge: float) -> Array:
    """Minimises with half the ridge times the squared distance to the last minimiser added, until that stays."""
    left = np.arange(len(x))
    for _ in range(_PROXIMAL_STEPS):
        x[left] = here = _descend(_of(matrix, left), right[left], x[left], ridge)
        gradient = _apply(_of(matrix, left), here) - right[left]
        left = left[(np.where(here > 0, np.abs(gradient), -gradient) > 0.25 * _noise(here)).any(axis=1)]
        if left.size == 0:
            break
    return x


def _descend(matrix: Array, right: Array, start: Array, ridge: float) -> Array:
    """Goes from face to face of the orthant, never uphill, from the start of one proximal step to its minimiser."""
    regular = matrix + _identity(start.shape[1], ridge)
    x: Array = start.copy()
    passive, left = start > 0, np.arange(len(start))
    for _ in range(20 + 4 * start.shape[1]):
        face, here = passive[left], x[left]
        kept = np.where(face, start[left], 0.0)
        z = kept + _solve(_of(regular, left), right[left] - _apply(_of(matrix, left), kept), face)
        clipped = np.where(face, np.maximum(z, 0.0), 0.0)
        blocking, entering = face & (z < 0), ~face & (z > _noise(z))
        unsettled = (blocking | entering).any(axis=1)
        if not unsettled.any():
            x[left] = clipped
            break
        move = clipped - here
        slope = _apply(_of(matrix, left), here) - right[left] + ridge * (here - start[left])
        rise = ((slope + 0.5 * _apply(_of(regular, left), move)) * move).sum(axis=1, keepdims=True)
        uphill = (rise >= 0) & blocking.any(axis=1, keepdims=True)  # then only as far as the first bound
        ratio = np.where(blocking, here / np.where(blocking, here - z, 1.0), np.inf)
        reach = ratio.min(axis=1, keepdims=True)
        staying = face & ~(blocking & (ratio <= np.where(uphill, reach, np.inf)))
        bounded = np.where(staying, np.maximum(here + np.where(uphill, reach, 0.0) * (z - here), 0.0), 0.0)
        x[left] = np.where(uphill, bounded, clipped)
        passive[left] = staying | (entering & ~uphill)
        left = left[unsettled]
    return x


def _solve(matrix: Array, right: Array, passive: Mask) -> Array:
    """Solves for the passive entries with the others held at zero, whose negative gradients stand in their place."""
    size = right.shape[1]
    if right.size * size > _LARGEST_BLOCK and len(right) > 1:
        halves = np.array_split(np.arange(len(right)), 2)
        return np.concatenate([_solve(_of(matrix, half), right[half], passive[half]) for half in halves])
    if size >= _WORTH_GATHERING and right.size >= _LARGE:
        width = int(np.add.reduce(passive, 1).max())
        if 2 * width <= size:
            return _solve_gathered(matrix, right, passive, width)
    system = np.where(passive[:, None], matrix, _identity(size))
    return cast(Array, np.linalg.solve(system, right[..., None])[..., 0])


def _solve_gathered(matrix: Array, right: Array, passive: Mask, width: int) -> Array:
    """The same, by systems of size ``width``, the largest number of passive entries."""
    chosen = np.argsort(~passive, axis=1, kind="stable")[:, :width]  # the passive entries, then some others
    each = np.arange(len(right))[:, None]
    inside = passive[each, chosen]
    rows = matrix[0][chosen] if len(matrix) == 1 else matrix[each, chosen]  # (N, width, K)
    inner = rows[each[:, None], np.arange(width)[:, None], chosen[:, None]]
    system = np.where(inside[:, None], inner, _identity(width))
    values = np.where(inside, np.linalg.solve(system, right[each, chosen][..., None])[..., 0], 0.0)
    solution = cast(Array, right - (values[:, None] @ rows)[:, 0])
    solution[each, chosen] = np.where(inside, values, solution[each, chosen])
    return solution


def _of(matrix: Array, left: Indices) -> Array:
    return matrix if len(matrix) == 1 else matrix[left]


def _apply(matrix: Array, x: Array) -> Array:
    return cast(Array, x @ matrix[0] if len(matrix) == 1 else (x[:, None] @ matrix)[:, 0])


def _noise(z: Array) -> Array:
    """What rounding may have added to solutions and gradients."""
    return cast(Array, 4 * z.shape[1] * EPSILON * (1.0 + np.abs(z).max(axis=1, keepdims=True)))


@cache
def _identity(size: int, factor: float = 1.0) -> Array:
    identity = factor * np.eye(size)
    identity.setflags(write=False)
    return identity
