"""A comparison as one page: the table, what its numbers are, and the pictures."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from ..diagnostics.page import Section, escaped, page, picture, save_page, table
from .arms import SUM
from .comparison import Comparison
from .table import header, lines, notes

_FRONTS = 3  # pairs of metrics that are drawn; with more metrics they would bury the table


def write_page(comparison: Comparison, path: str | Path) -> Path:
    """Writes the page, whole or not at all, and returns where it is."""
    others = [label for label in comparison.labels if label != SUM]
    names = escaped(", ".join(others))
    alike = " from the same weights on the same batches" if comparison.fair else ""
    lead = (
        f"<p>The same model was trained{alike} under <strong>{SUM}</strong> and under {names}; only how the losses "
        f"were brought together differs.</p>"
    )
    settings = comparison.settings
    facts = {
        "losses": ", ".join(settings["losses"]),
        "epochs": settings["epochs"],
        "seeds": ", ".join(map(str, comparison.seeds)),
        "learning rates": ", ".join(f"{rate:g}" for rate in settings["learning_rates"]),
        "trainings": len(comparison.trials),
    }
    sections = [_table(comparison), *_trade_off(comparison), *_fronts(comparison)]
    return save_page(path, page("How the methods compare", lead, sections, facts))


def _table(comparison: Comparison) -> Section:
    remarks = "".join(f'<p class="note">{escaped(note)}</p>' for note in notes(comparison))
    names = ["method", *header(comparison)[1:]]
    return Section("table", "The table", "", table(names, lines(comparison)) + remarks)


def _trade_off(comparison: Comparison) -> list[Section]:
    if len(comparison.labels) < 2:
        return []
    says = "How much better or worse than the plain sum each metric is: what is gained on one may be paid on another."
    shown = picture(comparison.draw_trade_off(), "Bars: the change of each metric against the plain sum, by method")
    return [Section("trade-off", "Against the plain sum", says, shown)]


def _fronts(comparison: Comparison) -> list[Section]:
    pairs = list(combinations(comparison.metrics, 2))
    if not pairs or len(pairs) > _FRONTS:
        return []
    shown = "".join(
        picture(comparison.draw_front(*pair), f"Points: {pair[0]} against {pair[1]}, by method") for pair in pairs
    )
    says = "Two metrics against each other. Who is on the line is beaten by nobody in both."
    return [Section("front", "Which trades are worth it", says, shown)]


__all__ = ["write_page"]
