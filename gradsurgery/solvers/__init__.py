"""Small exact solvers over K x K problems, batched: in NumPy, and those of ``device`` in torch for CUDA graphs."""

from . import device
from .alignment import aligned_weights
from .bargaining import bargaining_weights
from .conflict_averse import conflict_averse_weights
from .dual_cone import mean_of_projected_rows, project_on_dual_cone
from .equal_projections import equal_projections
from .min_norm import min_norm_weights, optimality_gap
from .nnls import nonnegative_quadratic
from .simplex import project_on_simplex, start_on_simplex

__all__ = [
    "aligned_weights",
    "bargaining_weights",
    "conflict_averse_weights",
    "device",
    "equal_projections",
    "mean_of_projected_rows",
    "min_norm_weights",
    "nonnegative_quadratic",
    "optimality_gap",
    "project_on_dual_cone",
    "project_on_simplex",
    "start_on_simplex",
]
