"""From a table in original units to what a network reads, by statistics of the training rows alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .column import Column
from .likelihood import Likelihood
from .likelihoods import Bernoulli, Categorical, LogNormal, Normal, Poisson
from .schema import Schema
from .table import Table

# Below this fraction of the largest value, a spread is rounding: 0.1 repeated has a tiny one.
ROUNDING = 1e-12
SMALLEST_SPREAD = 1e-300


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

    ========================  =======================================  ===============================
    kind                      likelihood of the scaled value           encoder input
    ========================  =======================================  ===============================
    real                      Normal, x' = w (x - mean), w = 1 / std   x'
    positive                  LogNormal, x' = x^w, w = 1 / std(log x)  log x', centred
    count                     Poisson, unscaled                        log(1 + x), standardised
    binary                    Bernoulli                                -1 or 1
    categorical, ordinal      Categorical                              one-hot
    ========================  =======================================  ===============================

    A missing cell is 0 in all its inputs: the mean of a number, neither of two categories, none of
    several. Means and standard deviations (over n, not n - 1) are those of the observed training
    cells; a column that is constant there keeps w = 1. The zeros of a positive column follow
    :class:`Column`: with ``"shift"``, and if the table has any, half of the smallest positive training
    value is added to all of its cells.

    Args:
        table: The whole table.
        rows: Numbers of the training rows, ``(M,)``.

    Raises:
        ValueError: the training rows observe nothing of a column, or only zeros of a positive one.

    Cost:
        A few passes over the training rows.

    Example:
        >>> import pandas as pd
        >>> table = Table.from_frame(pd.DataFrame({"x": [-1.0, 0.5, 2.0] * 4, "c": ["a", "b", "c"] * 4}))
        >>> encoding = Encoding(table, table.split().train)
        >>> encoding.num_features
        4
    """

    def __init__(self, table: Table, rows: Tensor) -> None:
        self.schema: Schema = table.schema
        self.likelihoods: tuple[Likelihood, ...] = ()
        self._inputs: list[tuple[float, float]] = []
        for d, column in enumerate(table.schema):
            seen = table.observed[rows, d]
            if not seen.any():
                raise ValueError(
                    f"Encoding: column {column.name!r} must have an observed cell among the training rows, "
                    f"got {len(rows)} missing. Drop the column, or split by another seed."
                )
            has_zeros = bool((table.values[:, d] == 0).any())
            training = table.values[rows, d][seen]
            likelihood = _likelihood(column, training, has_zeros)
            self.likelihoods += (likelihood,)
            self._inputs.append(_mean_and_weight(_input(column, likelihood, training)))

    @property
    def num_features(self) -> int:
        """The width F of the encoder's input."""
        return sum(column.classes or 1 if _one_hot(column) else 1 for column in self.schema)

    def encode(self, table: Table) -> Batch:
        """All rows of a table with the same schema, in float32.

        Raises:
            ValueError: the schema is another one, or a positive column has zeros (or less) here that the
                table of the training rows did not have.
        """
        if table.schema != self.schema:
            raise ValueError(
                "Encoding: `table` must have the schema it was fitted with, got another one. "
                "Pass that schema to Table.from_frame."
            )
        features, scaled = [], []
        for d, column in enumerate(self.schema):
            observed = table.observed[:, d]
            values = torch.where(observed, table.values[:, d], 0.0 if column.discrete else 1.0)
            target = self.likelihoods[d].transform(values)
            if not torch.isfinite(target).all():
                raise ValueError(
                    f"Encoding: positive column {column.name!r} must hold numbers above 0, got zeros that "
                    "the training table did not have. Set its `zeros` to 'missing'."
                )
            scaled.append(torch.where(observed, target, 0.0))
            features.append(torch.where(observed[:, None], self._features(d, values), 0.0))
        return Batch(torch.cat(features, dim=1).float(), torch.stack(scaled, dim=1).float(), table.observed.clone())

    def _features(self, d: int, values: Tensor) -> Tensor:
        column = self.schema.columns[d]
        if _one_hot(column):
            return functional.one_hot(values.long(), column.classes or 1).double()
        if column.kind == "binary":
            return (2 * values - 1)[:, None]
        mean, weight = self._inputs[d]
        return (weight * (_input(column, self.likelihoods[d], values) - mean))[:, None]


def _likelihood(column: Column, training: Tensor, has_zeros: bool) -> Likelihood:
    """The likelihood of a column, scaled by its observed training values, which are in original units."""
    if column.kind == "real":
        # Departs from x' = w x: centred too, as the published experiment's tables were, because the result would
        # otherwise depend on where the zero of the units lies.
        mean, weight = _mean_and_weight(training)
        return Normal(weight, center=mean)
    if column.kind == "count":
        return Poisson(float(training.max()))
    if column.kind == "binary":
        return Bernoulli()
    if column.discrete:
        return Categorical(column.classes or 1)
    positive = training[training > 0]
    if not len(positive):
        raise ValueError(
            f"Encoding: positive column {column.name!r} must have a number above 0 among the training rows, "
            "got zeros only. Drop the column, make its kind real, or split by another seed."
        )
    shift = float(positive.min()) / 2 if has_zeros else 0.0
    _, weight = _mean_and_weight(torch.log(training + shift))
    return LogNormal(weight, shift=shift)


def _one_hot(column: Column) -> bool:
    return column.kind in ("categorical", "ordinal")


def _input(column: Column, likelihood: Likelihood, values: Tensor) -> Tensor:
    """What is standardised for the encoder; for kinds that are numbers."""
    return torch.log1p(values) if column.kind == "count" else likelihood.transform(values)


def _mean_and_weight(values: Tensor) -> tuple[float, float]:
    """Mean and 1 / standard deviation, which is 1 where there is no spread but rounding."""
    mean = values.mean()
    largest = (values - mean).abs().max()
    if largest <= max(ROUNDING * float(values.abs().max()), SMALLEST_SPREAD):
        return float(mean), 1.0
    # Divided by the largest first: the squares of 1e200 are infinite, those of 1e-200 zero.
    deviation = largest * ((values - mean) / largest).square().mean().sqrt()
    return float(mean), 1.0 / float(deviation)
