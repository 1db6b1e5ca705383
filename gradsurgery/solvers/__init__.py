"""Small exact solvers over K x K problems, batched: non-negative least squares and what is built on it."""

from .dual_cone import project_on_dual_cone
from .min_norm import min_norm_weights
from .nnls import nonnegative_quadratic

__all__ = ["min_norm_weights", "nonnegative_quadratic", "project_on_dual_cone"]
