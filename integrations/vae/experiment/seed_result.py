"""What one seed of a cell came to: test errors and log-likelihoods, best epoch, history."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..evaluation import mean_of
from ..run import Part, Run
from ..table import Table
from .hidden_cells import imputation_errors

PARTS: tuple[Part, ...] = ("train", "validation", "test")


def seed_result(run: Run, seed: int, truth: Table) -> dict[str, Any]:
    """The numbers of one seed, ready for JSON.

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
        "error": number(mean_of(measured)),
        "errors": numbers(measured),
        **{f"errors_of_{which}_cells": numbers(own) for which, own in errors.items() if len(errors) > 1},
        "log_likelihood": number(shown.log_likelihood),
        "log_likelihoods": numbers(shown.log_likelihoods),
        "best_epoch": run.best_epoch,
        "losses": [number(epoch.loss) for epoch in run.history],
        "validation_errors": [number(epoch.validation_error) for epoch in run.history],
    }


def number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def numbers(by_name: Mapping[str, float]) -> dict[str, float | None]:
    """The same of several."""
    return {name: number(value) for name, value in by_name.items()}


def _hidden_errors(run: Run, truth: Table) -> dict[str, dict[str, float]]:
    """Of the hidden cells of the test rows, and of all rows."""
    rows = {part: getattr(run.split, part) for part in PARTS}
    found = {part: run.reconstruct(part) for part in PARTS}
    everywhere = torch.cat([rows[part] for part in PARTS]), torch.cat([found[part] for part in PARTS])
    return {
        "hidden": imputation_errors(truth, run.table, rows["test"], found["test"]),
        "all_hidden": imputation_errors(truth, run.table, *everywhere),
    }
