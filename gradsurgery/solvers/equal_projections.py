"""The combination of unit vectors that has the same inner product with each of them."""

import numpy as np

from .arrays import Array
from .scaling import NULL

_WELL_CONDITIONED = 1e-4
"""Where every diagonal entry of the Cholesky factor is larger, an ordinary solve is exact enough."""

_PART = 1e-6
"""A part of the vector of ones that is shorter than this, relative to the whole, is rounding."""


def equal_projections(cosines: Array, ones: Array, *, approximate: bool) -> Array:
    r"""Solves :math:`C \beta = 1`: the combination of unit rows that has inner product 1 with each of them.

    Args:
        cosines: C, unit-diagonal Gramians.
        ones: 1 for the rows that count; 0 for those that are zero, which must be orthogonal to the others.
        approximate: Where there is no solution, whether to return the shortest least-squares solution or zero.

    Shape:
        - cosines: ``(B, K, K)``.
        - ones: ``(B, K)``.
        - output: ``(B, K)``.

    Cost:
        A Cholesky factorization and a solve; an eigendecomposition where C is close to singular.
    """
    try:
        factor = np.linalg.cholesky(cosines)
    except np.linalg.LinAlgError:
        return _by_eigenvectors(cosines, ones, approximate)
    if factor.diagonal(0, 1, 2).min() < _WELL_CONDITIONED:
        return _by_eigenvectors(cosines, ones, approximate)
    return np.linalg.solve(cosines, ones[..., None])[..., 0].astype(np.float64, copy=False)


def _by_eigenvectors(cosines: Array, ones: Array, approximate: bool) -> Array:
    values, vectors = np.linalg.eigh(cosines)
    shares = (ones[:, None] @ vectors)[:, 0]
    null = values <= NULL
    inside, outside = np.where(null, 0.0, shares), np.where(null, shares, 0.0)
    shortest = _PART * np.linalg.norm(ones, axis=1)
    solved = np.linalg.norm(inside, axis=1) > shortest
    if not approximate:
        solved &= np.linalg.norm(outside, axis=1) <= shortest
    solution = (vectors @ (inside / np.where(null, 1.0, values))[..., None])[..., 0]
    return np.where(solved[:, None], ones * solution, 0.0)
