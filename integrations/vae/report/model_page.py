"""The page of one trained model, without a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradsurgery.diagnostics.page import Section, escaped

from ..models.latent_model import LatentModel
from ..tables.encoding import Encoding
from ..tables.table import Table
from ..training.best_epoch import Epoch
from ..training.evaluation import column_errors, mean_of, reconstruct
from ..training.imputation import prior_rows
from . import text
from .charts import bars
from .comparison import SAMPLED_ROWS, guess_errors
from .marginals import marginals
from .page import report_page, swatches
from .schema_table import schema_entries


def model_page(
    title: str,
    model: LatentModel,
    encoding: Encoding,
    history: Sequence[Epoch],
    settings: Mapping[str, str],
    table: Table | None = None,
) -> str:
    """What a model has learnt, by itself or beside a table.

    Args:
        title: What the model is called.
        model: It.
        encoding: What it was trained with.
        history: One record an epoch; may be empty.
        settings: How it was trained, by name.
        table: With the model's schema; its rows are rebuilt and compared. ``None``: no table.
    """
    samples = prior_rows(model, SAMPLED_ROWS, torch.Generator().manual_seed(0))
    data = {} if table is None else {"data": table.values}
    keys = {**({} if table is None else {"data": "table"}), "surgery": "model"}
    sections = [
        Section(
            "samples",
            "Rows that the model makes up",
            f"How the values of each column are distributed in {SAMPLED_ROWS:,} rows drawn from the model"
            f"{'.' if table is None else ', and in the table. The closer the lines follow the grey, the better.'}",
            swatches(keys) + marginals(encoding.schema, {**data, "surgery": samples}),
        ),
        Section(
            "schema",
            "The schema",
            "What each column was taken for, and the distribution that the model gives its cells.",
            schema_entries(encoding.schema),
        ),
    ]
    lead = f"<p>A variational autoencoder of {len(encoding.schema)} columns{_trained(history)}.</p>"
    if table is not None:
        features = encoding.encode(table).features
        found = reconstruct(model, features.to(next(model.parameters())))
        sections.insert(0, _errors(table, found))
        sections.insert(1, _rebuilt(table, found, keys))
    return report_page(f"{title}: a VAE of a table", lead, sections, settings)


def _trained(history: Sequence[Epoch]) -> str:
    if not history:
        return ""
    lowest = min(epoch.validation_error for epoch in history)
    return f", trained for {len(history)} epochs; the best had a mean validation error of {text.error(lowest)}"


def _errors(table: Table, found: Tensor) -> Section:
    rows = torch.arange(len(table))
    errors = dict(zip(table.schema.names, column_errors(table, rows, found).tolist(), strict=True))
    guesses = guess_errors(table, rows, rows)
    finite = [value for own in (errors, guesses) for value in own.values() if math.isfinite(value)]
    longest = min(max(finite, default=0.0), 1.0) or 1.0
    lines = [
        f'<tr><td class="number dim">{index + 1}</td>'
        f'<th scope="row">{escaped(column.name)}<small>{column.kind}</small></th>'
        f"{_numbers(guesses[column.name], errors[column.name], longest)}</tr>"
        for index, column in enumerate(table.schema)
    ]
    mean = _numbers(mean_of(guesses), mean_of(errors), longest)
    body = (
        '<div class="scroll"><table class="errors"><thead><tr><th>#</th><th>column</th>'
        '<th class="number">guessing</th><th class="number">error</th><th class="wide-cell"></th></tr></thead>'
        f'<tbody>{"".join(lines)}<tr class="mean"><td></td><th scope="row">mean of all</th>{mean}</tr></tbody>'
        "</table></div>"
    )
    says = (
        f"How far the {len(table):,} rows of the table, rebuilt by the model, are from the true ones. Numbers: root "
        "mean squared error as a share of the column’s range (a constant column’s own units). Categories: share of "
        "the rows that got a wrong one. <em>Guessing</em> puts the mean, or the most frequent category, in every "
        "cell. Rows that the model was trained on look better than new ones."
    )
    return Section(
        "columns", "Error of every column", says, swatches({"surgery": "model", "guess": "guessing"}) + body
    )


def _numbers(guess: float, error: float, longest: float) -> str:
    drawn = bars({"surgery": error}, guess, longest, f"error {text.error(error)}")
    numbers = "".join(f'<td class="number">{text.error(value)}</td>' for value in (guess, error))
    return f'{numbers}<td class="wide-cell">{drawn}</td>'


def _rebuilt(table: Table, found: Tensor, keys: Mapping[str, str]) -> Section:
    return Section(
        "rebuilt",
        "What the model makes of the table",
        "The distribution of each column: in the table, and in the most likely values that the model rebuilds it "
        "with. An overlooked column shows as a single spike, the same value for every row. Lines that leave at the "
        "top go higher.",
        swatches(keys) + marginals(table.schema, {"data": table.values, "surgery": found}),
    )
