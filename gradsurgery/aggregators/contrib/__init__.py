"""Methods that are newer and less checked: few others have used them, and results come from their own papers."""

from .chebyshev import ChebyshevCenter
from .dcgd import DCGD
from .pcd import PCD

__all__ = ["DCGD", "PCD", "ChebyshevCenter"]
