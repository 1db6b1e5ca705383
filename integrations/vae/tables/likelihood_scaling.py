"""The likelihood of a column, scaled by its training values."""

from __future__ import annotations

import torch
from torch import Tensor

from ..likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    Exponential,
    Gamma,
    Hurdle,
    LogNormal,
    NegativeBinomial,
    Normal,
    Ordinal,
    Poisson,
    ZeroTruncatedPoisson,
)
from ..likelihoods.base import Likelihood
from .column import Column

# Below this fraction of the largest value, a spread is rounding: 0.1 repeated has a tiny one.
ROUNDING = 1e-12
SMALLEST_SPREAD = 1e-300
# So that 1 minus it, and the log-odds of that, are still exact in float64.
SMALLEST_SQUEEZE = 1e-10


def scaled_likelihood(column: Column, values: Tensor, training: Tensor, *, centered: bool = False) -> Likelihood:
    """The likelihood that the column names, or that of its kind.

    Args:
        column: Its description.
        values: All cells of the table, NaN where missing, in original units, ``(N,)``: only whether some
            are exactly at the end of the range is used.
        training: The observed training cells, ``(M,)``, M >= 1.
        centered: Whether the logarithms of lognormal values are centred.

    Raises:
        ValueError: nothing can be scaled by the training cells.
    """
    name = column.likelihood_name
    if name == "normal":
        # Departs from x' = w x: centred too, as the published experiment's tables were, because the result would
        # otherwise depend on where the zero of the units lies.
        mean, weight = mean_and_weight(training)
        return Normal(weight, center=mean)
    if name == "poisson":
        return Poisson(float(training.max()))
    if name == "negative_binomial":
        return NegativeBinomial(float(training.max()))
    if name == "hurdle_poisson":
        return Hurdle(ZeroTruncatedPoisson(float(training.max())))
    if name == "bernoulli":
        return Bernoulli()
    if name == "categorical":
        return Categorical(column.classes or 1)
    if name == "ordinal":
        return _ordinal(column)
    if name == "beta":
        return _beta(column, values, training)
    return _positive(column, values, training, centered)


def _ordinal(column: Column) -> Ordinal:
    if (column.classes or 0) < 2:
        raise ValueError(
            f"Encoding: column {column.name!r} must have at least two categories for likelihood 'ordinal', got "
            f"{column.classes}. Make it 'categorical', or drop the column."
        )
    return Ordinal(column.classes or 0)


def _beta(column: Column, values: Tensor, training: Tensor) -> Beta:
    inside = training[(training > 0) & (training < 1)]
    if not len(inside):
        raise ValueError(
            f"Encoding: column {column.name!r} must have a number between 0 and 1 among the training rows for "
            "likelihood 'beta', got zeros and ones only. Make its kind binary, or split by another seed."
        )
    if not ((values == 0) | (values == 1)).any():
        return Beta()
    nearest = min(float(inside.min()), 1.0 - float(inside.max()))
    return Beta(squeeze=max(nearest / 2, SMALLEST_SQUEEZE))


def _positive(column: Column, values: Tensor, training: Tensor, centered: bool) -> Likelihood:
    """Of a column that has a number above 0."""
    above = training[training > 0]
    if not len(above):
        raise ValueError(
            f"Encoding: positive column {column.name!r} must have a number above 0 among the training rows, "
            "got zeros only. Drop the column, make its kind real, or split by another seed."
        )
    name = column.likelihood_name
    if name == "exponential":
        return Exponential(1.0 / _mean(training))
    if name == "hurdle_lognormal":
        mean, weight = mean_and_weight(torch.log(above))
        return Hurdle(LogNormal(weight, center=mean if centered else 0.0))
    if name == "hurdle_gamma":
        return Hurdle(Gamma(1.0 / _mean(above)))
    shift = float(above.min()) / 2 if bool((values == 0).any()) else 0.0
    if name == "gamma":
        return Gamma(1.0 / _mean(training + shift), shift=shift)
    mean, weight = mean_and_weight(torch.log(training + shift))
    return LogNormal(weight, shift=shift, center=mean if centered else 0.0)


def _mean(values: Tensor) -> float:
    """The mean of non-negative values, whose sum may be infinite."""
    largest = values.max()
    return float(largest * (values / largest).mean())


def mean_and_weight(values: Tensor) -> tuple[float, float]:
    """Mean and 1 / standard deviation, which is 1 where there is no spread but rounding."""
    mean = values.mean()
    largest = (values - mean).abs().max()
    if largest <= max(ROUNDING * float(values.abs().max()), SMALLEST_SPREAD):
        return float(mean), 1.0
    # Divided by the largest first: the squares of 1e200 are infinite, those of 1e-200 zero.
    deviation = largest * ((values - mean) / largest).square().mean().sqrt()
    return float(mean), 1.0 / float(deviation)
