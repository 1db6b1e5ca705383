"""Numbers and names as the page writes them: those of every page, and test errors."""

from __future__ import annotations

import math

from gradsurgery.diagnostics.wording import cosine, quantity, share, shortened, times

__all__ = ["change", "cosine", "error", "printed_change", "quantity", "share", "shortened", "times"]


def error(value: float) -> str:
    """A test error.

    Example:
        >>> error(0.03141), error(float("nan"))
        ('0.031', '–')
    """
    return f"{value:.3f}" if math.isfinite(value) else "–"


def change(before: float, after: float) -> str:
    """The difference between two test errors as they are printed, with its sign.

    Example:
        >>> change(0.1304, 0.0312), change(0.01, 0.0101), change(0.1, 0.2)
        ('−0.099', '0', '+0.100')
    """
    difference = printed_change(before, after)
    if not math.isfinite(difference):
        return "–"
    return f"{difference:+.3f}".replace("-", "−") if difference else "0"


def printed_change(before: float, after: float) -> float:
    """The difference between two test errors that can be seen in what is printed of them."""
    return round(round(after, 3) - round(before, 3), 3) if math.isfinite(before + after) else math.nan
