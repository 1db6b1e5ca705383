"""The tables of the experiment, from folders or CSV files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from ..tables.schema import Schema
from ..tables.table import Table

QUICK_ROWS = 2000


def load_tables(paths: Iterable[str | Path], *, quick: bool = False) -> dict[str, Table]:
    """The tables by name: that of the folder, or of the CSV file without its ending.

    Args:
        paths: Folders with ``data.csv`` and ``schema.json``, or CSV files, whose schema is inferred.
        quick: Whether to keep 2000 rows of each only, drawn with seed 0.

    Raises:
        FileNotFoundError: a path is neither.
        ValueError: two tables share a name, or one is not as its schema says.
    """
    tables: dict[str, Table] = {}
    for path in map(Path, paths):
        name = path.resolve().name if path.is_dir() else path.stem
        if name in tables:
            raise ValueError(
                f"experiment: `--data` must have distinct names, got {name!r} twice. Rename one of them."
            )
        table = _load(path)
        tables[name] = _some_rows(table) if quick else table
    return tables


def _load(path: Path) -> Table:
    if path.is_file() and path.suffix.lower() == ".csv":
        return Table.read_csv(path)
    data, schema = path / "data.csv", path / "schema.json"
    if not data.is_file() or not schema.is_file():
        raise FileNotFoundError(
            "experiment: `--data` must be a CSV file or a folder with data.csv and schema.json, "
            f"got {path}. Check its spelling."
        )
    return Table.read_csv(data, Schema.load(schema))


def _some_rows(table: Table) -> Table:
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    return Table(table.schema, table.values[order[:QUICK_ROWS]])
