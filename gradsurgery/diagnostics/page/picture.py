"""A matplotlib figure inside a page."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from ..pictures.files import written_svg
from .text import escaped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_AN_INCH = 96  # in a browser
LEGIBLE = 620  # pixels; on a narrow screen a picture keeps this width, or the one it was drawn with, and scrolls


def picture(figure: Figure, alt: str) -> str:
    """A figure as an image that is part of the page, sharp at every size; the same text for the same figure.

    Args:
        figure: Of matplotlib; shown on white, also where the page is dark.
        alt: What is to be seen, in words, for those who do not see it; plain text.

    Raises:
        ValueError: ``alt`` is empty.

    Cost:
        One drawing; 10 to 100 kB of text.

    Example:
        >>> from matplotlib.figure import Figure
        >>> picture(Figure(figsize=(2, 1)), "an empty frame")[:78]
        '<div class="picture scroll"><img alt="an empty frame" width="192" height="96" '
    """
    if not alt.strip():
        raise ValueError(
            f"picture: `alt` must be a description in words, got {alt!r}. It is all that some readers have."
        )
    svg = base64.b64encode(written_svg(figure)).decode("ascii")
    width, height = (round(PIXELS_AN_INCH * float(inches)) for inches in figure.get_size_inches())
    return (
        f'<div class="picture scroll"><img alt="{escaped(alt)}" width="{width}" height="{height}" '
        f'style="min-width: {min(width, LEGIBLE)}px" src="data:image/svg+xml;base64,{svg}"></div>'
    )
