"""The cells of one column as numbers or labels, and back; whatever contradicts the column's kind is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .column import Column, Label

Floats: TypeAlias = NDArray[np.float64]
Family: TypeAlias = Literal["boolean", "number", "string"]


def family(series: pd.Series) -> Family:
    """Whether the observed cells are booleans, numbers or strings.

    Raises:
        TypeError: they are something else, or a mixture.
        ValueError: none is observed.
    """
    if not series.notna().any():
        raise ValueError(
            f"Table: column {series.name!r} must have at least one observed cell, got {len(series)} missing. "
            "Drop the column."
        )
    dtype = series.dtype.categories.dtype if isinstance(series.dtype, pd.CategoricalDtype) else series.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return "boolean"
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return "number"
    types = {type(cell) for cell in series.dropna().astype(object)}
    if all(issubclass(kind, str) for kind in types):
        return "string"
    if all(issubclass(kind, (bool, np.bool_)) for kind in types):
        return "boolean"
    if all(issubclass(kind, (int, float, np.integer, np.floating)) and kind is not bool for kind in types):
        return "number"
    raise TypeError(
        f"Table: column {series.name!r} must hold numbers, booleans or strings, got "
        f"{', '.join(sorted(kind.__name__ for kind in types))}. "
        "Convert it (a date, for example, to days since a fixed one) or drop it."
    )


def numbers(series: pd.Series) -> Floats:
    """The cells as float64, missing ones as NaN.

    Raises:
        TypeError: a cell is not a number.
        ValueError: a cell is infinite, or none is observed.
    """
    if family(series) == "string":
        example = str(series.dropna().iloc[0])
        raise TypeError(
            f"Table: column {series.name!r} must hold numbers, got strings such as {example!r}. "
            "Make its kind categorical, or convert it with pandas.to_numeric (errors='coerce' for missing)."
        )
    plain = series.astype(object) if isinstance(series.dtype, pd.CategoricalDtype) else series
    cells: Floats = pd.to_numeric(plain).to_numpy(dtype=np.float64, na_value=np.nan)
    infinite = int(np.isinf(cells).sum())
    if infinite:
        raise ValueError(
            f"Table: column {series.name!r} must hold finite numbers, got {infinite} infinite cells. "
            "Replace them by missing cells (frame.replace([inf, -inf], nan)) or by a bound that makes sense."
        )
    return cells


def labels_of(series: pd.Series) -> tuple[Label, ...]:
    """The categories: those a pandas categorical declares, both booleans, else the sorted values.

    Raises:
        TypeError, ValueError: the cells are no labels; see :func:`family` and :func:`numbers`.
    """
    kind = family(series)
    if kind == "number":
        numbers(series)
    if isinstance(series.dtype, pd.CategoricalDtype):
        found = series.dtype.categories.tolist()
    elif kind == "boolean":
        found = [False, True]
    else:
        found = sorted(series.dropna().unique().tolist())
    return tuple(found)


def encode_cells(series: pd.Series, column: Column) -> tuple[Column, Floats]:
    """The cells as float64 in original units (categories as codes 0, 1, ...; missing cells as NaN).

    Returns:
        The column with labels and dtype filled in, and the cells.

    Raises:
        TypeError, ValueError: a cell contradicts the column's kind.
    """
    complete = column if column.dtype else replace(column, dtype=str(series.dtype))
    if not column.discrete:
        cells = numbers(series)
        allowed = _allowed_numbers(cells, column)
        _check_amounts(cells, column)
        return complete, allowed
    found = labels_of(series)
    if complete.labels is None:
        _check_number_of_labels(found, column)
        complete = replace(complete, labels=found, classes=len(found))
    return complete, _codes(series, complete)


def encode_new_cells(series: pd.Series, column: Column) -> Floats:
    """The cells of rows that were not there when the column was completed; they may all be missing.

    Raises:
        TypeError, ValueError: a cell contradicts the column's kind or is none of its labels.
    """
    if not series.notna().any():
        return np.full(len(series), np.nan)
    if not column.discrete:
        return _allowed_numbers(numbers(series), column)
    if family(series) == "number":
        numbers(series)
    return _codes(series, column)


def decode_cells(values: Floats, column: Column) -> pd.Series:
    """The inverse of :func:`encode_cells`: original labels and dtype; NaN becomes missing.

    Numbers of a count column or of an integer dtype are rounded, those beyond an integer dtype moved to its
    end; booleans that are modelled as numbers become float64, since a boolean of .3 would be True. Where the
    dtype has no missing value (numpy's integers and booleans) but a cell is missing, pandas's nullable twin is used.
    """
    missing = np.isnan(values)
    if column.discrete:
        return _decode_labels(values, missing, column)
    dtype = "float64" if column.dtype in (None, "bool", "boolean") else column.dtype
    whole = column.kind == "count" or "int" in dtype.lower()
    cells = _within(np.rint(values), dtype) if whole else values
    if whole and column.zeros in ("missing", "raise"):
        cells = cells.clip(1.0)  # rounded to zero, a cell that was filled in would be missing again
    if not missing.any():
        return pd.Series(cells, name=column.name).astype(dtype)
    return pd.Series(cells, name=column.name).astype(_nullable(dtype))


def _within(cells: Floats, dtype: str) -> Floats:
    """The numbers that an integer dtype can hold; a cast would wrap the others round."""
    if "int" not in dtype.lower():
        return cells
    info = np.iinfo(dtype.lower())
    # The float next to the end: that of a 64-bit integer's end itself is one beyond it.
    return cells.clip(float(info.min), info.max if info.bits < 64 else np.nextafter(float(info.max), 0.0))


def _nullable(dtype: str) -> str:
    """The dtype that can hold missing cells: pandas's twin of numpy's integers and booleans."""
    if dtype.startswith(("int", "uint")):
        return dtype.replace("int", "Int").replace("uInt", "UInt")
    return "boolean" if dtype == "bool" else dtype


def _decode_labels(values: Floats, missing: NDArray[np.bool_], column: Column) -> pd.Series:
    labels = column.labels or ()
    cells = [None if gone else labels[int(code)] for code, gone in zip(values, missing, strict=True)]
    if column.dtype == "category":
        dtype = pd.CategoricalDtype(list(labels), ordered=column.kind == "ordinal")
        return pd.Series(pd.Categorical(cells, dtype=dtype), name=column.name)
    series = pd.Series(cells, name=column.name, dtype=object)
    wanted = column.dtype or "object"
    return series.astype(_nullable(wanted) if missing.any() else wanted)


def _allowed_numbers(cells: Floats, column: Column) -> Floats:
    """The numbers, with zeros made missing where the column says so."""
    observed = ~np.isnan(cells)
    if column.kind == "count":
        wrong = observed & ((cells < 0) | (cells != np.rint(cells)))
        _refuse(wrong, cells, column, "whole numbers from 0 on", "Make its kind real or positive")
    if column.likelihood == "beta":
        outside = observed & ((cells < 0) | (cells > 1))
        _refuse(outside, cells, column, "numbers from 0 to 1 with likelihood 'beta'", "Pick another likelihood")
    if column.kind != "positive":
        return cells
    _refuse(observed & (cells < 0), cells, column, "positive numbers", "Make its kind real")
    if column.zeros == "raise":
        remedy = "Make `zeros` of this column 'shift' or 'missing', or correct the cells"
        _refuse(observed & (cells == 0), cells, column, "numbers above 0", remedy)
    return np.where(cells == 0, np.nan, cells) if column.zeros == "missing" else cells


def _check_amounts(cells: Floats, column: Column) -> None:
    """Refuses zeros as the only observed cells of a positive column."""
    if column.kind == "positive" and not (cells > 0).any():
        raise ValueError(
            f"Table: positive column {column.name!r} must hold a number above 0, got zeros only. "
            "Drop the column or make its kind real."
        )


def _refuse(wrong: NDArray[np.bool_], cells: Floats, column: Column, rule: str, remedy: str) -> None:
    if wrong.any():
        raise ValueError(
            f"Table: {column.kind} column {column.name!r} must hold {rule}, got {cells[wrong][0]:g} "
            f"({int(wrong.sum())} such cells). {remedy}."
        )


def _check_number_of_labels(found: tuple[Label, ...], column: Column) -> None:
    allowed = 2 if column.kind == "binary" else column.classes
    too_few = column.kind == "binary" and len(found) < 2
    if allowed is not None and (len(found) > allowed or too_few):
        raise ValueError(
            f"Table: {column.kind} column {column.name!r} must hold {allowed} different values, got "
            f"{len(found)}: {', '.join(repr(label) for label in found[:5])}"
            f"{', ...' if len(found) > 5 else ''}. Correct its kind, `classes` or `labels` in the schema."
        )


def _codes(series: pd.Series, column: Column) -> Floats:
    """The position of each cell among the column's labels, NaN where missing."""
    code_of = {label: float(code) for code, label in enumerate(column.labels or ())}
    observed = series.notna().to_numpy()
    codes = np.full(len(series), np.nan)
    cells = series[observed].tolist()
    unknown = sorted({repr(cell) for cell in cells if cell not in code_of})
    if unknown:
        raise ValueError(
            f"Table: {column.kind} column {column.name!r} must hold its {len(code_of)} labels only, got "
            f"{', '.join(unknown[:3])}. Add them to `labels` in the schema or correct the cells."
        )
    codes[observed] = [code_of[cell] for cell in cells]
    return codes
