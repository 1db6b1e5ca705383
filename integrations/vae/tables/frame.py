"""What a DataFrame or a CSV file must be before its columns are looked at."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def refuse_duplicates(owner: str, argument: str, names: Iterable[str]) -> None:
    """Raises a ValueError that lists the names which occur twice."""
    listed = list(names)
    doubles = sorted({name for name in listed if listed.count(name) > 1})
    if doubles:
        raise ValueError(
            f"{owner}: `{argument}` must have distinct names, got {', '.join(doubles)} more than once. "
            "Rename or drop the doubles."
        )


def check_frame(frame: object, owner: str, argument: str = "frame") -> None:
    """Raises unless ``frame`` is a DataFrame whose columns are named by distinct strings."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(
            f"{owner}: `{argument}` must be a pandas DataFrame, got {type(frame).__name__}. "
            "Build one with pandas.DataFrame(...)."
        )
    if frame.shape[1] == 0:
        raise ValueError(f"{owner}: `{argument}` must have at least one column, got none. Check how it was read.")
    unnamed = [name for name in frame.columns if not isinstance(name, str)]
    if unnamed:
        raise TypeError(
            f"{owner}: `{argument}` must have strings as column names, got {unnamed[:3]}. "
            "Rename them: frame.columns = frame.columns.astype(str)."
        )
    refuse_duplicates(owner, argument, frame.columns)


def read_csv(path: str | Path) -> pd.DataFrame:
    """Reads a CSV file with a header row. Missing are empty cells and, as in pandas, NA, NaN, None, null and such.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV file in UTF-8, commas do not separate its cells, rows are longer than the header, or
            that has a name twice or none for a column.
    """
    try:
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
        _refuse_other_separators(path, header)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Else the first cells of rows that are longer than the header become an index, and all columns shift.
            frame: pd.DataFrame = pd.read_csv(path, low_memory=False, index_col=False)
    except pd.errors.ParserWarning as error:
        raise ValueError(
            f"Table: `path` must have as many cells in a row as its header, {header.shape[1]}, got more in {path}. "
            "Name all columns, and put cells with a comma in quotes."
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Table: `path` must be a CSV file in UTF-8 with a header row, got {path}: {error}. Save it so, or read "
            "it into a DataFrame and use Table.from_frame."
        ) from error
    names = [str(name).strip() for name in header.iloc[0]]
    if "" in names:
        raise ValueError(
            f"Table: `path` must name every column, got none for column {names.index('') + 1} of {path}. Name it, or "
            "leave it out if it is an index (frame.to_csv(..., index=False))."
        )
    refuse_duplicates("Table", "path", names)
    return frame


def _refuse_other_separators(path: str | Path, header: pd.DataFrame) -> None:
    """Raises if the header looks like several names between semicolons, tabs or bars."""
    first = str(header.iloc[0, 0])
    found = [name for mark, name in SEPARATORS.items() if mark in first]
    if header.shape[1] == 1 and found:
        raise ValueError(
            f"Table: `path` must have commas between its cells, got {found[0]} in the header of {path}. Save it with "
            "commas (and decimal points), or read it into a DataFrame and use Table.from_frame."
        )
