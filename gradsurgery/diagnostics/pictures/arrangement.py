"""Cells of a given size with colour bars beside them, and a figure as large as they and their names need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .canvas import (
    NOTE,
    NOTE_LINE,
    TITLE,
    TITLE_LINE,
    new_figure,
    note_lines,
    title_lines,
    without_glyph_warnings,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

BAR, BAR_LENGTH = 0.14, 1.4  # inches
GAP, EDGE = 0.15, 0.08  # to the cells, and around everything
NARROWEST = 4.4
ROUNDING = 1.03  # letters are wider at some resolutions than at others


@contextmanager
def heat_map_figure(
    caller: str, size: tuple[float, float], bars: int, title: str, notes: list[str]
) -> Iterator[tuple[Figure, Axes, list[Axes]]]:
    """A figure with axes for cells, and axes for colour bars; both have their place once the context ends.

    matplotlib's own layouts fit the cells to the figure. Here the figure is fitted to the cells.

    Args:
        caller: The function, for errors.
        size: Width and height of all cells in inches.
        bars: How many colour bars.
        title: Plain text; empty for none.
        notes: Sentences below the picture, which may still be added within the context.
    """
    with new_figure(caller, size[0], size[1], "") as figure:
        figure.set_layout_engine(None)
        axes, *beside = (figure.add_axes((0.0, 0.0, 1.0, 1.0)) for _ in range(1 + bars))
        yield figure, axes, beside
        _fit(figure, axes, beside, size, title, notes)


def _fit(
    figure: Figure, axes: Axes, beside: Sequence[Axes], size: tuple[float, float], title: str, notes: Sequence[str]
) -> None:
    """Measures what stands out from the cells, and makes the figure as large as that."""
    places = [(0.0, 0.0, *size), *(_bar_place(size, index, len(beside)) for index in range(len(beside)))]
    everything = [axes, *beside]
    _place(figure, everything, places, size, (0.0, 0.0))
    left, bottom, right, top = _extent(figure, everything)
    width = max(right - left + 2 * EDGE, NARROWEST)
    heads, feet = title_lines(title, width), note_lines(notes, width)
    above = TITLE_LINE * len(heads) + (EDGE if heads else 0.0)
    below = NOTE_LINE * len(feet) + (EDGE if feet else 0.0)
    height = top - bottom + above + below + 2 * EDGE
    _place(figure, everything, places, (width, height), (EDGE - left, EDGE + below - bottom))
    if heads:
        figure.suptitle("\n".join(heads), x=EDGE / width, y=1.0 - EDGE / height, ha="left", va="top", **TITLE)
    if feet:
        figure.supxlabel("\n".join(feet), x=EDGE / width, y=EDGE / height, ha="left", va="bottom", **NOTE)


def _bar_place(size: tuple[float, float], index: int, count: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a colour bar in inches, from the lower left corner of the cells."""
    room = max(size[1] / count, 1.2 if count == 1 else 1.6)  # the first begins as high as the cells
    long = min(BAR_LENGTH, room - (0.45 if count > 1 else 0.0))
    return size[0] + GAP, size[1] - index * room - long, BAR, long


def _place(
    figure: Figure,
    axes: Sequence[Axes],
    places: Sequence[tuple[float, float, float, float]],
    size: tuple[float, float],
    corner: tuple[float, float],
) -> None:
    """Puts axes where they belong in a figure of a size, with the cells' corner there; all in inches."""
    figure.set_size_inches(*size)
    for own, (x, y, width, height) in zip(axes, places, strict=True):
        place = ((corner[0] + x) / size[0], (corner[1] + y) / size[1], width / size[0], height / size[1])
        own.set_position(place)


def _extent(figure: Figure, axes: Sequence[Axes]) -> tuple[float, float, float, float]:
    """How far axes and what is written around them reach, in inches."""
    with without_glyph_warnings():
        boxes: list[Bbox] = [box for own in axes if (box := own.get_tightbbox()) is not None]
    ends = (
        min(float(box.x0) for box in boxes),
        min(float(box.y0) for box in boxes),
        max(float(box.x1) for box in boxes),
        max(float(box.y1) for box in boxes),
    )
    left, bottom, right, top = (ROUNDING * end / figure.dpi for end in ends)
    return left, bottom, right, top
