"""The kind of a column, read off its dtype and values; the rules are in the docstring of Schema.infer."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .cells import Floats, encode_cells, family, labels_of, numbers
from .column import Column, Kind

MANY_CODES = 12  # months: the longest everyday list that is written as numbers
REPEATS = 5
LARGEST_COUNT = 1000
SPREAD = 3
IDENTIFIER_ROWS = 20


def infer_column(series: pd.Series, kind: Kind | None = None) -> Column:
    """The column of a series, with its labels and dtype.

    Args:
        series: Named by a string.
        kind: Its kind if known. ``None``: by the rules of :meth:`Schema.infer`.

    Raises:
        TypeError, ValueError: the cells are of no known kind, or contradict ``kind``.
    """
    column = Column(str(series.name), infer_kind(series) if kind is None else kind)
    complete, _ = encode_cells(series, column)
    return complete


def infer_kind(series: pd.Series) -> Kind:
    """The first rule of :meth:`Schema.infer` that holds."""
    found = family(series)
    if isinstance(series.dtype, pd.CategoricalDtype):
        if series.dtype.ordered:
            return "ordinal"
        return "binary" if len(series.dtype.categories) == 2 else "categorical"
    if found == "boolean":
        return "binary"
    if found == "string":
        return _kind_of_strings(series)
    cells = numbers(series)
    return _kind_of_numbers(cells[~np.isnan(cells)], series.nunique())


def _kind_of_strings(series: pd.Series) -> Kind:
    different = len(labels_of(series))
    if different == int(series.notna().sum()) > IDENTIFIER_ROWS:
        raise ValueError(
            f"Schema: column {series.name!r} must repeat its labels, got {different} different ones in as many "
            f"cells. Drop it, or say kinds={{{series.name!r}: 'categorical'}} if it is meant."
        )
    return "binary" if different == 2 else "categorical"


def _kind_of_numbers(cells: Floats, different: int) -> Kind:
    if different == 2:
        return "binary"
    if 3 <= different <= MANY_CODES and len(cells) >= REPEATS * different:
        return "categorical"
    whole = bool((cells == np.rint(cells)).all())
    if whole and cells.min() >= 0 and cells.max() <= LARGEST_COUNT:
        return "count"
    amounts = cells.min() >= 0 if whole else cells.min() > 0
    return "positive" if amounts and cells.max() >= SPREAD * cells.min() else "real"
