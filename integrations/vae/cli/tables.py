"""Tables as CSV files, such that what is read and written again is the same."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from gradsurgery.whole_file import write_whole

from ..tables.frame import read_csv

SHIPPED = ("randhie", "anes96")


def read_table(path: str | Path, drop: Iterable[str] = ()) -> pd.DataFrame:
    """A CSV file as a DataFrame in which whole numbers stay whole numbers where others are missing.

    Args:
        path: The file; or the name of one of the tables that ship with statsmodels, see :data:`SHIPPED`.
        drop: Names of columns to leave out.

    Raises:
        OSError, ValueError: see :func:`read_csv`; or a column to leave out is not there.
        ImportError: the table is one of statsmodels's, which is not installed.
    """
    if path in SHIPPED:
        return _without(_shipped(str(path)), drop)
    frame = _without(read_csv(path), drop)
    texts = _texts(path)
    for name in frame.columns:
        if pd.api.types.is_float_dtype(frame[name]) and _whole(texts[name][frame[name].notna()]):
            frame[name] = frame[name].astype("Int64")
    return frame


def write_table(frame: pd.DataFrame, path: str | Path) -> None:
    """A DataFrame as a CSV file, which is there whole or not at all."""
    write_whole(path, lambda file: frame.to_csv(file, index=False))


def write_filled(source: str | Path, frame: pd.DataFrame, filled: pd.DataFrame, path: str | Path) -> int:
    """The CSV file ``source`` with its missing cells filled in; the others stay as they are written.

    Args:
        source: A CSV file.
        frame: What :func:`read_table` made of it.
        filled: The same rows without missing cells.
        path: Where to.

    Returns:
        How many cells were filled in.
    """
    texts, count = _texts(source), 0
    for name in filled.columns:
        old, new = frame[name].astype(object), filled[name].astype(object)
        changed = (old.isna() | (old != new)).to_numpy(dtype=bool)  # also zeros that the schema calls missing
        texts.loc[changed, name] = [str(cell) for cell in new[changed].tolist()]
        count += int(changed.sum())
    write_table(texts, path)
    return count


def refuse_overwriting(out: Path, inputs: Iterable[str | None]) -> None:
    """Makes the folder of an output, and raises if the output is one of the inputs.

    Raises:
        ValueError: it is.
        OSError: the folder cannot be made, or the output is a folder.
    """
    if out.is_dir():
        raise IsADirectoryError(f"gradsurgery-vae: `--out` must be a file, got the folder {out}. Name a file in it.")
    for name in inputs:
        if name is not None and out.exists() and Path(name).exists() and out.samefile(name):
            raise ValueError(
                f"gradsurgery-vae: `--out` must be another file than what is read, got {out}. Name a new one."
            )
    out.parent.mkdir(parents=True, exist_ok=True)


def _without(frame: pd.DataFrame, drop: Iterable[str]) -> pd.DataFrame:
    names = list(drop)
    unknown = [name for name in names if name not in frame.columns]
    if unknown:
        raise ValueError(
            f"gradsurgery-vae: `--drop` must name columns, got {', '.join(unknown)}. The columns are "
            f"{', '.join(frame.columns)}."
        )
    return frame.drop(columns=names)


def _shipped(name: str) -> pd.DataFrame:
    try:
        import statsmodels.datasets
    except ImportError as error:
        raise ImportError(
            f"gradsurgery-vae: statsmodels must be installed for the table {name!r}, got no module of that name. "
            'Run: pip install "gradsurgery[vae]"'
        ) from error
    frame: pd.DataFrame = getattr(statsmodels.datasets, name).load_pandas().data
    return frame


def _texts(path: str | Path) -> pd.DataFrame:
    """The cells as they are written."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _whole(cells: pd.Series) -> bool:
    """Whether all cells are written as whole numbers that float64 can tell apart."""
    stripped = cells.str.strip().str.removeprefix("-").str.removeprefix("+")
    return bool(len(cells) and stripped.str.fullmatch(r"[0-9]{1,15}").all())
