"""A diagnosis as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import wording
from ..page import Section, escaped, page, picture, save_page, table
from ..pictures import draw_layers, draw_pairs
from .advice import headline
from .costs import Costs
from .text import layer_rows, loss_columns, memory, pair_rows, seconds

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

MOST_ROWS = 60


def report(diagnosis: Diagnosis, path: str | Path) -> Path:
    """Writes the page."""
    advice = diagnosis.recommendation
    also = "".join(f"<li>{escaped(sentence)}</li>" for sentence in advice.also)
    lead = (
        f"<p><strong>{escaped(headline(diagnosis.findings))}</strong> {escaped(advice.reason)}</p>"
        f"<pre><code>{escaped(advice.code)}</code></pre><ul>{also}</ul>"
    )
    sections = [_losses(diagnosis)]
    if len(diagnosis.names) > 1 and diagnosis.groups:
        sections += [_pairs(diagnosis), *([_layers(diagnosis)] if len(diagnosis.groups) > 1 else [])]
    if diagnosis.costs is not None:
        sections.append(_costs(diagnosis.costs))
    facts = {
        "batches": diagnosis.batches,
        "losses": len(diagnosis.names),
        "shared parameters": f"{sum(diagnosis.sizes):,} numbers in {len(diagnosis.groups)} groups",
    }
    return save_page(path, page("Do the losses conflict?", lead, sections, facts))


def _losses(diagnosis: Diagnosis) -> Section:
    header, columns = loss_columns(diagnosis)
    rows = [[name, *cells] for name, *cells in zip(diagnosis.names, *columns, strict=True)]
    left_out = "".join(
        f" <em>{escaped(name)}</em> was not finite in {count} batches, which were left out for it."
        for name, count in diagnosis.non_finite.items()
    )
    says = (
        "Mean value and the length of the mean gradient on the shared parameters. <em>Noise/signal</em> is the "
        "number of batches to average until signal and noise are as strong. <em>Gain</em> is what a small step along "
        "the plain sum does for a loss, of what a step of that length along its own gradient would: 100% at best, "
        "negative where it gets worse; and the same along the advised method’s direction." + left_out
    )
    return Section("losses", "The losses", says, table(header, rows))


def _pairs(diagnosis: Diagnosis) -> Section:
    header = ["pair", "cosine of means", "in a batch", "conflicting batches", "verdict"]
    rows = pair_rows(diagnosis)
    says = (
        "The cosine between the mean gradients, without the bias of noise, with its standard error; the mean of the "
        "cosines within a batch; and in how many batches the gradients conflict. A pair conflicts where its cosine "
        "is below −0.1 and that is no chance (1%, over all pairs)."
    )
    found = diagnosis.findings
    figure = draw_pairs(found.cosines, diagnosis.names, shares=found.conflict_shares)
    drawn = picture(figure, "Cosines between the mean gradients of all pairs of losses")
    return Section("pairs", "Which losses conflict", says, drawn + table(header, rows[:MOST_ROWS]) + _more(rows))


def _layers(diagnosis: Diagnosis) -> Section:
    rows = layer_rows(diagnosis)
    says = "The same in each group of shared parameters by itself."
    figure = draw_layers(diagnosis.group_cosines, diagnosis.groups, diagnosis.names)
    drawn = picture(figure, "Cosines between the mean gradients by group of shared parameters")
    below = table(["layer", "numbers", "pair", "cosine"], rows[:MOST_ROWS]) + _more(rows) if rows else ""
    judged = diagnosis.findings.judged
    nothing = "<p>In no group by itself is there a conflict beyond chance.</p>" if judged and not rows else ""
    return Section("layers", "Where they conflict", says, drawn + below + nothing)


def _costs(known: Costs) -> Section:
    names = sorted(known.methods, key=lambda name: (known.extra(name), name))
    rows = [[name, f"+{wording.share(known.extra(name))}", seconds(known.methods[name])] for name in names]
    says = (
        f"What a step takes beside one of the plain sum, which is {escaped(seconds(known.plain))} forward and "
        f"backward on one batch: per-loss gradients (engine: {escaped(known.engine)}), and the method on its own, in "
        f"the last column. All per-loss gradients together take {memory(known.memory)}. Scalarizers add next to "
        f"nothing."
    )
    return Section("costs", "What it would cost", says, table(["method", "added to a step", "by itself"], rows))


def _more(rows: list[list[str]]) -> str:
    return f"<p>And {len(rows) - MOST_ROWS} more.</p>" if len(rows) > MOST_ROWS else ""
