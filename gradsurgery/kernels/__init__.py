"""Arithmetic over the rows of a Jacobian: ``gramian``, ``project``, ``combine``."""

from .reference import combine, gramian, project

__all__ = ["combine", "gramian", "project"]
