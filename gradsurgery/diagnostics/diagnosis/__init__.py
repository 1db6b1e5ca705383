"""Do my losses conflict, where, is it noise, and what is to be done: without training."""

from .advice import Recommendation
from .diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "Recommendation", "diagnose"]
