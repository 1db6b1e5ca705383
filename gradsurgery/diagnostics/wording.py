"""Numbers and names as pictures and pages write them."""

from __future__ import annotations

import math


def shortened(text: object, length: int) -> str:
    """At most ``length`` characters, not yet escaped; long texts lose their middle, as names often differ at the end.

    Example:
        >>> shortened("income in 1994", 10)
        'income…994'
    """
    whole = str(text)
    tail = (length - 1) // 3
    return whole if len(whole) <= length else f"{whole[: length - 1 - tail]}…{whole[-tail:]}"


def share(value: float) -> str:
    """A share as a percentage.

    Example:
        >>> share(0.5), share(0.0004), share(0.0), share(0.012)
        ('50%', '<0.1%', '0%', '1.2%')
    """
    if not math.isfinite(value):
        return "–"
    percent = 100 * value
    if 0 < percent < 0.1:
        return "<0.1%"
    return f"{percent:.1f}%" if 0 < percent < 10 else f"{percent:.0f}%"


def times(value: float) -> str:
    """How many times one thing is another.

    Example:
        >>> times(2431.0), times(2.55), times(math.inf)
        ('2,431', '2.5', '∞')
    """
    if value == math.inf:
        return "∞"
    return "–" if not math.isfinite(value) else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def quantity(value: float) -> str:
    """A cell of a column of numbers: whole ones as they are, others to three digits.

    Example:
        >>> quantity(1984.0), quantity(0.0371239), quantity(-178950.0), quantity(14112.7), quantity(3e20)
        ('1984', '0.0371', '−178,950', '14,100', '3e+20')
    """
    if not math.isfinite(value):
        return "–"
    rounded = value if value == round(value) else float(f"{value:.3g}")
    if rounded != round(rounded) or abs(rounded) >= 1e9:
        written = f"{rounded:.3g}"
    else:
        written = f"{rounded:,.0f}" if abs(rounded) >= 10_000 else f"{rounded:.0f}"
    return f"−{written[1:]}" if written.startswith("-") else written


def cosine(value: float) -> str:
    """A cosine in two decimals, short enough for a small square.

    Example:
        >>> cosine(-0.416), cosine(1.0), cosine(0.0)
        ('−.42', '1', '0')
    """
    if not math.isfinite(value):
        return ""
    text = f"{value:.2f}".replace("0.", ".").replace("-", "−")
    return {".00": "0", "−.00": "0", "1.00": "1", "−1.00": "−1"}.get(text, text)
