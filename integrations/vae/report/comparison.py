"""Two trainings of one model on one table that differ only in how the columns' gradients are combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import gradsurgery as gs

from ..models.registry import ModelName
from ..stacked.training import fit_seeds
from ..tables.table import Table
from ..training.evaluation import Evaluation, column_errors
from ..training.imputation import prior_rows
from ..training.methods import build_method
from ..training.preparation import Settings, batches, check_integer
from ..training.run import Run
from .conflicts import ConflictRecorder, Conflicts, conflicts_of

STAGES = 25
SAMPLED_ROWS = 4000
PLAIN = "sum"


@dataclass(frozen=True)
class Arm:
    """One of the two trainings.

    Args:
        name: The method, as the command line calls it.
        label: The method, as the page calls it.
        run: The training.
        evaluation: Of the test rows.
        reconstructions: Of the test rows, in original units, ``(M, D)``.
        samples: Rows drawn from the model, in original units, ``(SAMPLED_ROWS, D)``.
        conflicts: What the gradients did at the model's blocks, by name.
    """

    name: str
    label: str
    run: Run
    evaluation: Evaluation
    reconstructions: Tensor
    samples: Tensor
    conflicts: dict[str, Conflicts]


@dataclass(frozen=True)
class Comparison:
    """All that the page shows.

    Args:
        title: What the table is called.
        plain: The training with the plain sum.
        surgery: The training with the method.
        guesses: Test error of each column when every cell is guessed to be the training rows' mean or most frequent
            label, by name.
        stages: After how many epochs each stage of the recorded conflicts ended.
        settings: What was trained and how, by name.
    """

    title: str
    plain: Arm
    surgery: Arm
    guesses: dict[str, float]
    stages: tuple[int, ...]
    settings: dict[str, str]

    @property
    def arms(self) -> tuple[Arm, Arm]:
        """Both, the plain sum first."""
        return self.plain, self.surgery

    @property
    def table(self) -> Table:
        """The whole table."""
        return self.plain.run.table

    @property
    def test_cells(self) -> Tensor:
        """The cells of the test rows, ``(M, D)``, NaN where missing."""
        return self.table.values[self.plain.run.split.test]


def compare(
    table: Table,
    title: str = "table",
    *,
    method: str = "lossbalancer",
    model: ModelName = "vae",
    epochs: int = 100,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Trains a model with the plain sum and with a method, from the same seed, and gathers what happened.

    Args:
        table: The table.
        title: What it is called.
        method: One of :data:`METHODS`, other than the plain sum.
        model: One of :data:`MODELS`.
        epochs: Passes over the training rows, >= 1.
        batch_size: Rows a step. ``None``: the model's.
        seed: Of everything random.
        progress: Whether to show progress bars on standard error.

    Raises:
        ValueError: an argument is out of range, or ``method`` is the plain sum.
        RuntimeError: a loss stopped being finite.

    Cost:
        Two trainings.
    """
    if method == PLAIN:
        raise ValueError(
            f"compare: `method` must be other than the plain sum, which it is compared with, got {method!r}. "
            "Try 'lossbalancer'."
        )
    settings = Settings(model=model, epochs=epochs, batch_size=batch_size)
    settings.check("compare")
    check_integer("compare", "seed", seed, 0)
    stages = stage_ends(epochs)
    ends = [stage * steps_an_epoch(table, settings.rows_a_step, seed) for stage in stages]

    def train(name: str) -> Run:
        def recorded(seed: int) -> gs.Aggregator:
            return ConflictRecorder(build_method(name, seed), ends)

        (run,) = fit_seeds(
            table, recorded, seeds=[seed], model=model, epochs=epochs, batch_size=batch_size, progress=progress,
            title=f"{name:>{max(len(method), len(PLAIN))}}",
        )  # fmt: skip
        return run

    plain, surgery = (_arm(name, train(name), seed) for name in (PLAIN, method))
    guesses = guess_errors(table, plain.run.split.test, plain.run.split.train)
    facts = {
        "model": model,
        "method": method,
        "epochs": f"{epochs}",
        "rows a step": f"{settings.rows_a_step}",
        "seed": f"{seed}",
    }
    return Comparison(title, plain, surgery, guesses, stages, facts)


def stage_ends(epochs: int) -> tuple[int, ...]:
    """After how many epochs each stage of a record ends: the first epoch, then equal parts, at most ``STAGES``.

    Example:
        >>> stage_ends(4), stage_ends(100)[:3], len(stage_ends(100))
        ((1, 2, 3, 4), (1, 5, 9), 25)
    """
    return tuple(sorted({int(end) for end in np.linspace(1, epochs, STAGES)}))


def steps_an_epoch(table: Table, batch_size: int, seed: int) -> int:
    """How many steps one pass over the training rows takes."""
    rows = len(table.split(seed).train)
    return sum(1 for _ in batches(rows, batch_size, torch.Generator()))


def guess_errors(table: Table, rows: Tensor, source: Tensor) -> dict[str, float]:
    """Error of each column in some rows when every cell is guessed to be other rows' mean or most frequent label.

    Args:
        table: The whole table.
        rows: Numbers of the rows.
        source: Numbers of the rows that the guesses come from.
    """
    guesses = [_guess(table.values[source, d], column.discrete) for d, column in enumerate(table.schema)]
    errors = column_errors(table, rows, torch.stack(guesses).expand(len(rows), -1))
    return dict(zip(table.schema.names, errors.tolist(), strict=True))


def _guess(cells: Tensor, discrete: bool) -> Tensor:
    observed = cells[~cells.isnan()]
    return observed.mode().values if discrete else observed.mean()


def label_of(name: str) -> str:
    """What the page calls a method.

    Example:
        >>> label_of("sum"), label_of("lossbalancer"), label_of("lossbalancer+pcgrad")
        ('plain sum', 'LossBalancer', 'lossbalancer+pcgrad')
    """
    method = build_method(name)
    return "plain sum" if name == PLAIN else name if "+" in name else type(method).__name__


def _arm(name: str, run: Run, seed: int) -> Arm:
    samples = prior_rows(run.model, SAMPLED_ROWS, torch.Generator().manual_seed(seed))
    return Arm(name, label_of(name), run, run.evaluate(), run.reconstruct(), samples, conflicts_of(run.model))


def shares_of_pull(conflicts: Conflicts) -> Tensor:
    """Which share of all columns' pull each column has, averaged over the stages, ``(K,)``; NaN without weights."""
    lengths = conflicts.pulls
    return (lengths / lengths.nansum(-1, keepdim=True)).nanmean(0)


def imbalance(lengths: Tensor) -> list[float]:
    """How many times the longest is as long as the shortest, for each row; NaN where nothing is known.

    Infinite where a method silences a column.
    """
    found: Sequence[Tensor] = [row[~row.isnan()] for row in lengths]
    return [float(row.max() / row.min()) if len(row) else float("nan") for row in found]
