"""Rows that a fitted model makes up: cells in place of missing ones, or all of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.latent_model import LatentModel
from ..tables.cells import decode_cells
from ..tables.column import Label
from ..tables.table import Table
from .evaluation import ROWS_AT_ONCE


@torch.no_grad()
def posterior_rows(model: LatentModel, features: Tensor, generator: torch.Generator) -> Tensor:
    """One draw of each row given what is known of it: z ~ q(z | x), then cells ~ p(x | z).

    Args:
        model: In evaluation mode.
        features: The encoder's input, ``(N, F)``.
        generator: Of all draws.

    Shape:
        - output: ``(N, D)``, float64, in original units.
    """
    chunks = [
        _cells(model, model.posterior_draw(chunk, generator), generator) for chunk in features.split(ROWS_AT_ONCE)
    ]
    return torch.cat(chunks)


@torch.no_grad()
def prior_rows(model: LatentModel, rows: int, generator: torch.Generator) -> Tensor:
    """Draws of new rows, z from the prior and cells ~ p(x | z), as :func:`posterior_rows` returns them."""
    sizes = [min(ROWS_AT_ONCE, rows - start) for start in range(0, rows, ROWS_AT_ONCE)]
    return torch.cat([_cells(model, model.prior_draw(size, generator), generator) for size in sizes])


def fill_missing(frame: pd.DataFrame, table: Table, cells: Tensor) -> pd.DataFrame:
    """The frame with cells in place of its missing ones; all others, index and order stay as they are.

    A column keeps its dtype if that can hold what is filled in; else, or if nothing is observed, it gets the
    dtype of the table the schema was inferred from. A categorical column gets the categories it lacks behind
    its own, an ordered one in the order of the schema's labels if its own are in that order too.

    Args:
        frame: The rows.
        table: The rows encoded; its ``observed`` says what is missing. The zeros of a column whose ``zeros``
            are ``"missing"`` are.
        cells: What to fill in, ``(N, D)``, in original units.

    Example:
        >>> frame = pd.DataFrame({"size": [1.5, None, 3.0, 4.5] * 3, "colour": ["red", "blue", None, "red"] * 3})
        >>> table = Table.from_frame(frame)
        >>> fill_missing(frame, table, torch.tensor([[2.0, 0.0]]).expand(12, 2)).head(3)
           size colour
        0   1.5    red
        1   2.0   blue
        2   3.0   blue
    """
    filled = dict(frame.items())
    for d, column in enumerate(table.schema):
        missing = ~table.observed[:, d].numpy()
        if missing.any():
            found = decode_cells(cells[:, d].double().numpy()[missing], column)
            filled[column.name] = _filled(frame[column.name], missing, found, column.labels or ())
    return pd.DataFrame(filled, index=frame.index)


def _cells(model: LatentModel, latent: Tensor, generator: torch.Generator) -> Tensor:
    parameters = zip(model.likelihoods, model.decode(latent), strict=True)
    return torch.stack([likelihood.sample(eta, generator).double() for likelihood, eta in parameters], dim=1)


def _filled(series: pd.Series, missing: NDArray[np.bool_], found: pd.Series, labels: tuple[Label, ...]) -> pd.Series:
    if isinstance(series.dtype, pd.CategoricalDtype):
        own = series.cat.categories.tolist()
        lacking = [label for label in found.unique().tolist() if label not in own]
        in_place = [label for label in labels if label in own or label in lacking]
        agree = series.cat.ordered and [label for label in in_place if label in own] == own
        dtype = pd.CategoricalDtype(in_place if agree else own + lacking, series.dtype.ordered)
        dtype = dtype if lacking else series.dtype
    else:
        dtype = series.dtype if not missing.all() and _holds(series.dtype, found) else found.dtype
    cells = series.astype(object).to_numpy(copy=True)
    cells[missing] = found.astype(object).to_numpy()
    return pd.Series(cells, index=series.index, name=series.name, dtype=object).astype(dtype)


def _holds(dtype: object, found: pd.Series) -> bool:
    """Whether the dtype can hold the cells; any float dtype all numbers, if not exactly."""
    if pd.api.types.is_float_dtype(dtype) and pd.api.types.is_float_dtype(found.dtype):
        return True
    try:
        with np.errstate(invalid="ignore"):  # numbers beyond an integer dtype: then it does not hold them
            return bool((found.astype(dtype) == found).all())
    except (TypeError, ValueError):
        return False
