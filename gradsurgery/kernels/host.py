"""PCGrad's projections in NumPy: over K x K numbers a call is all overhead, and NumPy has a third of torch's."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_ZERO, _ONE = np.zeros(()), np.ones(())  # Python numbers would be converted at every use


def sum_of_projections(gramian: Array, order: Indices) -> Array:
    r"""Adds up the rows of :func:`gradsurgery.kernels.project`, which defines what is computed.

    Kept is :math:`q_{ij} = \langle \hat g_i, g_j \rangle / \lVert g_j \rVert^2`, so that no coefficients are needed:
    a projection on :math:`g_j` takes :math:`\min(0, q_{ij})` times the row j that q starts with from its row i.

    Args:
        gramian: Inner products of the original rows.
        order: Which other row each row meets at each step; all of them once.

    Shape:
        - gramian: ``(..., K, K)``.
        - order: ``(K - 1, ..., K)``.
        - output: ``(..., K)``, the weights of the original rows.

    Cost:
        K - 1 steps, each over all rows of all problems at once.
    """
    size = gramian.shape[-1]
    squared_norms = gramian.diagonal(0, -2, -1)
    if np.count_nonzero(squared_norms) < squared_norms.size:
        squared_norms = np.where(squared_norms > 0, squared_norms, 1.0)
    start = (gramian / squared_norms[..., None, :]).reshape(-1, size)
    others, pairs = encounters(order)
    current = start.copy()
    flat = current.reshape(-1)
    removed = np.empty(pairs.shape)
    for step in range(size - 1):
        if step > 0:
            current -= removed[step - 1][:, None] * start.take(others[step - 1], 0)
        np.minimum(flat[pairs[step]], _ZERO, out=removed[step])
    weights: Array = _ONE - np.bincount(others.reshape(-1), removed.reshape(-1), len(start))
    return weights.reshape(gramian.shape[:-1])


def encounters(order: Indices) -> tuple[Indices, Indices]:
    """Looks up whom each row meets among the rows of all B problems, and where their pair lies in the flat Gramians.

    Shape:
        - order: ``(K - 1, ..., K)``.
        - output: twice ``(K - 1, B K)``.
    """
    size = order.shape[-1]
    if order.ndim == 2:
        return order, order + _starts(size, size)[0]
    others = order.reshape(size - 1, math.prod(order.shape[1:]))
    own, first = _starts(others.shape[1], size)
    return others + first, others + own


@lru_cache(maxsize=64)
def _starts(rows: int, size: int) -> tuple[Indices, Indices]:
    """Where each row starts in the flat Gramians, and which row is the first of its problem."""
    own = np.arange(rows)
    starts = own * size, own // size * size
    for indices in starts:
        indices.setflags(write=False)
    return starts
