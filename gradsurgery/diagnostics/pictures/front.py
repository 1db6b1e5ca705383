"""Which methods trade two metrics best."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .canvas import COLOURS, DIM, add_note, make_logarithmic, name_lines, new_figure, ranges_widely, show_lines_only
from .checks import Array, checked, checked_names
from .labels import cleaned, labels
from .selection import mean_known

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"


def draw_front(
    points: Mapping[str, Tensor], metrics: Sequence[str], *, higher_is_better: Collection[str] = (), title: str = ""
) -> Figure:
    """Two metrics against each other: small points are seeds, large ones their means, a method a colour and a shape.

    The line joins the means that no other mean beats in one metric without losing in the other; what lies beyond it,
    away from the better corner, is beaten. An axis is logarithmic where positive values differ by more than 30 times.

    Args:
        points: Values of the two metrics, by method; a row with NaN is left out.
        metrics: What the two are called.
        higher_is_better: Those of them that are; lower is better for the others.
        title: Above the picture.

    Shape:
        - points: ``(S, 2)`` each, S >= 1 seeds, which may be others for each method.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: a value of ``points`` is no tensor, or ``metrics`` is no sequence of strings.
        ValueError: ``points`` is empty, a shape does not fit, or there are not two metrics.

    Example:
        >>> import torch
        >>> points = {"sum": [[1.0, 4.0]], "upgrad": [[2.0, 2.0]], "mgda": [[3.0, 3.0]]}
        >>> figure = draw_front({name: torch.tensor(own) for name, own in points.items()}, ["depth", "normals"])
        >>> figure.axes[0].lines[-1].get_xydata().tolist()
        [[1.0, 4.0], [2.0, 2.0]]
    """
    known = checked_names("draw_front", "metrics", metrics, at_least=2)
    if len(known) != 2:
        raise ValueError(f"draw_front: `metrics` must be two, got {len(known)}. Draw two at a time.")
    methods = checked_names("draw_front", "points", list(points))
    values = [checked("draw_front", f"points[{method!r}]", points[method], "SM", {"M": 2}) for method in methods]
    values = [value[~np.isnan(value).any(1)] for value in values]
    means = np.stack([mean_known(value, 0) for value in values])
    signs = np.array([-1.0 if metric in higher_is_better else 1.0 for metric in known])
    with new_figure("draw_front", 7.6, 4.6, title) as figure:
        axes = figure.subplots()
        drawn = _draw_points(axes, labels(methods, 26), values, means)
        best = means[not_beaten(means * signs)]
        _draw_line(axes, best, signs)
        axes.set_xlabel(_says(known[0], signs[0]), parse_math=False)
        axes.set_ylabel(_says(known[1], signs[1]), parse_math=False)
        everything = np.concatenate(values)
        if ranges_widely(everything[:, 0]):
            make_logarithmic(axes, "x")
        if ranges_widely(everything[:, 1]):
            make_logarithmic(axes, "y")
        show_lines_only(axes)
        axes.grid(True)
        name_lines(figure, drawn)
        joined = "; the line joins the means that no other one beats" if len(best) > 1 else ""
        lost = [cleaned(method) for method, value in zip(methods, values, strict=True) if not len(value)]
        add_note(
            figure,
            f"Small points are seeds, large ones their means{joined}.",
            f"Without a result: {', '.join(lost)}." if lost else "",
        )
    return figure


def not_beaten(values: Array) -> NDArray[np.bool_]:
    """Which rows no other row beats: none is as low in every column and lower in one. Rows with NaN are beaten.

    Example:
        >>> not_beaten(np.array([[1.0, 4.0], [2.0, 2.0], [3.0, 3.0]])).tolist()
        [True, True, False]
    """
    as_low = np.logical_and.reduce(values[None, :, :] <= values[:, None, :], 2)
    lower = np.logical_or.reduce(values[None, :, :] < values[:, None, :], 2)
    beaten: NDArray[np.bool_] = np.logical_or.reduce(as_low & lower, 1) | np.isnan(values).any(1)
    return ~beaten


def _says(metric: str, sign: float) -> str:
    return f"{labels([metric], 40)[0]} ({'higher' if sign < 0 else 'lower'} is better)"


def _draw_points(axes: Axes, names: Sequence[str], values: Sequence[Array], means: Array) -> dict[str, Artist]:
    drawn: dict[str, Artist] = {}
    for index, (name, seeds) in enumerate(zip(names, values, strict=True)):
        if len(seeds):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            size = 12.0 if marker == "*" else 8.5  # a star of that size is as conspicuous as the others
            axes.plot(*seeds.T, marker, color=colour, markersize=size / 2.4, alpha=0.55, zorder=2)
            (drawn[name],) = axes.plot(
                *means[index], marker, color=colour, markersize=size, markeredgecolor="white", zorder=4
            )
    return drawn


def _draw_line(axes: Axes, best: Array, signs: Array) -> None:
    """Steps through the means that are not beaten, from the best in the first metric on."""
    order = np.lexsort((best * signs).T[::-1])
    axes.plot(*best[order].T, color=DIM, linewidth=1.0, drawstyle="steps-post", zorder=1)
