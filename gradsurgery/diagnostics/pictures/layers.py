"""Where in a model losses pull against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .. import similarity
from .arrangement import heat_map_figure
from .canvas import new_figure, say_instead
from .checks import checked_cosines, checked_names
from .heat_map import (
    COSINE_RAMP,
    COSINES,
    NUMBER_WIDTH,
    UNKNOWN,
    explain,
    hatch_unknown,
    name_columns,
    name_rows,
    separate_cells,
    write_numbers,
)
from .labels import labels, pair_labels
from .selection import lowest_known, most_opposed, upper_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS = 32  # shown at most
PAIRS = 24
NUMBERS = 400
ROW = 0.24  # inches


def draw_layers(cosines: Tensor, groups: Sequence[str], names: Sequence[str], *, title: str = "") -> Figure:
    """A heat map of layers by pairs of losses: the cosine between two losses' gradients in each layer.

    Of more than 32 layers or 24 pairs those with the lowest cosines are shown, in the model's order, and the picture
    says so.

    Args:
        cosines: Between gradients, -1 to 1; NaN where unknown.
        groups: Of the B layers, from the input on.
        names: Of the K losses.
        title: Above the picture.

    Shape:
        - cosines: ``(B, K, K)``, B >= 1, K >= 1.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``cosines`` is no tensor, or ``groups`` or ``names`` are no sequence of strings.
        ValueError: the shape does not fit the names, or a cosine lies outside of -1 to 1.

    Example:
        >>> import torch
        >>> cosines = torch.tensor([[[1.0, 0.2], [0.2, 1.0]], [[1.0, -0.6], [-0.6, 1.0]]])
        >>> figure = draw_layers(cosines, ["trunk.0", "trunk.2"], ["depth", "normals"])
        >>> figure.axes[0].images[0].get_array().round(2).tolist()
        [[0.2], [-0.6]]
    """
    known = checked_names("draw_layers", "names", names)
    layers = checked_names("draw_layers", "groups", groups)
    sizes = {"B": len(layers), "K": len(known)}
    values = upper_pairs(checked_cosines("draw_layers", cosines, "BKK", sizes))
    if len(known) == 1:
        with new_figure("draw_layers", 4.6, 1.0, title) as figure:
            say_instead(figure, "One loss: there is no pair.")
        return figure
    rows = most_opposed(lowest_known(values, 1), LAYERS)
    columns = most_opposed(lowest_known(values, 0), PAIRS)
    shown = values[np.ix_(rows, columns)]
    pairs = similarity.pairs(len(known))
    heads = pair_labels(known, [pairs[column] for column in columns], 14)
    sides = labels([layers[row] for row in rows], 36)
    width = min(1.1, max(0.29, 6.5 / len(columns)))
    height = max(ROW, 1.2 / len(rows))
    notes = [
        _left_out(len(rows), len(layers), "layers"),
        _left_out(len(columns), len(pairs), "pairs"),
        UNKNOWN if np.isnan(shown).any() else "",
    ]
    size = (width * len(columns), height * len(rows))
    with heat_map_figure("draw_layers", size, 1, title, notes) as (figure, axes, (bar,)):
        hatch_unknown(axes)
        image = axes.imshow(shown, cmap=COSINES, vmin=-1.0, vmax=1.0, interpolation="nearest", aspect="auto")
        explain(bar, image, COSINE_RAMP)
        name_rows(axes, sides, height)
        name_columns(axes, heads, width)
        separate_cells(axes, *shown.shape)
        if width >= NUMBER_WIDTH and shown.size <= NUMBERS:
            write_numbers(axes, shown)
    return figure


def _left_out(shown: int, there: int, what: str) -> str:
    return f"{shown} of {there} {what} are shown: those with the lowest cosines." if shown < there else ""
