"""What likelihoods check of their scaling."""

from __future__ import annotations

import math


def check_weight(name: str, weight: float, remedy: str) -> None:
    """Raises unless a weight is positive and finite."""
    if not 0 < weight < math.inf:
        raise ValueError(f"{name}: `weight` must be positive and finite, got {weight}. {remedy}")


def check_shift(name: str, shift: float) -> None:
    """Raises unless a shift is finite and not negative."""
    if not 0 <= shift < math.inf:
        raise ValueError(
            f"{name}: `shift` must be non-negative and finite, got {shift}. "
            "Use half of the smallest positive value, or 0 without zeros."
        )
