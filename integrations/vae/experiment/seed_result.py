"""What one seed of a cell came to: test errors and log-likelihoods, best epoch, history."""

from __future__ import annotations

from typing import Any

import torch

from ..tables.table import Table
from ..training.evaluation import mean_of
from ..training.run import Part, Run
from .hidden_cells import imputation_errors

PARTS: tuple[Part, ...] = ("train", "validation", "test")


def seed_result(run: Run, seed: int, truth: Table) -> dict[str, Any]:
    """The numbers of one seed; NaN where there is nothing to measure.

    Where the run's table hides cells of ``truth``, the errors are those of the hidden cells of the test rows, which
    no training step saw; beside them are those of the hidden cells of all rows and of the test rows' shown cells.
    Log-likelihoods are of shown cells.

    Args:
        run: The training.
        seed: Its seed.
        truth: The table with all its cells.
    """
    shown = run.evaluate("test")
    errors = {"shown": shown.errors}
    if not torch.equal(truth.observed, run.table.observed):
        errors |= _hidden_errors(run, truth)
    measured = errors.get("hidden", shown.errors)
    return {
        "seed": seed,
        "rows": {part: len(getattr(run.split, part)) for part in PARTS},
        "error": mean_of(measured),
        "errors": measured,
        **{f"errors_of_{which}_cells": own for which, own in errors.items() if len(errors) > 1},
        "log_likelihood": shown.log_likelihood,
        "log_likelihoods": shown.log_likelihoods,
        "best_epoch": run.best_epoch,
        "losses": [epoch.loss for epoch in run.history],
        "validation_errors": [epoch.validation_error for epoch in run.history],
    }


def _hidden_errors(run: Run, truth: Table) -> dict[str, dict[str, float]]:
    """Of the hidden cells of the test rows, and of all rows."""
    rows = {part: getattr(run.split, part) for part in PARTS}
    found = {part: run.reconstruct(part) for part in PARTS}
    everywhere = torch.cat([rows[part] for part in PARTS]), torch.cat([found[part] for part in PARTS])
    return {
        "hidden": imputation_errors(truth, run.table, rows["test"], found["test"]),
        "all_hidden": imputation_errors(truth, run.table, *everywhere),
    }
