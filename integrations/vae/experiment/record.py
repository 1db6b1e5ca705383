"""The file of a cell: its settings, what came out, and what that may depend on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from gradsurgery.whole_file import write_whole

from ..json_values import as_json
from ..stacked.medians import median_of_known
from .cell import Cell
from .surroundings import describe_surroundings

Record: TypeAlias = dict[str, Any]

FORMAT = 1


def finished(cell: Cell, seeds: Sequence[dict[str, Any]], seconds: float) -> Record:
    """The record of a cell that was trained.

    Args:
        cell: The cell.
        seeds: One :func:`seed_result` each.
        seconds: What training took, all seeds together.
    """
    results = {
        "seconds": round(seconds, 2),
        "error": median_of_known(own["error"] for own in seeds),
        "errors": _medians(own["errors"] for own in seeds),
        "log_likelihood": median_of_known(own["log_likelihood"] for own in seeds),
        "log_likelihoods": _medians(own["log_likelihoods"] for own in seeds),
        "seeds": list(seeds),
    }
    return {**_head(cell, "finished"), **as_json(results)}


def failed(cell: Cell, reason: str) -> Record:
    """The record of a cell that could not be trained."""
    return {**_head(cell, "failed"), "reason": reason}


def write_record(folder: Path, cell: Cell, record: Record) -> None:
    """Writes the file of a cell, whole or not at all."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(record_path(folder, cell), lambda file: file.write_text(text + "\n", encoding="utf-8"))


def read_record(folder: Path, cell: Cell) -> Record | None:
    """What is known of a cell with exactly these settings; ``None`` if nothing.

    Raises:
        ValueError: the file is no record of that cell.
    """
    path = record_path(folder, cell)
    if not path.is_file():
        return None
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        known = record["format"] == FORMAT and record["settings"] == cell.settings
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(
            f"experiment: `--out` must hold in {path.name} the cell that the file is named after, got something "
            f"else. Remove {path}."
        )
    return record


def record_path(folder: Path, cell: Cell) -> Path:
    """Where the file of a cell is."""
    return folder / f"{cell.name}.json"


def _head(cell: Cell, status: str) -> Record:
    return {
        "format": FORMAT,
        "status": status,
        "settings": cell.settings,
        "rows": len(cell.table),
        "schema": json.loads(cell.table.schema.to_json()),
        **describe_surroundings(),
    }


def _medians(seeds: Iterable[dict[str, float]]) -> dict[str, float]:
    own = list(seeds)
    return {name: median_of_known(seed[name] for seed in own) for name in own[0]}
