"""A history as rows, for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..similarity import pairs

if TYPE_CHECKING:
    import pandas

    from .history import History

PAIR_COLUMNS = (
    "step",
    "group",
    "first",
    "second",
    "cosine",
    "magnitude_ratio",
    "magnitude_similarity",
    "conflicting",
)
LOSS_COLUMNS = ("step", "group", "loss", "value", "norm", "weight")


def pair_rows(history: History) -> list[dict[str, Any]]:
    """A row for each step, group and pair of losses."""
    between = pairs(len(history.names))
    first, second = [i for i, _ in between], [j for _, j in between]
    found = [each[..., first, second].tolist() for each in history.compared()]
    rows = []
    for time, step in enumerate(history.steps.tolist()):
        for place, group in enumerate(history.groups):
            for position, (i, j) in enumerate(between):
                numbers = (each[time][place][position] for each in found)
                cosine, ratio, similarity, conflict = numbers
                values = (step, group, history.names[i], history.names[j], cosine, ratio, similarity, conflict)
                rows.append(dict(zip(PAIR_COLUMNS, values, strict=True)))
    return rows


def loss_rows(history: History) -> list[dict[str, Any]]:
    """A row for each step, group and loss."""
    weights = history.weights
    if weights is not None and weights.ndim == 3 and weights.shape[1] != len(history.groups):
        weights = weights.nanmean(1)  # of groups that are not those of the Gramians
    own = None if weights is None else weights.tolist()
    values, lengths = history.losses.tolist(), history.norms.tolist()
    rows = []
    for time, step in enumerate(history.steps.tolist()):
        for place, group in enumerate(history.groups):
            for k, name in enumerate(history.names):
                weight = math.nan
                if own is not None and weights is not None:
                    weight = own[time][k] if weights.ndim == 2 else own[time][place][k]
                row = (step, group, name, values[time][k], lengths[time][place][k], weight)
                rows.append(dict(zip(LOSS_COLUMNS, row, strict=True)))
    return rows


def frame_of(rows: Sequence[dict[str, Any]], caller: str) -> pandas.DataFrame:
    """Rows as a table.

    Raises:
        ImportError: pandas is not installed.
    """
    columns = LOSS_COLUMNS if caller == "losses_to_pandas" else PAIR_COLUMNS
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"History.{caller}: pandas must be installed, got no module of that name. Run: pip install pandas; "
            f"History.rows() needs none."
        ) from error
    return pandas.DataFrame(list(rows), columns=list(columns))
