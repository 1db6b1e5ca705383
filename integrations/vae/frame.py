"""What a DataFrame or a CSV file must be before its columns are looked at."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd


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
    """Reads a CSV file with a header row; empty cells are missing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV file in UTF-8, or its header has a name twice or none for a column.
    """
    try:
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
        frame: pd.DataFrame = pd.read_csv(path, low_memory=False)
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
