"""What a DataFrame must be before its columns are looked at."""

from __future__ import annotations

from collections.abc import Iterable

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


def check_frame(frame: object, owner: str) -> None:
    """Raises unless ``frame`` is a DataFrame whose columns are named by distinct strings."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(
            f"{owner}: `frame` must be a pandas DataFrame, got {type(frame).__name__}. "
            "Build one with pandas.DataFrame(...)."
        )
    if frame.shape[1] == 0:
        raise ValueError(f"{owner}: `frame` must have at least one column, got none. Check how it was read.")
    unnamed = [name for name in frame.columns if not isinstance(name, str)]
    if unnamed:
        raise TypeError(
            f"{owner}: `frame` must have strings as column names, got {unnamed[:3]}. "
            "Rename them: frame.columns = frame.columns.astype(str)."
        )
    refuse_duplicates(owner, "frame", frame.columns)
