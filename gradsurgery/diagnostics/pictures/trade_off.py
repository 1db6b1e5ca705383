"""What each method gains and what it pays for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor

from .canvas import BETTER, DIM, INK, WORSE, add_note, new_figure
from .checks import Array, checked, checked_names
from .labels import labels
from .selection import mean_known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panels: TypeAlias = "np.ndarray[tuple[int, int], Any]"  # of Axes

PANELS_A_ROW = 4
PANEL, ROW = 2.05, 0.22  # inches
FARTHEST = 100.0  # percent; what lies beyond is drawn at the edge


def draw_trade_off(changes: Mapping[str, Tensor], metrics: Sequence[str], *, title: str = "") -> Figure:
    """A panel a method, a bar a metric: how much better than with the plain sum it is, in percent.

    Bars are means over seeds, dots the seeds; a bar to the right is better, whichever way the metric counts.

    Args:
        changes: In percent, by method; positive where the method is better than the plain sum. NaN where unknown.
        metrics: Names of the M metrics.
        title: Above the picture.

    Shape:
        - changes: ``(S, M)`` each, S >= 1 seeds, which may be others for each method; M >= 1.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: a value of ``changes`` is no tensor, or ``metrics`` is no sequence of strings.
        ValueError: ``changes`` is empty, or a shape does not fit the metrics.

    Example:
        >>> import torch
        >>> figure = draw_trade_off({"upgrad": torch.tensor([[10.0, -2.0], [12.0, -4.0]])}, ["depth", "normals"])
        >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
        [11.0, -3.0]
    """
    known = checked_names("draw_trade_off", "metrics", metrics)
    methods = checked_names("draw_trade_off", "changes", list(changes))
    values = [
        checked("draw_trade_off", f"changes[{method!r}]", changes[method], "SM", {"M": len(known)})
        for method in methods
    ]
    limit = _limit(values)
    across = min(len(methods), PANELS_A_ROW)
    down = math.ceil(len(methods) / across)
    sides = labels(known, 24)
    width = 0.2 + 0.075 * max(map(len, sides)) + PANEL * across
    with new_figure("draw_trade_off", max(width, 4.6), (ROW * len(known) + 0.55) * down + 0.45, title) as figure:
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axes, method, value in zip(panels.flat, labels(methods, 22), values, strict=False):
            _draw_panel(axes, method, value, limit)
        _name_axes(panels, len(methods), sides, limit)
        add_note(
            figure,
            "Change against the plain sum, in %. Bars and numbers are means over seeds, dots are seeds.",
            f"What lies beyond {FARTHEST:g}% is drawn at the edge." if _beyond(values) else "",
            "A dash: no result." if any(np.isnan(value).all(0).any() for value in values) else "",
        )
    return figure


def _limit(values: Sequence[Array]) -> float:
    """How far the axis reaches to either side, in percent."""
    farthest = max(float(np.abs(value[~np.isnan(value)]).max(initial=0.0)) for value in values)
    return min(FARTHEST, max(farthest, 1.0))


def _beyond(values: Sequence[Array]) -> bool:
    return any(bool((np.abs(value) > FARTHEST).any()) for value in values)


def _draw_panel(axes: Axes, method: str, values: Array, limit: float) -> None:
    means = mean_known(values, 0)
    places = np.arange(len(means))
    colours = [BETTER if mean >= 0 else WORSE for mean in means]
    axes.barh(places, np.clip(np.nan_to_num(means), -limit, limit), 0.62, color=colours, alpha=0.75)
    if len(values) > 1:
        for seed in values:
            axes.plot(np.clip(seed, -limit, limit), places, "o", color=INK, markersize=2.4, alpha=0.7)
    axes.axvline(0.0, color=DIM, linewidth=0.8)
    beside = axes.get_yaxis_transform()
    for place, (mean, colour) in enumerate(zip(means.tolist(), colours, strict=True)):
        written = percent(mean)
        told = colour if written.startswith(("+", "−")) else DIM
        axes.text(1.02, place, written, transform=beside, va="center", fontsize=7.5, color=told)
    axes.set_title(method, loc="left", fontsize=9, fontweight="bold", parse_math=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _name_axes(panels: Panels, count: int, sides: Sequence[str], limit: float) -> None:
    """The metrics beside the panels to the left, percents below the lowest panel of each column."""
    for index, axes in enumerate(panels.flat):
        axes.set_visible(index < count)
        if index % panels.shape[1] == 0:
            axes.set_yticks(range(len(sides)), sides, parse_math=False)
        if index < count <= index + panels.shape[1]:
            axes.tick_params(axis="x", labelbottom=True)
            axes.set_xlabel("← worse · better →", fontsize=8, color=DIM)
    first = panels[0, 0]
    first.set_ylim(len(sides) - 0.4, -0.6)
    first.set_xlim(-1.08 * limit, 1.08 * limit)
    first.locator_params(axis="x", nbins=4, symmetric=True, steps=[1, 2, 5, 10])
    first.xaxis.set_major_formatter(lambda value, _: f"{value:g}%".replace("-", "−"))


def percent(value: float) -> str:
    """A change in percent, with its sign.

    Example:
        >>> percent(3.14), percent(-0.02), percent(-250.4), percent(-3e17), percent(math.nan)
        ('+3.1', '0.0', '−250', '−3e+17', '–')
    """
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1e5:
        written = f"{value:+.0e}"  # a training that diverged may be worse by hundreds of digits
    else:
        written = f"{value:+.0f}" if abs(value) >= 100 else f"{value:+.1f}"
    return "0.0" if written in ("+0.0", "-0.0") else written.replace("-", "−")
