"""What weights a method gave the losses as a model trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .canvas import (
    COLOURS,
    DIM,
    add_note,
    count_steps,
    make_logarithmic,
    name_lines,
    new_figure,
    ranges_widely,
    show_lines_only,
)
from .checks import Array, checked, checked_names, checked_steps
from .labels import labels
from .over_time import Bins, averaged, bins_of
from .selection import lowest_known, mean_known

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 7  # losses with a line; the others are one grey band


def draw_weights(steps: Tensor, weights: Tensor, names: Sequence[str], *, title: str = "") -> Figure:
    """A line a loss: its weight over the steps.

    More than 300 records are averaged into 300 bins, and bands show what was averaged. Of more than 7 losses those
    whose weights differ most from the others' are drawn, and a grey band for the rest. The axis is logarithmic where
    positive weights differ by more than 30 times.

    Args:
        steps: At which the weights were recorded, not falling.
        weights: Of the losses; NaN where unknown, which leaves a gap.
        names: Of the K losses.
        title: Above the picture.

    Shape:
        - steps: ``(T,)``, T >= 1.
        - weights: ``(T, K)``, K >= 1.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``steps`` or ``weights`` is no tensor, or ``names`` is no sequence of strings.
        ValueError: the shapes do not fit, or steps fall.

    Example:
        >>> import torch
        >>> figure = draw_weights(torch.tensor([0, 10]), torch.tensor([[1.0, 1.0], [0.4, 1.6]]), ["depth", "normals"])
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['normals', 'depth', '1, as in the plain sum']
    """
    known = checked_names("draw_weights", "names", names)
    at = checked_steps("draw_weights", steps)
    values = checked("draw_weights", "weights", weights, "TK", {"T": len(at), "K": len(known)})
    bins = bins_of(len(at))
    named = _most_different(values)
    with new_figure("draw_weights", 8.6, 3.4, title) as figure:
        axes = figure.subplots()
        drawn = _draw_lines(axes, bins, at, values, labels(known, 26), named)
        count_steps(axes)
        axes.set_ylabel("weight")
        if ranges_widely(values):
            make_logarithmic(axes, "y")
        show_lines_only(axes)
        name_lines(figure, drawn)
        left_out = f"{len(named)} of {len(known)} losses are lines: those whose weights differ most from the others'."
        absent = [name for name, column in zip(labels(known, 26), values.T, strict=True) if np.isnan(column).all()]
        add_note(
            figure,
            left_out if len(named) < len(known) else "",
            averaged(bins, "Lines are") + (" Bands reach from the smallest to the largest." if bins.size > 1 else ""),
            f"Without a weight: {', '.join(absent)}." if absent else "",
        )
    return figure


def _draw_lines(
    axes: Axes, bins: Bins, steps: Array, values: Array, names: Sequence[str], named: Sequence[int]
) -> dict[str, Artist]:
    """Draws them and gives those to be named, from the one that ends highest on."""
    places = bins.means(steps)
    means, (low, high) = bins.means(values), bins.ranges(values)
    marker = "o" if len(places) == 1 else ""
    drawn: dict[str, Artist] = {}
    for loss in sorted(named, key=lambda loss: -_last_known(means[:, loss])):
        colour = COLOURS[list(named).index(loss)]
        if bins.size > 1:
            axes.fill_between(places, low[:, loss], high[:, loss], color=colour, alpha=0.15, linewidth=0)
        (drawn[names[loss]],) = axes.plot(places, means[:, loss], color=colour, linewidth=1.6, marker=marker)
    others = np.delete(means, named, axis=1)
    if others.size:
        among = f"the other {others.shape[1]}"
        drawn[among] = axes.fill_between(
            places, lowest_known(others, 1), -lowest_known(-others, 1), color="#dde1e5", linewidth=0.8, zorder=0.5
        )
    bottom, top = np.nanmin(means, initial=np.inf), np.nanmax(means, initial=-np.inf)
    if bottom < 1.0 < top:
        drawn["1, as in the plain sum"] = axes.axhline(1.0, color=DIM, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    return drawn


def _last_known(line: Array) -> float:
    known = line[~np.isnan(line)]
    return float(known[-1]) if known.size else -np.inf


def _most_different(values: Array) -> list[int]:
    """The losses to name: all, or those that are farthest from the step's median weight on average."""
    count = values.shape[1]
    if count <= NAMED:
        return list(range(count))
    scaled = np.log(values) if ranges_widely(values) else values
    middle = torch.from_numpy(scaled).nanmedian(1, keepdim=True).values.numpy()
    distance = mean_known(np.abs(scaled - middle), 0)
    order = np.argsort(-np.nan_to_num(distance, nan=-1.0), kind="stable")
    return sorted(order[:NAMED].tolist())
