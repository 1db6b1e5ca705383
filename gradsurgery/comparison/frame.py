"""A comparison as a pandas DataFrame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .comparison import Comparison

if TYPE_CHECKING:
    import pandas as pd


def as_frame(comparison: Comparison) -> pd.DataFrame:
    """A row for each that takes part; of each metric its mean, and its standard deviation in ``<metric> std``."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "Comparison: pandas must be installed for to_pandas(), got no module of that name. "
            "Run: pip install pandas"
        ) from error
    rows = []
    for row in comparison.rows:
        metrics: dict[str, float] = {}
        for metric in comparison.metrics:
            metrics |= {metric: row.means[metric], f"{metric} std": row.deviations[metric]}
        rates = row.learning_rates
        rows.append(
            {
                "method": row.label,
                "learning rate": rates[0] if len(rates) == 1 else rates,
                **metrics,
                "delta %": row.delta,
                "delta % std": row.delta_deviation,
                "mean rank": row.rank,
                "mean rank std": row.rank_deviation,
                "time": row.cost,
                "finished": row.finished,
                "error": row.error,
            }
        )
    return pd.DataFrame(rows).set_index("method")


__all__ = ["as_frame"]
