"""The command of the experiment; see ``--help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .cell import Cell
from .options import parse, plan
from .record import read_record
from .rendering import format_error
from .summary import format_summary, summarise, write_summary
from .tables import load_tables
from .training import train_cell

INTERRUPTED = 130  # what shells take it for


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what is not yet finished and prints the summary.

    Returns:
        The exit status: 0, 1 if a cell failed, 2 if there is something wrong with the options or files, 130 if
        interrupted.
    """
    options = parse(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted: what was trained is kept in {options.out}; give the same command to go on",
            file=sys.stderr,
        )
        return INTERRUPTED
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    folder = Path(options.out)
    cells = plan(options, load_tables(options.data, quick=options.quick))
    folder.mkdir(parents=True, exist_ok=True)  # now rather than after the first training
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"experiment: `--out` must be a folder that may be written to, got {folder}. Choose another one."
        )
    summarise(cells, folder)  # and so with files that are no records
    for number, cell in enumerate(cells, start=1):
        _complete(cell, folder, f"{number}/{len(cells)} {cell.title}")
        write_summary(summarise(cells, folder), folder)
    rows = summarise(cells, folder)
    print(format_summary(rows))
    print(f"\nsummary: {folder / 'summary.md'}, {folder / 'summary.json'}; one file a cell in {folder}")
    return int(any(row["status"] == "failed" for row in rows))


def _complete(cell: Cell, folder: Path, title: str) -> None:
    """Trains the cell unless it is finished."""
    known = read_record(folder, cell)
    if known is not None and known["status"] == "finished":
        print(f"{title}: finished before, error {format_error(known['error'])}")
        return
    record = train_cell(cell, folder, title)
    if record["status"] == "failed":
        print(f"{title}: failed: {record['reason']}", file=sys.stderr)
    else:
        print(f"{title}: error {format_error(record['error'])}, {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    # Matrices of width 50 gain nothing from a second thread, and lose much where another program runs.
    torch.set_num_threads(1)
    sys.exit(main())
