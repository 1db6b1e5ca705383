"""Writes guarantees.md from the contracts that the tests hold every method to; ``make docs`` runs it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradsurgery import aggregators, scalarizers
from gradsurgery.aggregators import contrib

PAGE = Path(__file__).with_name("guarantees.md")

METHOD_WORDS = {
    "non_conflicting": ("no harm", "`J @ d >= 0`: to first order, no loss gets worse through the shared parameters."),
    "stationary": ("Pareto", "the direction is zero exactly where no direction helps every loss."),
    "linear_under_scaling": ("linear", "a loss scaled by c contributes c times as much, so that units matter."),
    "equals_mean_without_conflict": ("mean", "where no two gradients conflict, it is their mean."),
    "zero_rows_constrain_nothing": ("zero rows", "a loss whose gradient is zero does not hold the others back."),
    "scale_equivariant": ("scale", "all gradients s times as long: the same direction, s times as long."),
    "permutation_equivariant": ("order", "the order of the losses does not matter."),
    "one_loss_is_identity": ("one loss", "a single loss keeps its gradient, bit for bit."),
    "batched": ("batched", "leading dimensions are separate problems, solved together."),
    "no_host_sync": ("no sync", "on a GPU nothing is read on the host, for up to 8 losses and in CUDA graphs."),
    "state_round_trip": ("state", "it remembers or draws something, and continues bit for bit from a checkpoint."),
}

SCALARIZER_WORDS = {
    "monotone": ("monotone", "no loss is weighed negatively."),
    "invariant_to_units": ("units", "in another unit, a loss keeps its share of the weighed sum."),
    "constant_total": ("total", "the weights add up to the same number in every step."),
    "linear_under_scaling": ("linear", "a loss scaled by c contributes c times as much, so that units matter."),
    "scale_equivariant": ("scale", "the weights do not depend on the common scale of the losses."),
    "permutation_equivariant": ("order", "the order of the losses does not matter."),
    "one_loss_is_identity": ("one loss", "a single loss has weight 1."),
    "no_host_sync": ("no sync", "on a GPU nothing is read on the host."),
    "state_round_trip": ("state", "it remembers or draws something, and continues bit for bit from a checkpoint."),
}

PAGE_TEXT = """\
# What each method guarantees

<!-- Written by docs/generate_guarantees.py from the contracts of the methods; `make docs` writes it anew. -->

Every ✓ is a test. For each method it runs over Jacobians that are hard to aggregate: conflicting, near-singular,
rank-deficient, badly scaled, with zero, opposed and duplicate rows. Where there is no ✓, nothing is promised. Methods
are as they come, without options (`Chain` of GradNorm and PCGrad, `CRMOGM` around MGDA); what an option changes is in
[their docstrings](api/methods.md). Two things hold for all: gradients that are not finite give a direction that is
not finite, raise nothing and leave the method's state alone; and a method continues from a copy, a pickle or a
checkpoint as if nothing had happened.

What to look for: **no harm**, where no loss may be traded for the others; **linear**, where the weights that you have
put in front of your losses are to count, and its absence where units are arbitrary; **mean**, where training without
conflict is to go on as it was. [Choosing a method](choosing.md) starts from the problem instead.

## Methods

J is the matrix of the per-loss gradients, one a row, d the direction.

{method_words}

From the inner products of the gradients alone:

{gramian}

From the gradients themselves, all of which are kept:

{jacobian}

`gs.aggregators.contrib`, newer and less checked:

{contrib}

## Scalarizers

What is promised about weights is promised about the derivatives of the scalar, in every step of a training. The last
column says which losses a scalarizer is meant for; it refuses others.

{scalarizer_words}

{scalarizers}
"""


def page() -> str:
    """The whole page."""
    newer = {getattr(contrib, name) for name in contrib.__all__}
    rows = {cls: contract.guarantees for cls, contract in aggregators.CONTRACTS.items()}
    kinds = {cls: contract.kind for cls, contract in aggregators.CONTRACTS.items()}
    return PAGE_TEXT.format(
        method_words=words(METHOD_WORDS),
        gramian=table({cls: rows[cls] for cls in rows if kinds[cls] == "gramian" and cls not in newer}, METHOD_WORDS),
        jacobian=table(
            {cls: rows[cls] for cls in rows if kinds[cls] == "jacobian" and cls not in newer}, METHOD_WORDS
        ),
        contrib=table({cls: rows[cls] for cls in rows if cls in newer}, METHOD_WORDS),
        scalarizer_words=words(SCALARIZER_WORDS),
        scalarizers=table(
            {cls: contract.guarantees for cls, contract in scalarizers.CONTRACTS.items()},
            SCALARIZER_WORDS,
            {cls: f"{contract.domain} numbers" for cls, contract in scalarizers.CONTRACTS.items()},
        ),
    )


def words(described: Mapping[str, tuple[str, str]]) -> str:
    """What each column of a table means."""
    return "\n".join(f"- **{short}**: {meaning}" for short, meaning in described.values())


def table(
    rows: Mapping[type[Any], frozenset[str]],
    described: Mapping[str, tuple[str, str]],
    takes: Mapping[type[Any], str] | None = None,
) -> str:
    """A row a method, in alphabetical order, a column a guarantee."""
    titles = [short for short, _ in described.values()]
    lines = [["", *titles, *(["takes"] if takes else [])]]
    lines.append(["---", *[":-:"] * len(titles), *(["---"] if takes else [])])
    for cls in sorted(rows, key=lambda cls: cls.__name__.lower()):
        unknown = rows[cls] - described.keys()
        if unknown:
            raise ValueError(f"table: `described` must explain all guarantees, got none for {sorted(unknown)}.")
        marks = ["✓" if flag in rows[cls] else "" for flag in described]
        lines.append([f"`{cls.__name__}`", *marks, *([takes[cls]] if takes else [])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
