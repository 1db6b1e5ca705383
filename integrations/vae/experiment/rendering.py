"""Tables of errors, for the console and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MARKS = {"better": " +", "worse": " -", "alike": "  "}
NOTHING = "  "

Row = dict[str, Any]
Lines = list[list[str]]


def overview(rows: Sequence[Row]) -> Lines:
    """One line a model and method, one column a table: median errors with a mark where they differ from the sum's."""
    names = list(dict.fromkeys(row["table"] for row in rows))
    kinds = list(dict.fromkeys((row["model"], row["method"]) for row in rows))
    found = {(row["model"], row["method"], row["table"]): row for row in rows}
    return [
        ["model", "method", *names],
        *([*kind, *(_cell(found.get((*kind, name))) for name in names)] for kind in kinds),
    ]


def column_table(rows: Sequence[Row], name: str) -> Lines:
    """The same of one table column by column: one line a column, one column a model and method."""
    own = [row for row in rows if row["table"] == name]
    columns = next((list(row["errors"]) for row in own if "errors" in row), [])
    head = ["column", *(f"{row['model']} {row['method']}" for row in own)]
    lines = [[" ".join(column.split()), *(_of_column(row, column) for row in own)] for column in columns]
    return [head, *lines, ["mean", *(_cell(row) for row in own)]]


def as_text(lines: Lines) -> str:
    """Columns below each other; words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    words = [all(not cell.strip()[:1].isdigit() for cell in column) for column in zip(*lines, strict=True)]
    padded = [
        "  ".join(
            f"{cell:<{width}}" if word else f"{cell:>{width}}"
            for cell, width, word in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([padded[0], "-" * len(padded[0]), *padded[1:]])


def as_markdown(lines: Lines) -> str:
    """A table that renders."""
    rule = ["---" for _ in lines[0]]
    return "\n".join(
        f"| {' | '.join(cell.strip().replace('|', chr(92) + '|') for cell in line)} |"
        for line in (lines[0], rule, *lines[1:])
    )


def format_error(error: float | None) -> str:
    """Four digits, or that there was nothing to measure."""
    return "none" if error is None else f"{error:.4f}"


def _cell(row: Row | None) -> str:
    if row is None:
        return NOTHING
    if "error" not in row:
        return f"{row['status']}{NOTHING}"
    return _marked(row["error"], row.get("against_sum", {}))


def _of_column(row: Row, column: str) -> str:
    if "errors" not in row:
        return NOTHING
    return _marked(row["errors"][column], row.get("against_sum", {}).get("columns", {}).get(column, {}))


def _marked(error: float | None, test: dict[str, Any]) -> str:
    return format_error(error) + MARKS[test.get("verdict", "alike")]
