"""Arithmetic over the rows of a Jacobian: inner products, projections, combinations, and a projection on the host."""

from .finite import is_finite
from .host import encounters, sum_of_projections
from .reference import as_matrix, combine, cross_gramian, gramian, project, widened

__all__ = [
    "as_matrix",
    "combine",
    "cross_gramian",
    "encounters",
    "gramian",
    "is_finite",
    "project",
    "sum_of_projections",
    "widened",
]
