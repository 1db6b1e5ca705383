"""Imputation: some observed cells are hidden from the model, which is asked for them afterwards."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..tables.table import Table
from ..training.evaluation import column_errors


def hide_cells(table: Table, share: float, seed: int) -> Table:
    """The table with some of its observed cells missing, in all rows and as many in each column.

    Args:
        table: The table; it stays as it is.
        share: Of each column's observed cells, in (0, 1); rounded to whole cells.
        seed: Draws them, >= 0, independently of the split by the same seed.

    Raises:
        ValueError: ``share`` is out of range, or too small for a single cell.

    Example:
        >>> import pandas as pd
        >>> table = Table.from_frame(pd.DataFrame({"x": [None, *range(10)]}))
        >>> hidden = hide_cells(table, 0.2, seed=0)
        >>> int(table.observed.sum()), int(hidden.observed.sum())
        (10, 8)
    """
    if not 0 < share < 1:
        raise ValueError(f"hide_cells: `share` must be between 0 and 1, got {share}. Try 0.2.")
    # The split draws by the seed itself, the training by its first two words.
    word = int(np.random.SeedSequence(seed).generate_state(3)[2])
    generator = torch.Generator().manual_seed(word)
    values = table.values.clone()
    for d in range(len(table.schema)):
        (rows,) = table.observed[:, d].nonzero(as_tuple=True)
        order = torch.randperm(len(rows), generator=generator)
        values[rows[order[: round(share * len(rows))]], d] = torch.nan
    hidden = Table(table.schema, values)
    if torch.equal(hidden.observed, table.observed):
        raise ValueError(f"hide_cells: `share` must be enough for one cell of a column, got {share}. Try 0.2.")
    return hidden


def imputation_errors(truth: Table, hidden: Table, rows: Tensor, reconstruction: Tensor) -> dict[str, float]:
    """The error of each column over its hidden cells, by name; see :func:`column_errors`.

    Args:
        truth: The table with its cells.
        hidden: What the model was shown.
        rows: The rows that were reconstructed, ``(M,)``.
        reconstruction: ``(M, D)``, from what ``hidden`` shows of them.

    Shape:
        - output: one number a column; NaN where none of its cells in these rows is hidden.
    """
    asked = (truth.observed & ~hidden.observed)[rows]
    errors = {}
    for d, name in enumerate(truth.schema.names):
        own = asked[:, d]
        errors[name] = float(column_errors(truth, rows[own], reconstruction[own])[d])
    return errors
