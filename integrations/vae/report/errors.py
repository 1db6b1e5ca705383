"""The test error of every column, with and without surgery."""

from __future__ import annotations

import math

from gradsurgery.diagnostics.page import escaped

from ..training.evaluation import mean_of
from . import text
from .charts import bars
from .comparison import Comparison, shares_of_pull


def errors(comparison: Comparison) -> str:
    """A table with a row a column: numbers and bars."""
    before, after = (arm.evaluation for arm in comparison.arms)
    guess = comparison.guesses
    finite = [value for own in (before.errors, after.errors, guess) for value in own.values() if math.isfinite(value)]
    longest = min(max(finite, default=0.0), 1.0) or 1.0
    pulls = [shares_of_pull(next(iter(arm.conflicts.values()))) for arm in comparison.arms]
    rows = []
    for index, column in enumerate(comparison.table.schema):
        own = _errors(guess[column.name], before.errors[column.name], after.errors[column.name], longest)
        shares = "".join(f'<td class="number dim">{text.share(float(pull[index]))}</td>' for pull in pulls)
        name = f'<th scope="row">{escaped(column.name)}<small>{column.kind}</small></th>'
        rows.append(f'<tr><td class="number dim">{index + 1}</td>{name}{own}{shares}</tr>')
    own = _errors(mean_of(guess), before.error, after.error, longest)
    mean = f'<th scope="row">mean of all</th>{own}<td></td><td></td>'
    labels = [arm.label for arm in comparison.arms]
    heads = "".join(f'<th class="number">{escaped(head)}</th>' for head in ("guessing", *labels, "change", *labels))
    return (
        '<div class="scroll"><table class="errors"><thead><tr><th rowspan="2">#</th><th rowspan="2">column</th>'
        '<th colspan="4" class="number">test error</th><th rowspan="2" class="wide-cell"></th>'
        f'<th colspan="2" class="number">share of the pull</th></tr><tr>{heads}</tr></thead><tbody>{"".join(rows)}'
        f'<tr class="mean"><td></td>{mean}</tr></tbody></table></div>'
    )


def _errors(guess: float, before: float, after: float, longest: float) -> str:
    """The cells with the errors, and their bars."""
    says = f"{text.error(before)} with the plain sum, {text.error(after)} with surgery"
    drawn = bars({"plain": before, "surgery": after}, guess, longest, says)
    numbers = "".join(f'<td class="number">{text.error(value)}</td>' for value in (guess, before, after))
    return f'{numbers}{_change(before, after)}<td class="wide-cell">{drawn}</td>'


def _change(before: float, after: float) -> str:
    difference = text.printed_change(before, after)
    kind, word = ("better", "better") if difference < 0 else ("worse", "worse") if difference > 0 else ("dim", "")
    said = f"<small>{word}</small>" if word else ""
    return f'<td class="number {kind}">{text.change(before, after)}{said}</td>'
