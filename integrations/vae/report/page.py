"""The page as a whole: its parts in order, and what each of them shows in a sentence or two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd
import torch

from gradsurgery.diagnostics.page import Section, escaped, page

from .comparison import Comparison
from .errors import errors
from .gradients import conflict_maps, pull_lines, validation_lines, where
from .headline import headline
from .marginals import marginals
from .schema_table import overriding, schema_table
from .style import STYLE


def comparison_page(comparison: Comparison) -> str:
    """The page, which needs nothing but a browser: no script, no file beside it, nothing from a network."""
    table, label = comparison.table, escaped(comparison.surgery.label)
    columns = "1 column" if len(table.schema) == 1 else f"{len(table.schema)} columns"
    lead = (
        f"<p>A variational autoencoder squeezes each row of <strong>{escaped(comparison.title)}</strong> "
        f"({len(table):,} rows, {columns}) into a few numbers and rebuilds the row from them. Each "
        "column is a training goal of its own, and all goals pull on the same network. Ordinary training adds the "
        "pulls up: the <em>plain sum</em>. Columns that pull hard then drown out others, which the model overlooks. "
        f"<em>Gradient surgery</em>, here {label}, weighs the pulls before they are added. Two models were trained "
        "from the same start, on the same rows in the same order; only this differs.</p>"
    )
    return report_page(
        f"{comparison.title}: a VAE with and without gradient surgery",
        lead + headline(comparison),
        _sections(comparison),
        {
            "table": comparison.title,
            "rows": "{} train, {} validation, {} test".format(*map(len, _parts(comparison))),
            **comparison.settings,
            "epochs kept": ", ".join(f"{arm.run.best_epoch + 1} ({arm.label})" for arm in comparison.arms),
        },
    )


def _parts(comparison: Comparison) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    split = comparison.plain.run.split
    return split.train, split.validation, split.test


def _sections(comparison: Comparison) -> list[Section]:
    plain, surgery = comparison.arms
    schema = comparison.table.schema
    return [
        Section(
            "columns",
            "Error of every column",
            "How far the rebuilt test rows are from the true ones. Numbers: root mean squared error as a share of "
            "the column’s range (a constant column’s own units). Categories: share of the rows that got a wrong "
            "one. <em>Guessing</em> puts the mean, or the most frequent category, in every cell: a column that is "
            "hardly better was overlooked (in skewed columns the most likely value is not the mean, which can make "
            "guessing look better). The <em>share of the pull</em> tells how much of what moves the layers that all "
            f"columns share came from that column{where(comparison)}.",
            legend(comparison, guess=True) + errors(comparison),
        ),
        Section(
            "rebuilt",
            "What the models make of the test rows",
            "The distribution of each column: in the test rows, and in the most likely values that the models "
            "rebuild them with. An overlooked column shows as a single spike, the same value for every row. Lines "
            "that leave at the top go higher.",
            legend(comparison, data="test rows")
            + marginals(
                schema,
                {"data": comparison.test_cells, "plain": plain.reconstructions, "surgery": surgery.reconstructions},
            ),
        ),
        Section(
            "samples",
            "Rows that the models make up",
            f"The same for {len(plain.samples):,} new rows drawn from each model. The closer the lines follow the "
            "grey, the better.",
            legend(comparison, data="whole table")
            + marginals(
                schema, {"data": comparison.table.values, "plain": plain.samples, "surgery": surgery.samples}
            ),
        ),
        Section(
            "conflicts",
            "Which columns pull against each other",
            "Each square compares the pulls of two columns on the layer they share, by the cosine between their "
            "gradients: 1 where both want the same change, 0 where they do not interfere, −1 where one wants the "
            "opposite of the other. Each is the mean over the steps of the epochs named below it.",
            conflict_maps(comparison),
        ),
        Section(
            "training",
            "Over the training",
            "First, how many times harder the strongest column pulls than the weakest: balancing keeps that small. "
            "Then, how the error fell.",
            f'<div class="lines">{pull_lines(comparison)}{validation_lines(comparison)}</div>',
        ),
        Section(
            "schema",
            "The schema",
            "What each column was taken for, and the distribution that the models give its cells. Missing cells "
            "count in no error and in no pull.",
            schema_table(comparison.table) + overriding(schema, comparison.title),
        ),
    ]


def legend(comparison: Comparison, *, data: str = "", guess: bool = False) -> str:
    """What the colours mean."""
    arms = {"plain": comparison.plain.label, "surgery": comparison.surgery.label}
    return swatches({**({"data": data} if data else {}), **arms, **({"guess": "guessing"} if guess else {})})


def swatches(keys: Mapping[str, str]) -> str:
    """Names beside their colours, by class in the style sheet."""
    spans = "".join(f'<span><span class="swatch {kind}"></span>{escaped(name)}</span>' for kind, name in keys.items())
    return f'<p class="legend">{spans}</p>'


def report_page(title: str, lead: str, sections: Iterable[Section], settings: Mapping[str, str]) -> str:
    """An HTML document, with the style sheet of the drawings."""
    return page(title, lead, sections, {**settings, "pandas": pd.__version__}, style=STYLE)
