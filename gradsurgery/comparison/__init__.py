"""The same training under several methods, the tuned plain sum and single-task networks: did it help?"""

from .arms import Arm
from .compare import compare
from .comparison import Comparison
from .row import Row
from .trial import Trial

__all__ = ["Arm", "Comparison", "Row", "Trial", "compare"]
