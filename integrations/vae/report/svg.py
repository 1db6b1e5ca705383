"""Small drawings as inline SVG. Colours come from the page's style sheet, by class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gradsurgery.diagnostics.page import escaped

Point = tuple[float, float]


def drawing(
    width: float, height: float, label: str, body: Iterable[str], *, kind: str = "", stretched: bool = False
) -> str:
    """An ``<svg>`` of the width it is given; ``label`` is what a screen reader says.

    Its height follows the width, unless it is ``stretched``: then it stays.
    """
    ratio = f' preserveAspectRatio="none" style="height: {at(height)}px"' if stretched else ""
    return (
        f'<svg class="{kind}" viewBox="0 0 {at(width)} {at(height)}"{ratio} role="img" aria-label="{escaped(label)}">'
        f"{''.join(body)}</svg>"
    )


def at(value: float) -> str:
    """A coordinate, to a tenth of a pixel.

    Example:
        >>> at(12.04), at(3.27)
        ('12', '3.3')
    """
    return f"{round(value, 1) + 0.0:g}"


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{at(x)}" y="{at(y)}" width="{at(width)}" height="{at(height)}"/>'


def line(points: Sequence[Point], kind: str) -> str:
    """A line through some points."""
    return f'<path class="{kind}" d="M{"L".join(f"{at(x)} {at(y)}" for x, y in points)}"/>'


def words(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start", title: str = "") -> str:
    """A label; ``title`` is the whole of a shortened one, shown under the pointer."""
    more = f"<title>{escaped(title)}</title>" if title and title != text else ""
    return f'<text class="{kind}" x="{at(x)}" y="{at(y)}" text-anchor="{anchor}">{escaped(text)}{more}</text>'


def outline(edges: Sequence[float], heights: Sequence[float], floor: float) -> list[Point]:
    """The corners of adjacent bars, from the floor and back to it."""
    points: list[Point] = [(edges[0], floor)]
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        points += [(left, height), (right, height)]
    return [*points, (edges[-1], floor)]
