"""Which losses pull against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..wording import share
from .arrangement import heat_map_figure
from .canvas import INK
from .checks import Array, checked, checked_cosines, checked_names, within
from .heat_map import (
    COSINE_RAMP,
    COSINES,
    NUMBER_WIDTH,
    UNKNOWN,
    Ramp,
    explain,
    hatch_unknown,
    name_columns,
    name_rows,
    separate_cells,
    write_numbers,
)
from .labels import labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARES = "Purples"
SHARE_RAMP = Ramp("conflict", (0.0, 0.5, 1.0), ("never", "half the time", "always"))
NAME_LENGTH = 24


def draw_pairs(cosines: Tensor, names: Sequence[str], *, shares: Tensor | None = None, title: str = "") -> Figure:
    """A heat map of losses by losses: the cosine between the gradients of two of them.

    Red is opposed, blue agreeing, hatched unknown; the numbers are in the cells while they can be read. With
    ``shares``, cosines are below the diagonal, and above it is how often the two conflict.

    Args:
        cosines: Between gradients, -1 to 1; NaN where unknown. The diagonal is not shown.
        names: Of the K losses; long ones lose their middle.
        shares: How often two losses conflict, 0 to 1.
        title: Above the picture.

    Shape:
        - cosines, shares: ``(K, K)``, K >= 1; made for up to 40.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``cosines`` is no tensor, or ``names`` is no sequence of strings.
        ValueError: a shape does not fit the names, or a value lies outside its range.

    Example:
        >>> import torch
        >>> figure = draw_pairs(torch.tensor([[1.0, -0.6], [-0.6, 1.0]]), ["depth", "normals"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['−.60', '−.60']
    """
    known = checked_names("draw_pairs", "names", names)
    count = len(known)
    values = checked_cosines("draw_pairs", cosines, "KK", {"K": count})
    often = None
    if shares is not None:
        often = checked("draw_pairs", "shares", shares, "KK", {"K": count})
        often = within("draw_pairs", "shares", often, 0.0, 1.0, "A share of 30% is 0.3.")
    cell = min(0.6, max(0.2, 7.2 / count))
    side = cell * count
    short = labels(known, NAME_LENGTH)
    bars = 1 if often is None else 2
    with heat_map_figure("draw_pairs", (side, side), bars, title, _notes(values, often)) as (figure, axes, beside):
        _draw_cells(axes, beside, values, often, cell)
        name_rows(axes, short, cell)
        name_columns(axes, short, cell)
    return figure


def _draw_cells(axes: Axes, beside: Sequence[Axes], values: Array, often: Array | None, cell: float) -> None:
    count = len(values)
    itself = np.eye(count, dtype=bool)
    lower = np.tri(count, k=-1, dtype=bool)
    shown = np.where(itself if often is None else ~lower, np.nan, values)
    hatch_unknown(axes)
    image = axes.imshow(shown, cmap=COSINES, vmin=-1.0, vmax=1.0, interpolation="nearest")
    explain(beside[0], image, COSINE_RAMP)
    if often is not None:
        above = np.where(lower.T, often, np.nan)
        image = axes.imshow(above, cmap=SHARES, vmin=0.0, vmax=1.0, interpolation="nearest")
        explain(beside[1], image, SHARE_RAMP)
    axes.imshow(np.where(itself, 0.0, np.nan), cmap="Greys", vmin=-0.2, vmax=1.0, interpolation="nearest")
    if cell > 0.22:
        separate_cells(axes, count, count)
    if cell >= NUMBER_WIDTH:
        write_numbers(axes, shown)
        if often is not None:
            _write_shares(axes, above)


def _write_shares(axes: Axes, often: Array) -> None:
    for (row, column), value in np.ndenumerate(often):
        if np.isfinite(value):
            colour = "white" if value > 0.6 else INK
            axes.text(column, row, share(round(value, 2)), ha="center", va="center", fontsize=7.5, color=colour)


def _notes(values: Array, often: Array | None) -> list[str]:
    if len(values) == 1:
        return ["One loss: there is no pair."]
    pairs = ~np.eye(len(values), dtype=bool)
    where = "Below the diagonal: the cosine. Above it: how often the two conflict."
    unknown = np.isnan(values[pairs]).any() or (often is not None and np.isnan(often[pairs]).any())
    return ["" if often is None else where, UNKNOWN if unknown else ""]
