"""Watching how losses stand to each other while a model trains."""

from .averages import Averages
from .monitor import ConflictMonitor

__all__ = ["Averages", "ConflictMonitor"]
