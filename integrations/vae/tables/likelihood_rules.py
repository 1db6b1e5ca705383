"""Clear cases for another likelihood than that of the kind; the rules are in the docstring of Schema.infer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from .cells import Floats, numbers
from .column import Column
from .inference import SPREAD

DISPERSION = 10
SHARE_RANGE = 0.8  # concentrations and rates are below 1 too, but seldom reach that far
SPIKE_SHARE = 0.5


def with_inferred_likelihood(column: Column, series: pd.Series) -> Column:
    """The column with another likelihood, and kind where need be, if one of the rules holds."""
    if column.kind == "ordinal":
        return replace(column, likelihood="ordinal") if (column.classes or 0) > 1 else column
    if column.discrete:
        return column
    cells = numbers(series)
    cells = cells[~np.isnan(cells)]
    if column.kind == "count":
        dispersed = cells.var() >= DISPERSION * cells.mean() > 0
        return replace(column, likelihood="negative_binomial") if dispersed else column
    if _are_shares(cells):
        return replace(column, likelihood="beta")
    if _have_a_spike(cells):
        return replace(column, kind="positive", likelihood="hurdle_lognormal")
    return column


def _are_shares(cells: Floats) -> bool:
    return bool(cells.min() > 0 and cells.max() < 1 and cells.max() - cells.min() >= SHARE_RANGE)


def _have_a_spike(cells: Floats) -> bool:
    above = cells[cells > 0]
    if not len(above) or cells.min() < 0:
        return False
    return bool((cells == 0).mean() >= SPIKE_SHARE and above.max() >= SPREAD * above.min())
