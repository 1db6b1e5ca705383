"""Arithmetic over the rows of a Jacobian: inner products, projections, combinations, and a projection on the host."""

from .dispatch import can_project, combine, gramian, project, vaccinate
from .finite import is_finite
from .host import encounters, sum_of_projections
from .reference import as_matrix, cross_gramian, widened

__all__ = [
    "as_matrix",
    "can_project",
    "combine",
    "cross_gramian",
    "encounters",
    "gramian",
    "is_finite",
    "project",
    "sum_of_projections",
    "vaccinate",
    "widened",
]
