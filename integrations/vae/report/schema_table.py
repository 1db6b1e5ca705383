"""The schema that was inferred, and how to correct it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

import torch

from gradsurgery.diagnostics.page import escaped

from ..tables.column import FITTING, Column, Kind, Zeros
from ..tables.schema import Schema
from ..tables.table import Table
from . import text

LABELS_LISTED = 8
LABELS_WRITTEN = 100

KINDS: dict[Kind, str] = {
    "real": "any number",
    "positive": "numbers above zero, usually amounts",
    "count": "whole numbers from zero on",
    "binary": "two categories",
    "categorical": "categories without an order",
    "ordinal": "categories with an order",
}
ZEROS: dict[Zeros, str] = {
    "shift": "zeros are true values",
    "missing": "zeros stand for missing",
    "raise": "zeros are mistakes",
}


def schema_table(table: Table) -> str:
    """A row a column: kind, likelihood, missing share, values."""
    cells = []
    for d, column in enumerate(table.schema):
        observed = table.observed[:, d]
        share = text.share(float((~observed).double().mean()))
        values = _values(column, table.values[observed, d])
        cells.append(f'<td class="number">{share}</td><td>{values}</td>')
    return _rows(table.schema, '<th class="number">missing</th><th>values</th>', cells)


def schema_entries(schema: Schema) -> str:
    """The same of a schema without a table."""
    cells = [f"<td>{_labels(column)}</td>" for column in schema]
    return _rows(schema, "<th>labels</th>", cells)


def _rows(schema: Schema, heads: str, cells: Sequence[str]) -> str:
    rows = "".join(
        f'<tr><td class="number dim">{d + 1}</td><th scope="row">{escaped(column.name)}</th><td>{column.kind}</td>'
        f"<td>{column.likelihood_name.replace('_', ' ')}{_policy(column)}</td>{more}</tr>"
        for d, (column, more) in enumerate(zip(schema, cells, strict=True))
    )
    return (
        '<div class="scroll"><table class="schema"><thead><tr><th>#</th><th>column</th><th>kind</th>'
        f"<th>likelihood</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _policy(column: Column) -> str:
    return f"<small>{ZEROS[column.zeros]}</small>" if column.zeros else ""


def _values(column: Column, observed: torch.Tensor) -> str:
    """The range and the median of numbers, or the first labels."""
    if column.discrete:
        return _labels(column)
    low, middle, high = (float(value) for value in (observed.min(), observed.median(), observed.max()))
    return f"{text.quantity(low)} to {text.quantity(high)}, median {text.quantity(middle)}"


def _labels(column: Column) -> str:
    labels = column.labels or ()
    listed = ", ".join(escaped(text.shortened(label, 28)) for label in labels[:LABELS_LISTED])
    return f"{listed}, … ({len(labels)} labels)" if len(labels) > LABELS_LISTED else listed


def overriding(schema: Schema, table_name: str) -> str:
    """What to do where the schema is wrong, with this table's own entries to start from."""
    kinds = "".join(
        f"<tr><th scope='row'>{kind}</th><td>{meaning}</td><td>{', '.join(FITTING[kind])}</td></tr>"
        for kind, meaning in KINDS.items()
    )
    lines = ",\n".join(json.dumps(_entry(column), ensure_ascii=False) for column in schema)
    return (
        "<p>Kinds are read off the values, which cannot tell everything: whether codes have an order, whether a "
        "zero is an amount or “not recorded”. Where a row is wrong, copy the entries below into a file "
        "<code>schema.json</code>, change <code>type</code>, <code>likelihood</code> (optional, the first that fits "
        "is the usual one), <code>labels</code> or <code>zeros</code> (shift, missing or raise), and pass it on:</p>"
        f"<pre>gradsurgery-vae report {escaped(shlex.quote(table_name))} --schema schema.json --out report.html</pre>"
        '<div class="scroll"><table><thead><tr><th>type</th><th>for</th><th>likelihoods</th></tr></thead>'
        f"<tbody>{kinds}</tbody></table></div>"
        f"<details><summary>schema.json of this table</summary><pre>[\n{escaped(lines)}\n]</pre></details>"
    )


def _entry(column: Column) -> dict[str, object]:
    """The column's entry; very many labels are left to the table."""
    entry = column.to_entry()
    if len(column.labels or ()) > LABELS_WRITTEN:
        del entry["labels"]
    return entry
