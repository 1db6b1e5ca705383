"""What the solvers compute with: NumPy arrays, and the limits of their numbers."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]

EPSILON = float(np.finfo(np.float64).eps)

TINY = float(np.finfo(np.float64).tiny)
"""For divisors that are zero only where the dividend is zero."""
