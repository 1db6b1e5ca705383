"""Trains one cell and keeps what came out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ..stacked.checkpoint import training_seconds
from ..stacked.training import fit_seeds
from ..training.methods import build_method
from .cell import LEARNING_RATE, Cell
from .hidden_cells import hide_cells
from .record import Record, failed, finished, write_record
from .seed_result import seed_result


def train_cell(cell: Cell, folder: Path, title: str) -> Record:
    """Trains a cell, or goes on with it, and writes its record; a training that fails has one too.

    Args:
        cell: The cell.
        folder: Where its files are: the record, and the checkpoint until there is one.
        title: For the progress bar.

    Raises:
        KeyboardInterrupt: it was interrupted; a checkpoint is left.
    """
    checkpoint = folder / f"{cell.name}.checkpoint"
    try:
        record = _train(cell, checkpoint, title)
    except (RuntimeError, ValueError) as error:
        record = failed(cell, str(error))
    write_record(folder, cell, record)
    if record["status"] == "finished":
        checkpoint.unlink(missing_ok=True)
    return record


def _train(cell: Cell, checkpoint: Path, title: str) -> Record:
    share = cell.hidden
    runs = fit_seeds(
        cell.table if share is None else [hide_cells(cell.table, share, seed) for seed in cell.seeds],
        partial(build_method, cell.method),
        seeds=cell.seeds,
        model=cell.model,
        rescale=cell.rescale,
        epochs=cell.epochs,
        batch_size=cell.batch_size,
        learning_rate=LEARNING_RATE,
        progress=True,
        title=title,
        checkpoint=checkpoint,
    )
    seeds = [seed_result(run, seed, cell.table) for run, seed in zip(runs, cell.seeds, strict=True)]
    return finished(cell, seeds, training_seconds(checkpoint))
