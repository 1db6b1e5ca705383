"""Projection on the cone of the directions that make no loss worse: see ``solvers/dual_cone.py``."""

from torch import Tensor

from ..arrays import TINY
from ..scaling import RIDGE
from .nnls import nonnegative_quadratic
from .scaling import unit_gramian


def project_on_dual_cone(gramian: Tensor, combinations: Tensor, ridge: float = RIDGE) -> Tensor:
    """Projects combinations of the rows on the dual cone of the rows, as ``solvers.project_on_dual_cone`` does.

    Shape:
        - gramian: ``(B, K, K)``.
        - combinations: ``(B, M, K)`` or ``(1, M, K)``.
        - output: ``(B, M, K)``.
    """
    cosines, norms, nonzero = unit_gramian(gramian)
    start = combinations * (norms * nonzero).unsqueeze(1)  # coordinates in unit rows
    largest = start.abs().amax(-1, keepdim=True).clamp(min=TINY)
    multipliers = nonnegative_quadratic(cosines, (start / -largest) @ cosines, ridge)
    return combinations + multipliers * largest / norms.unsqueeze(1)


def mean_of_projected_rows(gramian: Tensor, preference: Tensor, ridge: float = RIDGE) -> Tensor:
    """Projects each row on the dual cone of all rows and averages, as ``solvers.mean_of_projected_rows`` does.

    Shape:
        - gramian: ``(B, K, K)``.
        - preference: ``(K,)``.
        - output: ``(B, K)``.
    """
    cosines, norms, _ = unit_gramian(gramian)
    multipliers = nonnegative_quadratic(cosines, -cosines, ridge)  # row k: what is added to unit row k
    return preference + ((preference * norms).unsqueeze(1) @ multipliers).squeeze(1) / norms
