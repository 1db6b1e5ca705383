"""The shortest vector in the convex hull of the gradients: see ``solvers/min_norm.py``."""

import torch
from torch import Tensor

from ..arrays import TINY
from ..scaling import RIDGE
from .nnls import nonnegative_quadratic
from .scaling import unit_gramian


def min_norm_weights(gramian: Tensor, ridge: float = RIDGE) -> Tensor:
    """Finds the shortest convex combination of the non-zero rows, as ``solvers.min_norm_weights`` does.

    Shape:
        - gramian: ``(B, K, K)``.
        - output: ``(B, K)``.
    """
    cosines, norms, nonzero = unit_gramian(gramian)
    inverse = nonzero / norms
    simplex = inverse / inverse.amax(-1, keepdim=True).clamp(min=TINY)
    matrix = cosines + simplex.unsqueeze(-1) * simplex.unsqueeze(-2)
    weights = nonnegative_quadratic(matrix, simplex.unsqueeze(1), ridge).squeeze(1) * inverse
    weights = torch.where(nonzero.any(-1, keepdim=True), weights, 1.0)
    return weights / weights.sum(-1, keepdim=True)
