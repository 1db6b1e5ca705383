"""The same solvers in torch, for Gramians that stay on a GPU, where a CUDA graph can capture them.

No shape and no branch depends on data, nothing is copied from the host, and no library is asked that might wait, for
errors or for memory. Where the host stops early, there is a fixed number of steps here.
"""

from .alignment import aligned_weights
from .dual_cone import mean_of_projected_rows, project_on_dual_cone
from .equal_projections import equal_projections
from .jacobi import Spectrum, spectrum
from .min_norm import min_norm_weights
from .nnls import nonnegative_quadratic
from .scaling import UnitGramian, unit_gramian

__all__ = [
    "Spectrum",
    "UnitGramian",
    "aligned_weights",
    "equal_projections",
    "mean_of_projected_rows",
    "min_norm_weights",
    "nonnegative_quadratic",
    "project_on_dual_cone",
    "spectrum",
    "unit_gramian",
]
