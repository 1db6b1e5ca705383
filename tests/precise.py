"""Solutions that share nothing with the library, in extended precision, for problems with no closed form.

``numpy.longdouble`` has 64 bits of mantissa on x86. Each of the three is a textbook method on the rows themselves:
Newton's with a line search on the function it minimises, elimination, and Jacobi rotations. They take any K, unlike
the exact solutions in ``references.py``.
"""

import numpy as np
from numpy.typing import NDArray
from support import with_cosine

Array = NDArray[np.float64]
Precise = NDArray[np.longdouble]


def well_posed(count: int) -> dict[str, Array]:
    """Jacobians as hard as the condition of the unit rows may make them, up to a million, with norms as far apart."""
    source = np.random.default_rng(count)
    left, _ = np.linalg.qr(source.standard_normal((count, count)))
    right, _ = np.linalg.qr(source.standard_normal((2 * count, count)))
    dependent = left * np.geomspace(1.0, 1.2e-3, count) @ right.T
    kinds = {
        "random": source.standard_normal((count, 3 * count)),
        "conflict": with_cosine(count, -0.9999, columns=count + 1).numpy(),
        "nearly dependent": dependent / np.linalg.norm(dependent, axis=1, keepdims=True),
    }
    spread = source.permutation(np.geomspace(1e-3, 1e3, count))[:, None]
    return kinds | {f"{name}, norms a million apart": spread * rows for name, rows in kinds.items()}


def bargaining_direction(jacobian: Array, power: float) -> Array:
    """The combination with positive weights that has ``(G w)_i = w_i^(-power)``, no row being zero."""
    rows = jacobian.astype(np.longdouble)
    norms = np.sqrt((rows**2).sum(axis=1))
    unit = rows / norms[:, None]
    exponent = np.longdouble(power)
    # In coordinates on unit rows, with the smallest norm for unit: minimise |x U|^2 / 2 - sum s^(1-p) phi(x / s).
    scales = norms / norms.max()
    x = scales ** ((exponent - 1) / (exponent + 1))
    for _ in range(1000):
        gains = unit @ (x @ unit)
        wanted = (x / scales) ** -exponent / scales  # what the gains have to be
        step = eliminate(unit @ unit.T + np.diag(exponent * wanted / x), wanted - gains)
        decrement = (wanted - gains) @ step / (x @ wanted)
        size = min(np.longdouble(1), np.longdouble(0.99) / max(np.max(-step / x), np.longdouble(1e-30)))
        before = _objective(x, unit, scales, exponent)
        while decrement > 1e-12 and _objective(x + size * step, unit, scales, exponent) > before:
            size /= 2
        x = x + size * step
        if decrement < 1e-24:  # the square of the relative change of the combination before this step
            break
    else:
        raise AssertionError("Newton's method has not converged")
    scale = norms.max() ** (-2 / (1 + exponent))
    return np.asarray((x / scales * scale) @ rows, dtype=np.float64)


def _objective(x: Precise, unit: Precise, scales: Precise, exponent: np.longdouble) -> np.longdouble:
    weights = x / scales
    barrier = np.log(weights) if exponent == 1 else weights ** (1 - exponent) / (1 - exponent)
    combination = x @ unit
    return np.longdouble((combination @ combination) / 2 - barrier.sum())


def equal_cosine_directions(jacobian: Array) -> tuple[Array, Array]:
    """Of linearly independent rows: IMTL-G's direction, whose weights add up to 1, and ConFIG's."""
    rows = jacobian.astype(np.longdouble)
    norms = np.sqrt((rows**2).sum(axis=1))
    unit = rows / norms[:, None]
    shares = eliminate(unit @ unit.T, np.ones(len(rows), dtype=np.longdouble))
    common = shares @ unit
    length = (rows @ common).sum() / (common @ common)
    return np.asarray(common / (shares / norms).sum(), np.float64), np.asarray(length * common, np.float64)


def aligned_direction(jacobian: Array, scale: str, preference: Array) -> Array:
    """The rows' closest orthonormal ones, weighted by preference, times a singular value; independent rows."""
    columns = jacobian.astype(np.longdouble).T.copy()
    count = columns.shape[1]
    rotation = np.eye(count, dtype=np.longdouble)
    for _ in range(60):
        largest = np.longdouble(0)
        for i in range(count - 1):
            for j in range(i + 1, count):
                largest = max(largest, _rotate(columns, rotation, i, j))
        if largest < 1e-17:
            break
    values = np.sqrt((columns**2).sum(axis=0))
    ordered = np.sort(values)
    chosen = {"min": ordered[0], "median": ordered[(count - 1) // 2], "rmse": np.sqrt((values**2).mean())}[scale]
    return np.asarray(chosen * ((columns / values) @ (rotation.T @ preference)), dtype=np.float64)


def _rotate(columns: Precise, rotation: Precise, i: int, j: int) -> np.longdouble:
    """Makes two columns orthogonal; returns the cosine that they had."""
    first, second = columns[:, i], columns[:, j]
    a, b, c = first @ first, second @ second, first @ second
    cosine = abs(c) / np.sqrt(a * b)
    if cosine > 1e-19:
        cotangent = (b - a) / (2 * c)
        tangent = (1 if cotangent >= 0 else -1) / (abs(cotangent) + np.sqrt(1 + cotangent**2))
        cos = 1 / np.sqrt(1 + tangent**2)
        turn = np.array([[cos, cos * tangent], [-cos * tangent, cos]], dtype=np.longdouble)
        columns[:, [i, j]] = columns[:, [i, j]] @ turn
        rotation[:, [i, j]] = rotation[:, [i, j]] @ turn
    return np.longdouble(cosine)


def eliminate(matrix: Precise, right: Precise) -> Precise:
    """Gaussian elimination with pivots from the column."""
    size = len(matrix)
    table = np.concatenate([matrix, right[:, None]], axis=1)
    for column in range(size):
        pivot = column + int(np.argmax(np.abs(table[column:, column])))
        table[[column, pivot]] = table[[pivot, column]]
        below = table[column + 1 :]
        below -= (below[:, column] / table[column, column])[:, None] * table[column]
    solution = np.zeros(size, dtype=np.longdouble)
    for row in reversed(range(size)):
        solution[row] = (table[row, -1] - table[row, row + 1 : -1] @ solution[row + 1 :]) / table[row, row]
    return solution
