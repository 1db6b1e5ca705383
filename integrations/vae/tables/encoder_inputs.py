"""What the encoder sees of a column, by statistics of its training cells alone."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ..likelihoods import Exponential, Hurdle
from ..likelihoods.base import Likelihood
from .column import Column
from .likelihood_scaling import mean_and_weight

Inputs: TypeAlias = Literal["vae", "hivae"]
INPUTS: tuple[Inputs, ...] = get_args(Inputs)


class ColumnInputs:
    """One column's inputs; the tables in :class:`Encoding` say which.

    Args:
        inputs: Which of the two ways.
        column: The column.
        likelihood: Its likelihood.
    """

    def __init__(self, inputs: Inputs, column: Column, likelihood: Likelihood) -> None:
        self.as_hivae = inputs == "hivae"
        self.column, self.likelihood = column, likelihood
        self.classes = (column.classes or 1) if column.kind in ("categorical", "ordinal") else 0
        if column.kind == "binary" and self.as_hivae:
            self.classes = 2

    @property
    def width(self) -> int:
        """How many inputs the column has."""
        return self.classes or 1 + isinstance(self.likelihood, Hurdle)

    def statistics(self, training: Tensor) -> tuple[float, float]:
        """Mean and 1 / standard deviation of what is standardised; of a hurdle, over the cells above 0.

        Of discrete columns, whose inputs need none, 0 and 1; so too of counts as HI-VAE takes them.

        Args:
            training: The observed training cells, ``(M,)``, M >= 1.
        """
        if self.column.discrete or (self.as_hivae and self.column.kind == "count"):
            return 0.0, 1.0
        numbers = training[training > 0] if isinstance(self.likelihood, Hurdle) else training
        return mean_and_weight(self._number(numbers)) if len(numbers) else (0.0, 1.0)

    def encode(self, values: Tensor, statistics: tuple[float, float]) -> Tensor:
        """The inputs ``(N, width)`` of cells in original units, ``(N,)``, none of them missing."""
        if self.classes:
            return functional.one_hot(values.long(), self.classes).double()
        if self.column.kind == "binary":
            return (2 * values - 1)[:, None]
        mean, weight = statistics
        if not isinstance(self.likelihood, Hurdle):
            return (weight * (self._number(values) - mean))[:, None]
        zero = values == 0
        amounts = weight * (self._number(torch.where(zero, 1.0, values)) - mean)
        return torch.stack([torch.where(zero, -1.0, 1.0), torch.where(zero, 0.0, amounts)], dim=1)

    def _number(self, values: Tensor) -> Tensor:
        """What is standardised of the cells of a number; of a hurdle, of those above 0."""
        if self.column.kind == "count" or (self.as_hivae and self.column.kind == "positive"):
            return torch.log1p(values)
        if self.as_hivae:
            return values
        likelihood = self.likelihood.above if isinstance(self.likelihood, Hurdle) else self.likelihood
        scaled = likelihood.transform(values)
        return torch.log1p(scaled) if isinstance(likelihood, Exponential) else scaled
