"""A diagnosis as a table for pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import similarity

if TYPE_CHECKING:
    from pandas import DataFrame

    from .diagnosis import Diagnosis


def rows(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """A dict for each pair: of all shared parameters first, where group is ``"all"``, then of each group."""
    found, names = diagnosis.findings, diagnosis.names
    pairs = similarity.pairs(len(names))
    ratios = found.lengths.unsqueeze(-1) / found.lengths
    whole = [
        {
            "group": "all",
            "first": names[i],
            "second": names[j],
            "cosine": float(found.cosines[i, j]),
            "cosine_error": float(found.cosine_errors[i, j]),
            "conflict": found.standing[i, j] == "systematic",
            "standing": found.standing[i, j] if found.judged else "unclear",
            "batch_cosine": float(found.batch_cosines[i, j]),
            "conflict_share": float(found.conflict_shares[i, j]),
            "length_ratio": float(ratios[i, j]),
        }
        for i, j in pairs
    ]
    parts = [
        {
            "group": group,
            "first": names[i],
            "second": names[j],
            "cosine": float(diagnosis.group_cosines[number, i, j]),
            "conflict": bool(diagnosis.group_conflicts[number, i, j]),
        }
        for number, group in enumerate(diagnosis.groups)
        for i, j in pairs
        if diagnosis.groups != ("all",)
    ]
    return [*whole, *parts]


def table(diagnosis: Diagnosis) -> DataFrame:
    """The rows as a data frame."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "Diagnosis.to_pandas: pandas must be installed, got no module of that name. Run: pip install pandas"
        ) from error
    return pd.DataFrame(rows(diagnosis))
