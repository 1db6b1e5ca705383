"""A comparison as text: one line for each that takes part, and what the numbers are below."""

import math
import textwrap
from collections.abc import Sequence

from .arms import SINGLE, TUNED
from .comparison import Comparison
from .row import Row


def header(comparison: Comparison) -> list[str]:
    """What the columns are."""
    arrows = [f"{metric} ↑" if metric in _higher(comparison) else metric for metric in comparison.metrics]
    return ["", "learning rate", *arrows, f"Δ% {comparison.reference}", "mean rank", "time"]


def lines(comparison: Comparison) -> list[list[str]]:
    """The cells of every row."""
    return [_line(comparison, row) for row in comparison.rows]


def notes(comparison: Comparison) -> list[str]:
    """What the numbers are, and what is to be said about some of them."""
    settings = comparison.settings
    count = len(comparison.seeds)
    spread = f"mean ± standard deviation of {count} seeds" if count > 1 else "one seed"
    best = "lower is better" + (", but for ↑" if _higher(comparison) else "")
    reference = "the single-task networks" if comparison.reference == SINGLE else "the plain sum"
    found = [
        f"Metrics after {settings['epochs']} {'epoch' if settings['epochs'] == 1 else 'epochs'}, {spread}; {best}.",
        f"Δ%: mean change of the metrics against {reference} in percent, negative is better. Mean rank: over the "
        f"metrics, 1 is best. Time: of a step, in that of the plain sum.",
        _on_tuning(comparison),
    ]
    for row in comparison.rows:
        if row.label == TUNED and row.weights is not None:
            weights = ", ".join(f"{name} {weight:.3g}" for name, weight in _named(comparison, row.weights))
            found.append(f"{TUNED}: {weights}.")
        if row.finished < count:
            reason = row.error or (
                "not all are trained yet" if comparison.is_incomplete(row.label) else "not all metrics are finite"
            )
            found.append(f"* {row.label}: {row.finished} of {count} seeds came to an end ({reason}).")
    without = [metric for metric in comparison.metrics if metric not in comparison.counted]
    if without:
        found.append(f"Not in Δ%, for want of a baseline that is finite and of one sign: {', '.join(without)}.")
    if not comparison.fair:
        found.append(
            "Not all started from the same weights or saw the same batches: `build` or `batches` draws from a "
            "source that is not seeded, so differences between methods are also differences in luck."
        )
    return found


def as_text(comparison: Comparison) -> str:
    """The table as it is printed."""
    cells = [header(comparison), *lines(comparison)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [
        "  ".join(
            f"{cell:<{width}}" if not position else f"{cell:>{width}}"
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    rule = "-" * max(map(len, padded))
    remarks = [line for note in notes(comparison) for line in textwrap.wrap(note, max(len(rule), 80))]
    return "\n".join([padded[0], rule, *padded[1:], "", *remarks])


def _line(comparison: Comparison, row: Row) -> list[str]:
    mark = "" if row.finished == len(comparison.seeds) else " *"
    rates = row.learning_rates
    return [
        row.label + mark,
        ", ".join(f"{rate:g}" for rate in rates),
        *(_number(row.means[metric], row.deviations[metric]) for metric in comparison.metrics),
        _change(row.delta, row.delta_deviation),
        "–" if math.isnan(row.rank) else _number(row.rank, row.rank_deviation, 3),
        "–" if math.isnan(row.cost) else f"{row.cost:.2f}",
    ]


def _number(mean: float, deviation: float, digits: int = 4) -> str:
    if math.isnan(mean):
        return "–"
    own = f"{mean:.{digits}g}"
    return own if math.isnan(deviation) else f"{own} ± {deviation:.2g}"


def _change(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return "–"
    own = f"{round(mean, 1) + 0.0:+.1f}"  # never -0.0
    return own if math.isnan(deviation) else f"{own} ± {deviation:.1f}"


def _on_tuning(comparison: Comparison) -> str:
    tried = len({trial.learning_rate for trial in comparison.trials})
    if tried < 2 and TUNED not in comparison.labels:
        return "Nothing was tuned: all have the same learning rate."
    what = f"The learning rate, out of {tried}," if tried > 1 else "The weights"
    if tried > 1 and TUNED in comparison.labels:
        what = f"The learning rate, out of {tried}, and the tuned weights"
    verb = "were" if TUNED in comparison.labels else "was"
    by = (
        "on the validation metrics"
        if comparison.settings["validated"]
        else ("on these very metrics, for want of `validate`: that flatters all, those with many candidates most")
    )
    return f"{what} {verb} chosen with seed {comparison.seeds[0]}, {by}."


def _named(comparison: Comparison, weights: Sequence[float]) -> list[tuple[str, float]]:
    return list(zip(comparison.settings["losses"], weights, strict=True))


def _higher(comparison: Comparison) -> Sequence[str]:
    higher: Sequence[str] = comparison.settings["higher_is_better"]
    return higher


__all__ = ["as_text", "header", "lines", "notes"]
