"""A diagnosis as plain text, to be read in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .. import similarity, wording
from .advice import headline, weights_of

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

WIDTH = 100
MOST_LOSSES, MOST_PAIRS, MOST_LAYERS, MOST_METHODS = 6, 5, 3, 5
NAME, PAIR_NAME = 24, 18  # characters

STANDINGS = {
    "systematic": "conflict",
    "shallow": "slight conflict",
    "unclear": "perhaps a conflict",
    "noise": "noise only",
    "none": "no conflict",
}


def described(diagnosis: Diagnosis) -> str:
    """The whole text: the verdict, what to do, then the evidence."""
    advice = diagnosis.recommendation
    parts = [*_filled(headline(diagnosis.findings)), "", *_filled(advice.reason), "", f"    {advice.code}", ""]
    for sentence in advice.also:
        parts += _filled(sentence, "- ")
    for section in (losses(diagnosis), pairs(diagnosis), layers(diagnosis), costs(diagnosis)):
        if section:
            parts += ["", *section]
    return "\n".join(parts)


def _gain(diagnosis: Diagnosis) -> str:
    """What the word means; with many losses, also what to expect of it where nothing is wrong."""
    if len(diagnosis.names) <= 3:
        return "  gain: what a small step does for a loss, of what as long a step along its own gradient would"
    usual = wording.share(len(diagnosis.names) ** -0.5)
    return f"  gain: of what as long a step along its own gradient would do (equal lengths, right angles: {usual})"


def losses(diagnosis: Diagnosis) -> list[str]:
    """A line for each loss."""
    found, shown = diagnosis.findings, range(min(len(diagnosis.names), MOST_LOSSES))
    header, columns = loss_columns(diagnosis)
    rows = [[wording.shortened(diagnosis.names[k], NAME), *(column[k] for column in columns)] for k in shown]
    numbers = sum(diagnosis.sizes)
    where = f"{numbers:,} shared numbers" if numbers else "no shared parameters"
    batches = "1 batch" if found.batches == 1 else f"{found.batches} batches"
    title = (
        "Losses" if len(rows) == len(diagnosis.names) else f"The first {len(rows)} losses of {len(diagnosis.names)}"
    )
    text = [f"{title} in {batches}, on {where}", *aligned([header, *rows])]
    if any(name.startswith("gain") for name in header):
        text.append(_gain(diagnosis))
    for name, count in diagnosis.non_finite.items():
        text.append(f"  '{wording.shortened(name, NAME)}' was not finite in {count} of them and left out there")
    return text


def loss_columns(diagnosis: Diagnosis) -> tuple[list[str], list[list[str]]]:
    """What is said of each loss, as text by column; the header has the names' column too."""
    found, names = diagnosis.findings, diagnosis.names
    values = [f"{value:.3g}" for value in diagnosis.losses.tolist()]
    lengths = [_length(diagnosis, k) for k in range(len(names))]
    noise = ["–" if value != value else _noise(value) for value in found.noise.tolist()]
    header, columns = ["loss", "value", "mean gradient", "noise/signal"], [values, lengths, noise]
    ways = {"sum": torch.ones(len(names), dtype=torch.float64)}
    advised = weights_of(diagnosis.recommendation.build(), found)
    if advised is not None and diagnosis.recommendation.method != "sum":
        ways["advised"] = advised
    if len(names) > 1 and bool(found.with_signal.any()):
        for name, weights in ways.items():
            header.append(f"gain, {name}")
            shares = found.progress(weights).tolist()
            columns.append(["–" if share != share else f"{100 * share + 0.0:.0f}%" for share in shares])
    return header, columns


def _length(diagnosis: Diagnosis, k: int) -> str:
    length = float(diagnosis.findings.lengths[k])
    if length == length:
        return f"{length:.3g}"
    return "in noise" if diagnosis.findings.with_gradient[k] else "zero"


def _noise(value: float) -> str:
    return f"{value:.3g}" if value >= 0.001 else "0"


def pairs(diagnosis: Diagnosis) -> list[str]:
    """A line for each pair of losses, the deepest conflict first."""
    if len(diagnosis.names) < 2 or not diagnosis.groups:
        return []
    rows = pair_rows(diagnosis)
    header = ["pair", "cosine of means", "in a batch", "conflicting batches", "verdict"]
    title = "Pairs" if len(rows) <= MOST_PAIRS else f"The {MOST_PAIRS} pairs of {len(rows)} that conflict most"
    return [f"{title}, by the cosine between their gradients", *aligned([header, *rows[:MOST_PAIRS]])]


