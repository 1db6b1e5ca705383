"""How the values of each column are distributed: in the table, and in what the models make of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from gradsurgery.diagnostics.page import escaped

from ..tables.cells import Floats
from ..tables.column import Column
from ..tables.schema import Schema
from . import text
from .bins import bin_edges, grows
from .charts import LABELS_SHOWN, histogram, shares


def marginals(schema: Schema, parts: Mapping[str, Tensor]) -> str:
    """A small chart a column.

    Args:
        schema: The columns.
        parts: Cells in original units, ``(rows, D)``, NaN where missing, by their class in the style sheet: those of
            the table, ``"data"``, come first if there are any.
    """
    arrays = {kind: part.numpy() for kind, part in parts.items()}
    figures = []
    for d, column in enumerate(schema):
        cells = {kind: part[~np.isnan(part[:, d]), d] for kind, part in arrays.items()}
        drawn, scale = _labels(column, cells) if column.discrete else _numbers(column, cells)
        figures.append(
            f"<figure><figcaption>{escaped(column.name)} <small>{column.kind}{scale}</small></figcaption>"
            f"{drawn}</figure>"
        )
    return f'<div class="small-multiples">{"".join(figures)}</div>'


def _numbers(column: Column, cells: Mapping[str, Floats]) -> tuple[str, str]:
    edges = bin_edges(column, next(iter(cells.values())))
    return histogram(edges, cells, f"distribution of {column.name}"), ", logarithmic" if grows(edges) else ""


def _labels(column: Column, cells: Mapping[str, Floats]) -> tuple[str, str]:
    """The most frequent labels by their share; the others count together."""
    labels = column.labels or ()
    counts = {
        kind: np.bincount(part.astype(np.int64), minlength=len(labels)) / max(1, len(part))
        for kind, part in cells.items()
    }
    shown = list(range(len(labels)))
    rest: list[int] = []
    if len(labels) > LABELS_SHOWN:
        first = next(iter(counts.values()))
        frequent = np.argsort(-first, kind="stable")[: LABELS_SHOWN - 1].tolist()
        rest = sorted({*shown} - {*frequent})
        shown = sorted(frequent) if column.kind == "ordinal" else frequent
    names = [_label(labels[code]) for code in shown]
    parts = {kind: [float(part[code]) for code in shown] for kind, part in counts.items()}
    if rest:
        names.append(f"{len(rest)} others")
        parts = {kind: [*part, float(counts[kind][rest].sum())] for kind, part in parts.items()}
    return shares(names, parts, f"shares of the labels of {column.name}"), ""


def _label(label: object) -> str:
    return text.quantity(label) if isinstance(label, float) else str(label)
