"""Gamma, exponential, beta, negative binomial, truncated, ordinal and hurdle densities against SciPy, in float64."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from gradsurgery.integrations.vae import (
    Beta,
    Exponential,
    Gamma,
    Hurdle,
    Likelihood,
    LogNormal,
    NegativeBinomial,
    Ordinal,
    ZeroTruncatedPoisson,
)

ROWS = 60


def parameters(likelihood: Likelihood, scale: float = 2.0, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return likelihood.natural(
        scale * torch.randn(rows, likelihood.num_parameters, generator=generator, dtype=torch.float64)
    )


def in_original_units(likelihood: Likelihood, values: Tensor, eta: Tensor) -> Tensor:
    return likelihood.log_prob(likelihood.transform(values), eta) + likelihood.log_jacobian(values)


def close(ours: Tensor, reference: object, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(reference), rtol=rtol, atol=atol)


def test_comparison_can_fail() -> None:
    with pytest.raises(AssertionError):
        close(torch.tensor([1.0 + 1e-8], dtype=torch.float64), [1.0])


@pytest.mark.parametrize("shift", [0.0, 0.75])
def test_gamma(shift: float) -> None:
    likelihood = Gamma(0.3, shift=shift)
    eta = parameters(likelihood)
    mean, shape = eta.exp().numpy().T
    values = torch.linspace(0.01, 30, ROWS, dtype=torch.float64)
    reference = scipy.stats.gamma(a=shape, scale=mean / shape / 0.3, loc=-shift)
    close(in_original_units(likelihood, values, eta), reference.logpdf(values.numpy()))
    natural = (shape - 1) * np.log(0.3 * (values.numpy() + shift)) - shape / mean * 0.3 * (values.numpy() + shift)
    terms = shape * np.log(shape / mean) - scipy.special.gammaln(shape) + math.log(0.3)
    close(in_original_units(likelihood, values, eta), natural + terms)


def test_gamma_of_a_large_shape_does_not_cancel_in_float32() -> None:
    eta = torch.tensor([[0.4, 8.9]])
    scaled = torch.linspace(0.37, 0.43, ROWS)
    reference = Gamma().log_prob(scaled.double(), eta.double())
    torch.testing.assert_close(Gamma().log_prob(scaled, eta).double(), reference, rtol=1e-4, atol=1e-2)
    beta = torch.tensor([[8.9, 8.8]])
    log_odds = torch.linspace(0.05, 0.15, ROWS)
    reference = Beta().log_prob(log_odds.double(), beta.double())
    torch.testing.assert_close(Beta().log_prob(log_odds, beta).double(), reference, rtol=1e-4, atol=1e-2)


def test_exponential() -> None:
    likelihood = Exponential(0.3)
    eta = parameters(likelihood)
    values = torch.linspace(0.0, 30, ROWS, dtype=torch.float64)
    reference = scipy.stats.expon(scale=eta[:, 0].exp().numpy() / 0.3)
    close(in_original_units(likelihood, values, eta), reference.logpdf(values.numpy()))


@pytest.mark.parametrize("squeeze", [0.0, 0.05])
def test_beta(squeeze: float) -> None:
    likelihood = Beta(squeeze=squeeze)
    eta = parameters(likelihood)
    alpha, beta = eta.exp().numpy().T
    values = torch.linspace(0.01, 0.99, ROWS, dtype=torch.float64)
    width = 1 - 2 * squeeze
    reference = scipy.stats.beta(alpha, beta, loc=-squeeze / width, scale=1 / width)
    close(in_original_units(likelihood, values, eta), reference.logpdf(values.numpy()))


def test_negative_binomial() -> None:
    likelihood = NegativeBinomial(200)
    eta = parameters(likelihood)
    mean, size = eta.exp().numpy().T
    values = torch.arange(ROWS, dtype=torch.float64)
    reference = scipy.stats.nbinom(size, size / (size + mean))
    close(in_original_units(likelihood, values, eta), reference.logpmf(values.numpy()))


def test_zero_truncated_poisson() -> None:
    likelihood = ZeroTruncatedPoisson(50)
    eta = parameters(likelihood)
    rate = eta[:, 0].exp().numpy()
    values = torch.arange(1, ROWS + 1, dtype=torch.float64)
    reference = scipy.stats.poisson(rate).logpmf(values.numpy()) - np.log(-np.expm1(-rate))
    close(in_original_units(likelihood, values, eta), reference)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_ordinal_is_the_difference_of_cumulative_probabilities(classes: int) -> None:
    likelihood = Ordinal(classes)
    eta = parameters(likelihood)
    logits = torch.cat([eta[:, :1], eta[:, :1] - eta[:, 1:].cumsum(1)], dim=1).numpy()
    reached = np.column_stack([np.ones(ROWS), scipy.special.expit(logits), np.zeros(ROWS)])
    probabilities = reached[:, :-1] - reached[:, 1:]
    for code in range(classes):
        ours = likelihood.log_prob(torch.full((ROWS,), float(code)), eta).exp()
        close(ours, probabilities[:, code], rtol=1e-7, atol=1e-10)
    close(likelihood.mode(eta), probabilities.argmax(1).astype(float))


def test_two_ordered_categories_are_bernoulli() -> None:
    eta = parameters(Ordinal(2))
    codes = (torch.arange(ROWS) % 2).double()
    close(Ordinal(2).log_prob(codes, eta), scipy.stats.bernoulli(torch.sigmoid(eta[:, 0])).logpmf(codes.numpy()))


@pytest.mark.parametrize(
    "above", [LogNormal(1.4), Gamma(0.3), ZeroTruncatedPoisson(20)], ids=lambda x: type(x).__name__
)
def test_hurdle_is_a_probability_times_the_density_above(above: Likelihood) -> None:
    likelihood = Hurdle(above)
    eta = parameters(likelihood)
    values = torch.arange(ROWS, dtype=torch.float64) % 7
    positive = torch.sigmoid(eta[:, 0])
    reference = torch.where(
        values == 0,
        torch.log(1 - positive),
        torch.log(positive) + in_original_units(above, values.clamp(min=1.0), eta[:, 1:]),
    )
    close(in_original_units(likelihood, values, eta), reference)


@pytest.mark.parametrize(
    ("likelihood", "low", "high"),
    [
        (Gamma(0.5), -60.0, 60.0),
        (Exponential(0.5), -60.0, 60.0),
        (Beta(), -40.0, 40.0),
        (Hurdle(LogNormal(1.3)), -60.0, 60.0),
        (Hurdle(Gamma(0.5)), -60.0, 60.0),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Likelihood) else "",
)
def test_densities_have_mass_one(likelihood: Likelihood, low: float, high: float) -> None:
    """By quadrature over the logarithm, or the log-odds, of the original value; plus the spike."""
    t = torch.linspace(low, high, 200_001, dtype=torch.float64)
    shares = isinstance(likelihood, Beta)
    values = torch.sigmoid(t) if shares else t.exp()
    inside = (values > 0) & (values < 1) if shares else values > 0
    slope = values * (1 - values) if shares else values
    for eta in parameters(likelihood, scale=0.7, rows=4):
        density = torch.where(inside, in_original_units(likelihood, values, eta).exp() * slope, 0.0)
        mass = scipy.integrate.trapezoid(density.numpy(), t.numpy())
        if isinstance(likelihood, Hurdle):
            mass += float(in_original_units(likelihood, torch.zeros(1, dtype=torch.float64), eta).exp())
        assert mass == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "first", "last"),
    [
        (NegativeBinomial(50), 0, 20_000),
        (ZeroTruncatedPoisson(50), 1, 500),
        (Hurdle(ZeroTruncatedPoisson(50)), 0, 500),
        (Ordinal(5), 0, 4),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Likelihood) else "",
)
def test_probabilities_add_up_to_one(likelihood: Likelihood, first: int, last: int) -> None:
    values = torch.arange(first, last + 1, dtype=torch.float64)
    for eta in parameters(likelihood, scale=1.0, rows=6):
        probabilities = in_original_units(likelihood, values, eta.expand(len(values), -1)).exp()
        assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-8)
