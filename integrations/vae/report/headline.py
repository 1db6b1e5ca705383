"""What came of it, in a few numbers and a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gradsurgery.diagnostics.page import escaped

from ..training.evaluation import mean_of
from . import text
from .comparison import Comparison, imbalance
from .gradients import where

WORSE_NAMED = 6


class Verdict(NamedTuple):
    """The columns by what surgery did to their test error, each with the difference as it is printed."""

    better: list[tuple[str, float]]
    worse: list[tuple[str, float]]
    same: list[tuple[str, float]]


def verdict(comparison: Comparison) -> Verdict:
    """Sorts the columns; the largest difference comes first. Columns without observed test cells are left out."""
    before, after = (arm.evaluation.errors for arm in comparison.arms)
    changes = [(name, text.printed_change(before[name], after[name])) for name in before]
    known = sorted(((n, c) for n, c in changes if math.isfinite(c)), key=lambda pair: -abs(pair[1]))
    return Verdict(
        [pair for pair in known if pair[1] < 0],
        [pair for pair in known if pair[1] > 0],
        [pair for pair in known if pair[1] == 0],
    )


def headline(comparison: Comparison) -> str:
    """The cards, and what they say in words."""
    plain, surgery = comparison.arms
    before, after = plain.evaluation.error, surgery.evaluation.error
    found, guess = verdict(comparison), mean_of(comparison.guesses)
    total = sum(len(part) for part in found)
    cards = [
        _card(
            "Mean test error",
            f"{text.error(before)} <span>→</span> {text.error(after)}",
            f"{escaped(plain.label)} → {escaped(surgery.label)}; 0 is perfect, guessing {text.error(guess)}",
        ),
        _card("Columns that got better", f"{len(found.better)} <span>of {total}</span>", _most(found.better)),
        _card("Columns that got worse", f"{len(found.worse)} <span>of {total}</span>", _most(found.worse)),
        _card("Strongest by weakest pull", *_pulls(comparison)),
    ]
    return f'<div class="cards">{"".join(cards)}</div><p>{_sentence(comparison, found)}</p>'


def _card(title: str, figure: str, note: str) -> str:
    return f'<div class="card"><h3>{title}</h3><p class="figure">{figure}</p><p class="note">{note}</p></div>'


def _most(changes: Sequence[tuple[str, float]]) -> str:
    if not changes:
        return "none"
    name, difference = changes[0]
    return f"most: {escaped(text.shortened(name, 24))} ({text.change(0.0, difference)})"


def _pulls(comparison: Comparison) -> tuple[str, str]:
    """The imbalance at the end of each training."""
    ends = [imbalance(next(iter(arm.conflicts.values())).pulls)[-1] for arm in comparison.arms]
    plain, surgery = (text.times(end) if not math.isfinite(end) else f"{text.times(end)}×" for end in ends)
    return (
        f"{plain} <span>→</span> {surgery}",
        f"how unequally columns pull at the end of training{where(comparison)}",
    )


def _sentence(comparison: Comparison, found: Verdict) -> str:
    before, after = (arm.evaluation.error for arm in comparison.arms)
    label = f"<strong>{escaped(comparison.surgery.label)}</strong>"
    lower = round(after, 3) < round(before, 3)
    if lower:
        start = f"{label} lowers the mean test error by {text.share(1 - after / before)}."
    elif round(after, 3) > round(before, 3):
        start = f"{label} <strong>raises</strong> the mean test error: on this table the plain sum does better."
    else:
        start = f"{label} leaves the mean test error as it is."
    worse = ""
    if found.worse:
        names = ", ".join(f"{escaped(name)} ({text.change(0.0, by)})" for name, by in found.worse[:WORSE_NAMED])
        more = len(found.worse) - WORSE_NAMED
        more_of_them = f" and {more} more" if more > 0 else ""
        start_of_list = "It pays for that with columns that got worse" if lower else "Worse"
        worse = f" {start_of_list}: {names}{more_of_them}."
    elif found.better:
        worse = " No column got worse."
    return (
        f"{start}{worse}{_against_guessing(comparison)} Errors that are equal in three decimals count as equal. Each "
        "number is from one training, so small differences are chance: another seed moves them."
    )


def _against_guessing(comparison: Comparison) -> str:
    """What is to be said of a model that has learnt nothing on average."""
    guess = mean_of(comparison.guesses)
    errors = [(arm.label, arm.evaluation.error) for arm in comparison.arms]
    poor = [escaped(label) for label, error in errors if round(error, 3) >= round(guess, 3)]
    if not poor:
        return ""
    who = "<strong>Neither model</strong> is" if len(poor) > 1 else f"The model trained with {poor[0]} is not"
    return (
        f" {who} better than guessing ({text.error(guess)}) on average: more epochs may help, or a corrected schema."
    )
