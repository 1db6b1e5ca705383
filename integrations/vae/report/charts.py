"""The kinds of charts on the page: shapes of a column, matrices, lines over the training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..tables.cells import Floats
from . import text
from .svg import Point, drawing, line, outline, rectangle, words

FRAME = (270.0, 128.0)  # of the shape of a column
LABELS_SHOWN = 8
LEVELS = 20
NUMBERED_FROM = 13  # columns, from which on a matrix has numbers in place of names
HEADROOM = 2.5  # how far above the data's highest bar the lines of a model are followed


def histogram(edges: Floats, parts: Mapping[str, Floats], label: str) -> str:
    """The shares of each bin: filled for the data, an outline for each of the models.

    Args:
        edges: Of the bins.
        parts: Cells by the class that they have in the style sheet, those of the data first if there are any.
        label: For screen readers.
    """
    width, height = FRAME
    floor = height - 18
    inside = {
        kind: np.histogram(np.clip(cells, edges[0], edges[-1]), edges)[0] / max(1, len(cells))
        for kind, cells in parts.items()
    }
    highest = max(float(heights.max()) for heights in inside.values())
    data = float(inside["data"].max()) if "data" in inside else 0.0
    top = (min(highest, HEADROOM * data) if data > 0 else highest) or 1.0
    places = np.linspace(0, width, len(edges)).tolist()  # equally wide on paper, also where they grow
    body = []
    for kind, heights in inside.items():
        ends = [floor - (floor - 6) * min(float(share) / top, 1.2) for share in heights]
        body.append(line(outline(places, ends, floor), f"shape {kind}"))
    body.append(rectangle(0, floor, width, 1, "axis"))
    for x, value, anchor in _ticks(edges, width):
        body.append(words(x, height - 4, text.quantity(value), "tick", anchor=anchor))
    return drawing(width, height, label, body)


def _ticks(edges: Floats, width: float) -> list[tuple[float, float, str]]:
    """Where the axis of a histogram has its numbers: at both ends, and halfway if that is a round number of bins."""
    inwards = 0.5 if edges[0] % 1 == 0.5 and edges[1] % 1 == 0.5 else 0.0  # bins of whole numbers end in between
    ends = [(0.0, float(edges[0]) + inwards, "start"), (width, float(edges[-1]) - inwards, "end")]
    middle, odd = divmod(len(edges), 2)
    return [*ends, (width / 2, float(edges[middle]), "middle")] if odd and not inwards else ends


def shares(names: Sequence[str], parts: Mapping[str, Sequence[float]], label: str) -> str:
    """One row a label: a bar for the data's share, a mark for each of the models.

    Args:
        names: Of the labels.
        parts: The shares of the labels by class in the style sheet.
        label: For screen readers.
    """
    width, row = FRAME[0], 15.0
    short = [text.shortened(name, 14) for name in names]
    left = 14 + 5.8 * max(map(len, short))
    longest = max(max(part) for part in parts.values()) or 1.0
    body = []
    for index, name in enumerate(names):
        y = row * index
        body.append(words(left - 6, y + 11, short[index], "tick", anchor="end", title=name))
        for kind, part in parts.items():
            place = (width - left - 6) * part[index] / longest
            bar = rectangle(left, y + 2, place, row - 4, "shape data")
            body.append(bar if kind == "data" else _mark(left + place, y + row / 2, kind))
    return drawing(width, max(row * len(names), 30.0), label, body)


def _mark(x: float, y: float, kind: str) -> str:
    """A diamond for the plain sum, an upright line for surgery: they can be told apart without colour."""
    if kind == "plain":
        return line([(x, y - 5), (x + 4, y), (x, y + 5), (x - 4, y), (x, y - 5)], f"mark {kind}")
    return rectangle(x - 1.5, y - 6.5, 3, 13, f"mark {kind}")


def bars(values: Mapping[str, float], guess: float, longest: float, label: str) -> str:
    """Thin bars, one above the other, and where guessing would be."""
    height = 2 + 8.0 * len(values)
    body = [
        rectangle(0, 2 + 8 * index, 100 * min(value / longest, 1.0), 6, f"bar {kind}")
        for index, (kind, value) in enumerate(values.items())
        if math.isfinite(value)
    ]
    if math.isfinite(guess):
        body.append(rectangle(100 * min(guess / longest, 1.0) - 0.4, 0, 0.8, height, "guess"))
    return drawing(100, height, label, body, kind="bars", stretched=True)


def heat_map(cosines: Tensor, names: Sequence[str], label: str, limit: float) -> str:
    """A symmetric matrix of cosines; red where gradients are opposed, green where they agree.

    Args:
        cosines: The matrix.
        names: Of its rows.
        label: For screen readers.
        limit: The cosine at which colours are full, > 0.
    """
    count = len(names)
    named = count < NUMBERED_FROM
    cell = 30.0 if named else max(300.0 / count, 8.0)
    left, top = (104.0, 82.0) if named else (22.0, 14.0)
    body = [*_cells(cosines / limit, cell, left, top)]
    body.append(f'<path class="frame" d="M{left} {top}h{cell * count}v{cell * count}h{-cell * count}z"/>')
    for index, name in enumerate(names):
        middle = cell * (index + 0.5)
        if named:
            short = text.shortened(name, 12)
            body.append(words(left - 5, top + middle + 4, short, "tick", anchor="end", title=name))
            turned = f'<g transform="translate({left + middle + 3:.0f} {top - 5:.0f}) rotate(-45)">'
            body.append(f"{turned}{words(0, 0, text.shortened(name, 11), 'tick', title=name)}</g>")
        elif index == 0 or (index + 1) % 5 == 0:
            body.append(words(left - 4, top + middle + 4, f"{index + 1}", "tick", anchor="end"))
            body.append(words(left + middle, top - 4, f"{index + 1}", "tick", anchor="middle"))
    if named:
        body += _numbers(cosines, cell, left, top)
    margin = 56.0 if named else 4.0
    return drawing(
        left + cell * count + margin, top + cell * count + 4, label, body, kind="map named" if named else "map"
    )


def _cells(shades: Tensor, cell: float, left: float, top: float) -> list[str]:
    """One path a shade, which is far shorter than one element a cell."""
    places: dict[int, list[str]] = {}
    for row, values in enumerate(shades.tolist()):
        for column, value in enumerate(values):
            level = round(LEVELS * max(-1.0, min(value, 1.0))) if math.isfinite(value) and row != column else 0
            if level:
                where = f"M{left + cell * column:g} {top + cell * row:g}h{cell:g}v{cell:g}h-{cell:g}z"
                places.setdefault(level, []).append(where)
    return [
        f'<path class="{"opposed" if level < 0 else "agreeing"}" fill-opacity="{abs(level) / LEVELS:g}" '
        f'd="{"".join(where)}"/>'
        for level, where in sorted(places.items())
    ]


def _numbers(cosines: Tensor, cell: float, left: float, top: float) -> list[str]:
    return [
        words(left + cell * (column + 0.5), top + cell * (row + 0.5) + 4, text.cosine(value), "cell", anchor="middle")
        for row, values in enumerate(cosines.tolist())
        for column, value in enumerate(values)
        if row != column
    ]


@dataclass(frozen=True)
class Series:
    """One line of a chart over the training: its class in the style sheet and a value an epoch."""

    kind: str
    points: Sequence[Point]


def over_training(
    series: Sequence[Series], epochs: int, label: str, *, logarithmic: bool, marks: Sequence[Point] = ()
) -> str:
    """Lines over the epochs.

    Args:
        series: The lines; points that are not finite are left out.
        epochs: How many there were.
        label: For screen readers.
        logarithmic: Whether the upright axis is.
        marks: Points to mark, one a series in order.
    """
    width, height, left, top, floor = 520.0, 228.0, 46.0, 10.0, 190.0
    kept = [Series(own.kind, [point for point in own.points if math.isfinite(point[1])]) for own in series]
    values = [y for own in kept for _, y in own.points] or [1.0]
    ticks = _decades(min(values), max(values)) if logarithmic else _steps(max(values))
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> Point:
        part = math.log(y / low) / math.log(high / low) if logarithmic else (y - low) / (high - low)
        return left + (width - left - 12) * x / epochs, floor - (floor - top) * part

    body = []
    for tick in ticks:
        y = place(0, tick)[1]
        body += [
            rectangle(left, y, width - left - 12, 1, "grid"),
            words(left - 6, y + 4, f"{tick:,g}", "tick", anchor="end"),
        ]
    for epoch in sorted({0, epochs // 2, epochs}):
        body.append(words(place(epoch, low)[0], floor + 16, f"{epoch}", "tick", anchor="middle"))
    body.append(words((left + width) / 2, height - 5, "epoch", "tick", anchor="middle"))
    body += [line([place(*point) for point in own.points], f"line {own.kind}") for own in kept if own.points]
    for own, mark in zip(kept, marks, strict=False):
        x, y = place(*mark)
        body.append(f'<circle class="dot {own.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    return drawing(width, height, label, body, kind="wide")


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten that enclose both, at most seven of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    step = math.ceil((last - first) / 6)
    return [10.0**power for power in range(first, last + step, step)]


def _steps(high: float) -> list[float]:
    """Round numbers from 0 to beyond ``high``, about five of them."""
    rough = (high or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [step * index for index in range(math.ceil((high or 1.0) / step) + 1)]
