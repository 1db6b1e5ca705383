"""What users hand to the estimator as DataFrames with strings as names, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import validate_data

from ..tables.frame import check_frame


def as_frame(estimator: Any, X: Any, *, reset: bool) -> pd.DataFrame:
    """The rows with the columns named and ordered as in ``fit``; those without names are x0, x1, ...

    Args:
        estimator: Gets ``n_features_in_`` and ``feature_names_in_`` if ``reset``, else has them.
        X: DataFrame or array.
        reset: Whether this is ``fit``.

    Raises:
        TypeError: ``X`` is no table, a masked array, or only some of its columns are named by strings.
        ValueError: there is no row, or the columns are not those of ``fit``.
    """
    owner = type(estimator).__name__
    if isinstance(X, np.ma.MaskedArray):
        raise TypeError(
            f"{owner}: `X` must mark missing cells by NaN, got a masked array, whose mask would be lost. "
            "Pass X.astype(float).filled(numpy.nan)."
        )
    if isinstance(X, pd.DataFrame):
        if all(isinstance(name, str) for name in X.columns):
            check_frame(X, owner, "X")
        names = list(getattr(estimator, "feature_names_in_", ()))
        frame = X[names] if not reset and set(X.columns) == set(names) else X
        validate_data(estimator, frame, reset=reset, skip_check_array=True)
    else:
        array = validate_data(estimator, X, reset=reset, dtype=None, ensure_all_finite="allow-nan")
        frame = pd.DataFrame(array).infer_objects()
    if frame.empty:
        raise ValueError(f"{owner}: `X` must have at least one row, got n_samples = 0. Check how it was read.")
    return frame.set_axis(list(getattr(estimator, "feature_names_in_", unnamed(frame.shape[1]))), axis=1)


def unnamed(columns: int) -> list[str]:
    """The names of columns that have none: x0, x1, ..."""
    return [f"x{d}" for d in range(columns)]


def as_given(X: Any, frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of the same columns with the names and the order of ``X``, where that is a DataFrame."""
    if not isinstance(X, pd.DataFrame):
        return frame
    return frame[list(X.columns)] if set(X.columns) == set(frame.columns) else frame.set_axis(X.columns, axis=1)


def whole(value: Any) -> Any:
    """A NumPy integer, as grids of parameters hold them, as Python's."""
    return int(value) if isinstance(value, np.integer) else value


def check_number(owner: str, argument: str, value: object) -> None:
    """Raises unless the value is an integer from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{owner}: `{argument}` must be an integer, got {value!r}. Pass a whole number.")
    if value < 1:
        raise ValueError(f"{owner}: `{argument}` must be at least 1, got {value}. Pass a larger one.")
