"""What the cells came to together: medians over the seeds, and where they differ from the plain sum."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradsurgery.whole_file import write_whole

from .cell import Cell
from .comparison import compare
from .record import Record, read_record, record_path
from .rendering import as_markdown, as_text, column_table, overview

Row = dict[str, Any]


def summarise(cells: Sequence[Cell], folder: Path) -> list[Row]:
    """One row for each of the cells of which there is a record, in their order.

    The plain sum that a cell is compared with is the one with the same settings; it need not be among the cells.
    """
    rows = []
    for cell in cells:
        record = read_record(folder, cell)
        if record is not None:
            rows.append(_row(cell, record, read_record(folder, cell.baseline), folder))
    return rows


def _row(cell: Cell, record: Record, baseline: Record | None, folder: Path) -> Row:
    wanted = ("table", "model", "method", "seeds", "epochs", "batch_size", "rescale", "hidden")
    known = ("error", "errors", "log_likelihood", "seconds", "reason")
    row = {
        **{key: record["settings"][key] for key in wanted},
        "status": record["status"],
        **{key: record[key] for key in known if key in record},
        "file": record_path(folder, cell).name,
    }
    if cell.method == "sum" or len(cell.seeds) < 2 or baseline is None:
        return row
    if record["status"] != "finished" or baseline["status"] != "finished":
        return row
    return {**row, "against_sum": compare(record, baseline)}


def format_summary(rows: Sequence[Row]) -> str:
    """For the console: the errors of all cells, and of a single table column by column."""
    tables = [overview(rows)]
    if len({row["table"] for row in rows}) == 1:
        tables.append(column_table(rows, rows[0]["table"]))
    return "\n\n".join([*map(as_text, tables), legend(rows)])


def write_summary(rows: Sequence[Row], folder: Path) -> None:
    """Writes ``summary.json`` and ``summary.md``, with the columns of every table."""
    text = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / "summary.json", lambda file: file.write_text(text + "\n", encoding="utf-8"))
    parts = [as_markdown(overview(rows)), legend(rows)]
    for name in dict.fromkeys(row["table"] for row in rows):
        parts += [f"## {name}", as_markdown(column_table(rows, name))]
    page = "\n\n".join(parts)
    write_whole(folder / "summary.md", lambda file: file.write_text(page + "\n", encoding="utf-8"))


def legend(rows: Sequence[Row]) -> str:
    """What the numbers are."""
    share = rows[0]["hidden"]
    error = "test error" if share is None else f"error of hidden test cells ({share:.0%} hidden)"
    trained = ", ".join(dict.fromkeys(f"{row['table']} {row['model']} {row['epochs']}" for row in rows))
    seeds = len(rows[0]["seeds"])
    if seeds == 1:
        return f"{error.capitalize()} of a single seed, which no test compares.\nEpochs: {trained}."
    return (
        f"Median {error} of {seeds} seeds; +/-: better/worse than the plain sum "
        f"(corrected paired t-test, p < 0.1).\nEpochs: {trained}."
    )
