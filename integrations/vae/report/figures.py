"""What training did to every column, as one figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradsurgery.diagnostics.pictures import COLOURS, save_figure

from ..tables.cells import Floats
from ..tables.column import Column, Label
from ..training.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_comparison", "save_figure"]

DATA_COLOUR = "#C8C8C8"
BINS = 24
LABELS_SHOWN = 8
PANELS_A_ROW = 5


def draw_comparison(runs: Mapping[str, Run], title: str = "") -> Figure:
    """Errors of every column side by side, and below them the marginals of data and reconstructions.

    Both are those of the test rows. A reconstruction is the most likely value given the mean of the
    posterior; a method that overlooks a column shows it there as a single bar.

    Args:
        runs: Trained on the same table and split, by the name of the method; at least one.
        title: Above the figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no run.

    Example:
        >>> draw_comparison({})
        Traceback (most recent call last):
        ValueError: draw_comparison: `runs` must be at least one, got none. Pass {"sum": run, ...}.
    """
    if not runs:
        raise ValueError('draw_comparison: `runs` must be at least one, got none. Pass {"sum": run, ...}.')
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            "draw_comparison: matplotlib must be installed, got no module of that name. "
            'Run: pip install "gradsurgery[plots]"'
        ) from error
    columns = len(next(iter(runs.values())).table.schema)
    panel_rows = math.ceil(columns / PANELS_A_ROW)
    figure = Figure(figsize=(13, 4.0 + 2.3 * panel_rows), layout=ConstrainedLayoutEngine(h_pad=0.07))
    figure.suptitle(title, fontsize=14, fontweight="bold", parse_math=False)
    heights = [4.0, 2.3 * panel_rows]
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=heights, hspace=0.04).flat
    _draw_errors(top.subplots(), runs)
    legend = "Marginals of the test rows: data in grey, most likely reconstructions in colour"
    bottom.suptitle(legend, x=0.01, ha="left", fontsize=11)
    _draw_marginals(list(bottom.subplots(panel_rows, PANELS_A_ROW, squeeze=False).flat), runs)
    return figure


def _draw_errors(axes: Axes, runs: Mapping[str, Run]) -> None:
    """Grouped bars, one group a column and one for the mean."""
    evaluations = {name: run.evaluate() for name, run in runs.items()}
    columns = list(next(iter(evaluations.values())).errors)
    places = np.arange(len(columns) + 1.0)
    places[-1] += 0.4
    width = 0.8 / len(runs)
    for index, (name, evaluation) in enumerate(evaluations.items()):
        heights = [*evaluation.errors.values(), evaluation.error]
        offset = (index - (len(runs) - 1) / 2) * width
        bars = axes.bar(places + offset, heights, width, color=_colour(index + 1), label=name, zorder=2)
        axes.bar_label(bars, [f"{height:.3f}".lstrip("0") for height in heights], fontsize=7.5, padding=1)
    axes.axvline(len(columns) - 0.3, color="0.7", linewidth=0.8)
    axes.set_xticks(places, [*columns, "mean"], parse_math=False)
    axes.get_xticklabels()[-1].set_fontweight("bold")
    if len(columns) > 12:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, places[-1] + 0.6)
    axes.set_ylabel("test error")
    axes.set_title("Reconstruction error of every column (0 is perfect)", loc="left", fontsize=11)
    axes.legend(frameon=False, ncols=len(runs))
    axes.grid(axis="y", color="0.92", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_marginals(panels: Sequence[Axes], runs: Mapping[str, Run]) -> None:
    """One panel a column."""
    first = next(iter(runs.values()))
    data = first.table.values[first.split.test].numpy()
    cells = [data, *(run.reconstruct().numpy() for run in runs.values())]
    for d, column in enumerate(first.table.schema):
        draw = _draw_labels if column.discrete else _draw_numbers
        draw(panels[d], column, [part[~np.isnan(part[:, d]), d] for part in cells])
        panels[d].set_title(f"{column.name} ({column.kind})", fontsize=9, parse_math=False)
        panels[d].set_yticks([])
        panels[d].spines[["top", "right", "left"]].set_visible(False)
        panels[d].tick_params(labelsize=7)
    for panel in panels[len(first.table.schema) :]:
        panel.axis("off")


def _draw_labels(axes: Axes, column: Column, cells: Sequence[Floats]) -> None:
    """The share of each label: one bar for the data, one a method beside it."""
    labels = column.labels or ()
    width = 0.8 / len(cells)
    for index, part in enumerate(cells):
        shares = np.bincount(part.astype(np.int64), minlength=len(labels)) / max(1, len(part))
        offset = (index - (len(cells) - 1) / 2) * width
        axes.bar(np.arange(len(labels)) + offset, shares, width, color=_colour(index))
    shown = range(0, len(labels), math.ceil(len(labels) / LABELS_SHOWN))
    axes.set_xticks(list(shown), [_short(labels[code]) for code in shown], parse_math=False)


def _draw_numbers(axes: Axes, column: Column, cells: Sequence[Floats]) -> None:
    """The share of each bin: filled for the data, an outline for each method.

    The bins cover 99% of the data; what lies beyond is counted in the outermost ones.
    """
    edges = _edges(column, cells[0])
    for index, part in enumerate(cells):
        counts, _ = np.histogram(np.clip(part, edges[0], edges[-1]), edges)
        axes.stairs(counts / max(1, len(part)), edges, fill=index == 0, color=_colour(index), linewidth=1.6)


def _edges(column: Column, data: Floats) -> Floats:
    low, high = np.quantile(data, [0.005, 0.995]) if len(data) else (0.0, 0.0)
    if column.kind == "count":
        # A bin holds the same number of whole numbers as its neighbour, or its height means nothing.
        step = math.ceil((high - low + 1) / BINS)
        return np.arange(low, high + step + 1, step) - 0.5
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def _colour(index: int) -> str:
    """Grey for the data, which come first, then one a method."""
    return DATA_COLOUR if index == 0 else COLOURS[(index - 1) % len(COLOURS)]


def _short(label: Label) -> str:
    text = f"{label:.3g}" if isinstance(label, float) else str(label)
    return text if len(text) <= 8 else f"{text[:7]}…"