def pair_rows(diagnosis: Diagnosis) -> list[list[str]]:
    """What is said of each pair, as text."""
    found, names = diagnosis.findings, diagnosis.names
    order = sorted(similarity.pairs(len(names)), key=lambda pair: _first(diagnosis, *pair))
    rows = []
    for i, j in order:
        cosine, error = float(found.cosines[i, j]), float(found.cosine_errors[i, j])
        about = f" ± {error:.2f}" if error == error else ""
        verdict = STANDINGS[found.standing[i, j]] if found.judged else "not certain"
        if cosine != cosine and bool(found.with_gradient[i] & found.with_gradient[j]):
            verdict = "lost in noise"
        rows.append(
            [
                _pair(names[i], names[j]),
                "–" if cosine != cosine else f"{cosine + 0.0:.2f}{about}",
                _number(float(found.batch_cosines[i, j])),
                wording.share(float(found.conflict_shares[i, j])),
                verdict,
            ]
        )
    return rows


def _pair(first: str, second: str) -> str:
    return f"{wording.shortened(first, PAIR_NAME)}, {wording.shortened(second, PAIR_NAME)}"


def _first(diagnosis: Diagnosis, i: int, j: int) -> tuple[float, float]:
    """Deep conflicts first, then those of the batches."""
    found = diagnosis.findings
    cosine = float(found.cosines[i, j])
    return (cosine if cosine == cosine else 0.5), -float(found.conflict_shares[i, j].nan_to_num(0.0))


def _number(value: float) -> str:
    return "–" if value != value else f"{value + 0.0:.2f}"


def layers(diagnosis: Diagnosis) -> list[str]:
    """The groups of parameters with the deepest conflicts."""
    if len(diagnosis.groups) < 2 or len(diagnosis.names) < 2 or not diagnosis.findings.judged:
        return []
    rows = layer_rows(diagnosis)
    if not rows:
        return [f"No conflict beyond chance in any of the {len(diagnosis.groups)} layers by itself."]
    count = len({row[0] for row in rows})
    title = f"Conflicts beyond chance in {count} of {len(diagnosis.groups)} layers by themselves, the deepest first"
    return [title, *aligned([["layer", "numbers", "pair", "cosine"], *rows[:MOST_LAYERS]])]


def layer_rows(diagnosis: Diagnosis) -> list[list[str]]:
    """Conflicts within groups, as text, the deepest first."""
    places = diagnosis.group_conflicts.nonzero().tolist()
    places.sort(key=lambda place: float(diagnosis.group_cosines[tuple(place)]))
    return [
        [
            wording.shortened(diagnosis.groups[group], NAME),
            f"{diagnosis.sizes[group]:,}",
            _pair(diagnosis.names[i], diagnosis.names[j]),
            f"{float(diagnosis.group_cosines[group, i, j]):.2f}",
        ]
        for group, i, j in places
    ]


SHOWN = ("lossbalancer", "upgrad", "pcgrad", "graddrop", "mgda")


def costs(diagnosis: Diagnosis) -> list[str]:
    """What steps would take."""
    known = diagnosis.costs
    if known is None:
        return []
    own = diagnosis.recommendation.method
    order = dict.fromkeys(name for name in (own, *SHOWN) if name in known.methods and name != "sum")
    more = ", ".join(f"{name} +{wording.share(known.extra(name))}" for name in list(order)[:MOST_METHODS])
    text = [f"Cost of a step, beside the plain sum's {seconds(known.plain)} (forward and backward)"]
    scalarizers = "scalarizers, such as famo, about 0%: one backward pass"
    return text + _filled(f"{more}; {scalarizers}. Per-loss gradients take {memory(known.memory)}.", "  ")


def seconds(value: float) -> str:
    """A duration.

    Example:
        >>> seconds(0.00123), seconds(2.5)
        ('1.23 ms', '2.5 s')
    """
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def memory(count: int) -> str:
    """Bytes.

    Example:
        >>> memory(24), memory(37_000), memory(5 << 20)
        ('24 bytes', '36.1 kB', '5.0 MB')
    """
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, the first to the left, numbers to the right and other words to the left."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    left = [
        at == 0 or not any(cell[-1:].isdigit() or cell[-1:] == "%" for cell in column[1:])
        for at, column in enumerate(columns)
    ]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    ]


def _filled(text: str, first: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False
    )


__all__ = ["described"]
