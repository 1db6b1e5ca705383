"""When in a training losses pull against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .. import similarity
from .arrangement import heat_map_figure
from .canvas import count_steps, new_figure, say_instead
from .checks import checked_cosines, checked_names, checked_steps
from .heat_map import COSINE_RAMP, COSINES, UNKNOWN, explain, hatch_unknown, name_rows
from .labels import pair_labels
from .over_time import averaged, bins_of
from .selection import mean_known, most_opposed, upper_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS = 30  # shown at most
WIDTH = 6.4  # inches
ROW = 0.24


def draw_time(steps: Tensor, cosines: Tensor, names: Sequence[str], *, title: str = "") -> Figure:
    """A heat map of pairs of losses by steps: how the cosine between two gradients changes as a model trains.

    More than 300 records are averaged into 300 bins. Of more than 30 pairs those with the lowest mean cosine are
    shown. The picture says so.

    Args:
        steps: At which the cosines were recorded, not falling.
        cosines: Between gradients, -1 to 1; NaN where unknown.
        names: Of the K losses.
        title: Above the picture.

    Shape:
        - steps: ``(T,)``, T >= 1.
        - cosines: ``(T, K, K)``, K >= 1.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``steps`` or ``cosines`` is no tensor, or ``names`` is no sequence of strings.
        ValueError: the shapes do not fit, a cosine lies outside of -1 to 1, or steps fall.

    Example:
        >>> import torch
        >>> cosines = torch.tensor([[[1.0, 0.2], [0.2, 1.0]], [[1.0, -0.6], [-0.6, 1.0]]])
        >>> figure = draw_time(torch.tensor([0, 10]), cosines, ["depth", "normals"])
        >>> figure.axes[0].collections[0].get_array().round(2).tolist()
        [[0.2, -0.6]]
    """
    known = checked_names("draw_time", "names", names)
    at = checked_steps("draw_time", steps)
    values = upper_pairs(checked_cosines("draw_time", cosines, "TKK", {"T": len(at), "K": len(known)}))
    if len(known) == 1:
        with new_figure("draw_time", 4.6, 1.0, title) as figure:
            say_instead(figure, "One loss: there is no pair.")
        return figure
    bins = bins_of(len(at))
    rows = most_opposed(mean_known(values, 0), PAIRS)
    shown = bins.means(values[:, rows]).T
    pairs = similarity.pairs(len(known))
    sides = pair_labels(known, [pairs[row] for row in rows], 16)
    height = max(ROW, 1.2 / len(rows))
    notes = [
        f"{len(rows)} of {len(pairs)} pairs are shown: those with the lowest mean." if len(rows) < len(pairs) else "",
        averaged(bins, "Each cell is"),
        UNKNOWN if np.isnan(shown).any() else "",
    ]
    size = (WIDTH, height * len(rows))
    with heat_map_figure("draw_time", size, 1, title, notes) as (figure, axes, (bar,)):
        hatch_unknown(axes)
        edges = (bins.edges(at), np.arange(len(rows) + 1) - 0.5)
        mesh = axes.pcolormesh(*edges, shown, cmap=COSINES, vmin=-1.0, vmax=1.0, rasterized=True)
        explain(bar, mesh, COSINE_RAMP)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(edges[0][0], edges[0][-1])
        name_rows(axes, sides, height)
        count_steps(axes)
        axes.spines[:].set_visible(False)
    return figure
