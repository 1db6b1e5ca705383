"""A history as one page: its pictures, and the pairs of losses as a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..page import Section, page, picture, save_page, table
from ..similarity import pairs
from ..wording import share
from .pairs import Pairs, compared, share_of

if TYPE_CHECKING:
    from .history import History

NUMBERS = (
    "Means over the recorded steps. The length ratio is that of the first gradient to the second; magnitude "
    "similarity is 1 for gradients of equal length and 0 where one is nothing beside the other."
)
MOST_ROWS = 200  # pairs in the table, those in conflict first


def report(history: History, path: Path) -> Path:
    """Writes the page and returns where it is.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Nothing is recorded yet.
    """
    if not len(history):
        raise ValueError(
            "History: `steps` must be recorded before there is something to report, got none. Train for a step first."
        )
    joint = compared(history.joint_gramians)
    facts = {
        "losses": len(history.names),
        "recorded steps": len(history),
        "first step": int(history.steps[0]),
        "last step": int(history.steps[-1]),
        "steps with an overflow": history.overflows,
    }
    return save_page(path, page("Conflicts while training", _lead(joint), _sections(history, joint), facts))


def _lead(joint: Pairs) -> str:
    conflicting = float(share_of(joint.conflicts).nanmean())
    if conflicting != conflicting:
        return "<p>No two gradients could be compared: there was one loss, nothing is shared, or all were zero.</p>"
    if joint.conflicts.shape[-1] == 2:
        return f"<p>The two losses conflict in {share(conflicting)} of the steps in which both were recorded.</p>"
    return f"<p>In a recorded step, {share(conflicting)} of all pairs of losses conflict, on average.</p>"


def _sections(history: History, joint: Pairs) -> Iterator[Section]:
    if len(history.names) > 1:
        yield Section(
            "pairs",
            "Which losses conflict",
            "Mean cosines between the gradients, over everything that is shared, and how often each pair conflicts.",
            picture(history.draw_pairs(), "heat map of mean cosines between the gradients of the losses"),
        )
        if len(history.groups) > 1:
            yield Section(
                "layers",
                "Where they conflict",
                "Mean cosines in each group of parameters.",
                picture(history.draw_layers(), "heat map of mean cosines, a row for each group of parameters"),
            )
        yield Section(
            "time",
            "When they conflict",
            "Cosines over the recorded steps.",
            picture(history.draw_time(), "heat map of cosines, a row for each pair of losses, time to the right"),
        )
    if history.weights is not None:
        yield Section(
            "weights",
            "What the method did",
            "The weight of each loss over the recorded steps.",
            picture(history.draw_weights(), "lines, one for the weight of each loss, over time"),
        )
    if len(history.names) > 1:
        yield Section("numbers", "The numbers", NUMBERS, _numbers(history, joint))


def _numbers(history: History, joint: Pairs) -> str:
    """The table, most conflicting pairs first."""
    cosines, often = joint.cosines.nanmean(0), joint.conflicts.nanmean(0)
    ratios, similar = joint.ratios.log().nanmean(0).exp(), joint.similarities.nanmean(0)
    between = sorted(pairs(len(history.names)), key=lambda pair: float(cosines[pair].nan_to_num(2.0)))
    rows = [
        (
            f"{history.names[i]} – {history.names[j]}",
            float(cosines[i, j]),
            share(float(often[i, j])),
            float(ratios[i, j]),
            float(similar[i, j]),
        )
        for i, j in between[:MOST_ROWS]
    ]
    text = table(["pair", "cosine", "conflicting", "length ratio", "magnitude similarity"], rows)
    left = len(between) - len(rows)
    return text + (f"<p>and {left:,} pairs that conflict less</p>" if left else "")


__all__ = ["report"]
