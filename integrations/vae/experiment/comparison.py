"""What a cell came to beside the plain sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..json_values import as_json
from .record import Record
from .t_test import corrected_t_test

SIGNIFICANT = 0.1


def compare(record: Record, baseline: Record) -> dict[str, Any]:
    """Tests the mean error and each column's against those of the plain sum on the same splits, ready for JSON.

    Args:
        record: Of a finished cell with at least two seeds.
        baseline: Of the same cell with the plain sum, finished too.

    Returns:
        Difference, t statistic, p-value and verdict ("better", "worse" or "alike"), and ``columns`` with the same for
        each column; without those where there is a seed in which nothing could be measured.
    """
    seeds = list(zip(record["seeds"], baseline["seeds"], strict=True))
    rows = seeds[0][0]["rows"]
    columns = {
        name: _test([(own["errors"][name], other["errors"][name]) for own, other in seeds], rows)
        for name in record["errors"]
    }
    return {**_test([(own["error"], other["error"]) for own, other in seeds], rows), "columns": columns}


def _test(pairs: Sequence[tuple[float | None, float | None]], rows: dict[str, int]) -> dict[str, Any]:
    known = [(own, other) for own, other in pairs if own is not None and other is not None]
    if len(known) < len(pairs):
        return {}
    own, others = zip(*known, strict=True)
    test = corrected_t_test(own, others, test_rows=rows["test"], train_rows=rows["train"])
    verdict = "alike" if test.p_value >= SIGNIFICANT else "better" if test.difference < 0 else "worse"
    return {**as_json(test._asdict()), "verdict": verdict}
