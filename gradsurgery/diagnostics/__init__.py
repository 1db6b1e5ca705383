"""See the conflict: how losses stand to each other, before a model trains or while it does."""

from . import page, pictures, similarity
from .diagnosis import Diagnosis, Recommendation, diagnose
from .history import History
from .metrics import surgery_metrics
from .monitor import ConflictMonitor

__all__ = [
    "ConflictMonitor",
    "Diagnosis",
    "History",
    "Recommendation",
    "diagnose",
    "page",
    "pictures",
    "similarity",
    "surgery_metrics",
]
