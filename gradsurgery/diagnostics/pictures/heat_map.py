"""Cells coloured by a cosine: red where gradients are opposed, blue where they agree, hatched where none is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..wording import cosine
from .canvas import INK
from .checks import Array
from .labels import padding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

COSINES = "RdBu"  # from red by white to blue, which colour-blind readers can tell apart
UNKNOWN = "Hatched: no value, as a gradient was zero or a loss was absent."
NUMBER_WIDTH = 0.36  # inches that a cell must have for its number to be legible
STEEP = 0.28  # inches below which names of columns are upright
NAME_HEIGHT = 0.15  # inches that a name takes


def hatch_unknown(axes: Axes) -> None:
    """What lies behind the cells, and shows where there is none."""
    axes.patch.set(facecolor="#f1f1f1", edgecolor="#a9a9a9", hatch="/////")


def name_rows(axes: Axes, names: Sequence[str], height: float) -> None:
    """Names to the left of rows of so many inches; only some where there is no room for all."""
    shown = range(0, len(names), _stride(height))
    axes.set_yticks(list(shown), [_padded(names[index]) for index in shown], parse_math=False)
    axes.tick_params(axis="y", length=0)


def name_columns(axes: Axes, names: Sequence[str], width: float) -> None:
    """Names below columns of so many inches, turned; only some where there is no room for all."""
    shown = range(0, len(names), _stride(width))
    there = [_padded(names[index]) for index in shown]
    if width < STEEP:
        axes.set_xticks(list(shown), there, rotation=90, parse_math=False)
    else:
        axes.set_xticks(list(shown), there, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    axes.tick_params(axis="x", length=0)


def _padded(name: str) -> str:
    return padding(name) + name


def _stride(room: float) -> int:
    return max(1, int(np.ceil(NAME_HEIGHT / room)))


def separate_cells(axes: Axes, rows: int, columns: int) -> None:
    """White lines between the cells, by minor ticks that are not seen themselves."""
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(False)
    axes.spines[:].set_visible(False)


def write_numbers(axes: Axes, values: Array) -> None:
    """The cosine of each cell, in white where the cell is dark."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.62 else INK
            axes.text(column, row, cosine(value), ha="center", va="center", fontsize=8, color=colour)


@dataclass(frozen=True)
class Ramp:
    """What the colours of a heat map mean."""

    heading: str
    ticks: tuple[float, ...]
    names: tuple[str, ...]


COSINE_RAMP = Ramp("cosine", (-1.0, 0.0, 1.0), ("−1 opposed", "0", "1 agreeing"))


def explain(beside: Axes, shown: ScalarMappable, ramp: Ramp) -> None:
    """Draws a colour bar into axes of its own."""
    bar = beside.figure.colorbar(shown, cax=beside)
    bar.outline.set_visible(False)
    bar.set_ticks(ramp.ticks, labels=ramp.names)
    beside.tick_params(length=2)
    beside.set_title(ramp.heading, loc="left", fontsize=8.5, pad=7)
