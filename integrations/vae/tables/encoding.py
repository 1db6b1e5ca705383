"""From a table in original units to what a network reads, by statistics of the training rows alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..likelihoods.base import Likelihood
from .column import Column
from .encoder_inputs import INPUTS, ColumnInputs, Inputs
from .likelihood_scaling import scaled_likelihood
from .schema import Schema
from .table import Table

# Stands in a missing cell of a number until it is masked: every likelihood of a number has it in its range.
PLACEHOLDER = 0.5


@dataclass(frozen=True)
class Batch:
    """Rows as the model takes them.

    Shape:
        - features: ``(N, F)``, the encoder's input; 0 where missing.
        - scaled: ``(N, D)``, the targets in the likelihoods' scaled units; 0 where missing.
        - observed: ``(N, D)``, bool.
    """

    features: Tensor
    scaled: Tensor
    observed: Tensor

    def __len__(self) -> int:
        return self.features.shape[0]

    def select(self, rows: Tensor) -> Batch:
        """The rows with these numbers, ``(M,)`` of dtype int64."""
        parts = (self.features, self.scaled, self.observed)
        return Batch(*(part.index_select(0, rows) for part in parts))


class Encoding:
    r"""The likelihood of each column and the input of the encoder.

    With ``inputs="vae"``:

    ==========================  ======================================  =============================
    likelihood                  scaled value                            encoder input
    ==========================  ======================================  =============================
    normal                      x' = w (x - mean), w = 1 / std          x'
    lognormal                   x' = x^w, w = 1 / std(log x)            log x', centred
    gamma                       x' = w x, w = 1 / mean                  log x', standardised
    exponential                 x' = w x, w = 1 / mean                  log(1 + x'), standardised
    beta                        x                                       log-odds of x, standardised
    poisson, negative_binomial  x                                       log(1 + x), standardised
    hurdle_*                    0 or, by the cells above 0, as above    -1 or 1; 0 or as above
    bernoulli                   x                                       -1 or 1
    categorical, ordinal        x                                       one-hot
    ==========================  ======================================  =============================

    With ``inputs="hivae"`` the logarithm of a lognormal x' is centred too, w (log x - c) with c = mean(log x): linear
    maps would take long to reach it elsewhere. The other scaled values are the same, and the inputs go by the kind:

    ===============================  ==========================================
    kind                             encoder input
    ===============================  ==========================================
    real                             x, standardised
    positive                         log(1 + x), standardised
    count                            log(1 + x)
    binary, categorical, ordinal     one-hot
    with a likelihood hurdle_*       -1 or 1; 0 or, of cells above 0, as above
    ===============================  ==========================================

    Which likelihood a column has is stated in :class:`Column`.

    A missing cell is 0 in all its inputs: the mean of a number (of a count, with ``"hivae"``, a count of 0),
    neither of two categories, none of several. Means and standard deviations (over n, not n - 1) are those of the
    observed training cells; a column that is constant there keeps w = 1. The zeros of a positive column follow
    :class:`Column`: with ``"shift"``, and if the table has any, half of the smallest positive training value is added
    to all of its cells. So it is with the ends of a ``beta`` column: if the table has zeros or ones, all cells move
    inwards by half of the smallest distance of a training value from its end.

    Args:
        table: The whole table.
        rows: Numbers of the training rows, ``(M,)``.
        inputs: ``"vae"``, or ``"hivae"`` for the inputs of :class:`HIVAE`.

    Raises:
        ValueError: ``inputs`` is neither, or the training rows observe nothing of a column, only zeros of a
            positive one, or only zeros and ones of a ``beta`` one.

    Cost:
        A few passes over the training rows.

    Example:
        >>> import pandas as pd
        >>> table = Table.from_frame(pd.DataFrame({"x": [-1.0, 0.5, 2.0] * 4, "c": ["a", "b", "c"] * 4}))
        >>> encoding = Encoding(table, table.split().train)
        >>> encoding.num_features
        4
    """

    # Departs from the published code of HI-VAE: it standardises each batch by itself, and test rows by the test set.
    # What a row is encoded as would then depend on which rows stand next to it.

    def __init__(self, table: Table, rows: Tensor, inputs: Inputs = "vae") -> None:
        if inputs not in INPUTS:
            raise ValueError(
                f"Encoding: `inputs` must be among {', '.join(INPUTS)}, got {inputs!r}. Pick one of them."
            )
        self.schema: Schema = table.schema
        self.inputs: Inputs = inputs
        self.likelihoods: tuple[Likelihood, ...] = ()
        self._inputs: list[tuple[float, float]] = []
        for d, column in enumerate(table.schema):
            seen = table.observed[rows, d]
            if not seen.any():
                raise ValueError(
                    f"Encoding: column {column.name!r} must have an observed cell among the training rows, "
                    f"got {len(rows)} missing. Drop the column, or split by another seed."
                )
            training = table.values[rows, d][seen]
            likelihood = scaled_likelihood(column, table.values[:, d], training, centered=inputs == "hivae")
            self.likelihoods += (likelihood,)
            self._inputs.append(ColumnInputs(inputs, column, likelihood).statistics(training))

    @property
    def num_features(self) -> int:
        """The width F of the encoder's input."""
        return sum(own.width for own in self._columns())

    def _columns(self) -> list[ColumnInputs]:
        pairs = zip(self.schema, self.likelihoods, strict=True)
        return [ColumnInputs(self.inputs, column, likelihood) for column, likelihood in pairs]

    def encode(self, table: Table) -> Batch:
        """All rows of a table with the same schema, in float32.

        Raises:
            ValueError: the schema is another one, or a positive column has zeros (or less), or a ``beta``
                column zeros or ones, that the table of the training rows did not have, or a number is too far from
                the training rows' for float32.
        """
        if table.schema != self.schema:
            raise ValueError(
                "Encoding: `table` must have the schema it was fitted with, got another one. "
                "Pass that schema to Table.from_frame."
            )
        features, scaled, inputs = [], [], self._columns()
        for d, column in enumerate(self.schema):
            observed = table.observed[:, d]
            values = torch.where(observed, table.values[:, d], 0.0 if column.discrete else PLACEHOLDER)
            target = self.likelihoods[d].transform(values)
            if not torch.isfinite(target).all():
                raise ValueError(_message_of_ends(column))
            scaled.append(torch.where(observed, target, 0.0))
            features.append(torch.where(observed[:, None], inputs[d].encode(values, self._inputs[d]), 0.0))
            if not (scaled[d].float().isfinite().all() and features[d].float().isfinite().all()):
                raise ValueError(
                    f"Encoding: column {column.name!r} must hold numbers that float32 can, once scaled, got "
                    f"{values[values.abs().argmax()]:g}. Correct it, or make it missing."
                )
        return Batch(torch.cat(features, dim=1).float(), torch.stack(scaled, dim=1).float(), table.observed.clone())


def _message_of_ends(column: Column) -> str:
    """What to say of a cell whose scaled value is infinite."""
    if column.likelihood == "beta":
        return (
            f"Encoding: column {column.name!r} must hold numbers between 0 and 1, got zeros or ones that the "
            "training table did not have. Correct them, or pick another likelihood."
        )
    return (
        f"Encoding: positive column {column.name!r} must hold numbers above 0, got zeros that "
        "the training table did not have. Set its `zeros` to 'missing'."
    )
