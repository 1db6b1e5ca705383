"""Densities against torch.distributions and SciPy, in float64 and in original units."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from torch import Tensor, distributions

from gradsurgery.integrations.vae import Bernoulli, Categorical, Likelihood, LogNormal, Normal, Poisson

ALL = [Normal(0.5, center=3.0), LogNormal(0.5, shift=0.25), Poisson(20), Bernoulli(), Categorical(4)]
IDS = [type(likelihood).__name__ for likelihood in ALL]
each_likelihood = pytest.mark.parametrize("likelihood", ALL, ids=IDS)


def parameters(likelihood: Likelihood, rows: int = 50, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    raw = scale * torch.randn(rows, likelihood.num_parameters, generator=generator, dtype=torch.float64)
    return likelihood.natural(raw)


def in_original_units(likelihood: Likelihood, values: Tensor, eta: Tensor) -> Tensor:
    return likelihood.log_prob(likelihood.transform(values), eta) + likelihood.log_jacobian(values)


def moments(eta: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation by the definition of the natural parameters."""
    variance = -0.5 / eta[:, 1].numpy()
    return eta[:, 0].numpy() * variance, np.sqrt(variance)


def close(ours: Tensor, reference: object) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(reference), rtol=1e-10, atol=1e-12)


def test_comparison_can_fail() -> None:
    with pytest.raises(AssertionError):
        close(torch.tensor([1.0 + 1e-8], dtype=torch.float64), [1.0])


def test_normal_in_original_units() -> None:
    likelihood = Normal(weight=0.2, center=40.0)
    eta = parameters(likelihood)
    values = torch.linspace(-20, 90, 50, dtype=torch.float64)
    mean, deviation = moments(eta)
    reference = scipy.stats.norm(loc=40 + mean / 0.2, scale=deviation / 0.2).logpdf(values.numpy())
    close(in_original_units(likelihood, values, eta), reference)
    close(likelihood.mode(eta), 40 + mean / 0.2)


def test_normal_agrees_with_the_exponential_family_form() -> None:
    eta = parameters(Normal())
    x = torch.linspace(-2, 2, 50, dtype=torch.float64)
    eta1, eta2 = eta.unbind(1)
    formula = eta1 * x + eta2 * x**2 + eta1**2 / (4 * eta2) + 0.5 * torch.log(-eta2 / math.pi)
    torch.testing.assert_close(Normal().log_prob(x, eta), formula, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.75])
def test_lognormal_in_original_units(shift: float) -> None:
    likelihood = LogNormal(weight=1.7, shift=shift)
    eta = parameters(likelihood)
    values = torch.linspace(0.1, 30, 50, dtype=torch.float64)
    mean, deviation = moments(eta)
    reference = scipy.stats.lognorm(s=deviation / 1.7, scale=np.exp(mean / 1.7), loc=-shift)
    close(in_original_units(likelihood, values, eta), reference.logpdf(values.numpy()))


def test_lognormal_of_the_scaled_value() -> None:
    """x' = x^w is lognormal with the parameters of the network, as published."""
    likelihood = LogNormal(weight=1.7)
    eta = parameters(likelihood)
    values = torch.linspace(0.1, 30, 50, dtype=torch.float64)
    mean, deviation = moments(eta)
    scaled = values.numpy() ** 1.7
    slope = 1.7 * values.numpy() ** 0.7
    reference = scipy.stats.lognorm(s=deviation, scale=np.exp(mean)).logpdf(scaled) + np.log(slope)
    close(in_original_units(likelihood, values, eta), reference)


@pytest.mark.parametrize(
    "likelihood", [Normal(0.3, center=2.0), LogNormal(1.4, shift=0.2)], ids=["Normal", "LogNormal"]
)
def test_mode_is_the_highest_point_in_original_units(likelihood: Likelihood) -> None:
    eta = parameters(likelihood, rows=8)
    mode = likelihood.mode(eta)
    inside = mode > 0 if isinstance(likelihood, LogNormal) else torch.ones(8, dtype=torch.bool)
    assert inside.any()
    mode, eta = mode[inside], eta[inside]
    top = in_original_units(likelihood, mode, eta)
    for step in (0.99, 1.01):
        assert (in_original_units(likelihood, mode * step, eta) < top).all()


def test_lognormal_mode_is_floored_at_zero() -> None:
    far_down = torch.tensor([[-8.0, -1.0]], dtype=torch.float64)
    assert LogNormal(shift=0.5).mode(far_down).tolist() == [0.0]


@pytest.mark.parametrize(
    "likelihood", [Normal(0.3, center=2.0), LogNormal(1.4, shift=0.2)], ids=["Normal", "LogNormal"]
)
def test_jacobian_is_the_derivative_of_the_scaling(likelihood: Likelihood) -> None:
    values = torch.linspace(0.1, 30, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(likelihood.transform(values).sum(), values)
    close(likelihood.log_jacobian(values).detach(), slope.log())


def test_poisson() -> None:
    likelihood = Poisson(20)
    eta = parameters(likelihood)
    values = torch.arange(50, dtype=torch.float64)
    reference = scipy.stats.poisson(eta[:, 0].exp().numpy())
    close(in_original_units(likelihood, values, eta), reference.logpmf(values.numpy()))
    probabilities = reference.pmf(np.arange(100)[:, None])
    close(likelihood.mode(eta), probabilities.argmax(0).astype(float))


def test_bernoulli() -> None:
    eta = parameters(Bernoulli(), scale=3.0)
    values = (torch.arange(50) % 2).double()
    close(Bernoulli().log_prob(values, eta), distributions.Bernoulli(logits=eta[:, 0]).log_prob(values))
    close(Bernoulli().mode(eta), (torch.sigmoid(eta[:, 0]) > 0.5).double())


def test_categorical() -> None:
    likelihood = Categorical(4)
    eta = parameters(likelihood, scale=3.0)
    codes = (torch.arange(50) % 4).double()
    close(likelihood.log_prob(codes, eta), distributions.Categorical(logits=eta).log_prob(codes))
    close(likelihood.mode(eta), eta.argmax(1).double())


@each_likelihood
def test_draws_follow_the_density(likelihood: Likelihood) -> None:
    eta = parameters(likelihood, rows=1).expand(20_000, -1)
    draws = likelihood.sample(eta, torch.Generator().manual_seed(1)).numpy()
    if isinstance(likelihood, Normal):
        mean, deviation = (float(moment[0]) for moment in moments(eta))
        back = likelihood.transform(torch.from_numpy(draws)).numpy()
        inside = draws > 0 if isinstance(likelihood, LogNormal) else np.full(len(draws), True)
        low = (likelihood.transform(torch.zeros(1)).item() - mean) / deviation if not inside.all() else -np.inf
        reference = scipy.stats.truncnorm(low, np.inf, loc=mean, scale=deviation)
        assert scipy.stats.kstest(back[inside], reference.cdf).pvalue > 1e-3
    else:
        values = torch.arange(60 if isinstance(likelihood, Poisson) else max(2, likelihood.num_parameters)).double()
        probabilities = likelihood.log_prob(values, eta[: len(values)]).exp().numpy()
        shares = np.bincount(draws.astype(int), minlength=len(values)) / len(draws)
        assert np.abs(shares - probabilities).max() < 0.015


@each_likelihood
def test_draws_are_those_of_the_generator(likelihood: Likelihood) -> None:
    eta = parameters(likelihood)
    before = torch.get_rng_state()
    first, same, other = (likelihood.sample(eta, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (50,)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@each_likelihood
@settings(max_examples=30, deadline=None)
@given(exponent=st.floats(-6, 6), sign=st.sampled_from([-1.0, 1.0]), code=st.integers(0, 1))
def test_any_output_of_the_network_is_safe(likelihood: Likelihood, exponent: float, sign: float, code: int) -> None:
    """Log-probability and gradient are finite in float32 for outputs up to a million in size."""
    raw = torch.full((1, likelihood.num_parameters), sign * 10.0**exponent, requires_grad=True)
    values = torch.tensor([float(code)])
    log_prob = likelihood.log_prob(likelihood.transform(values), likelihood.natural(raw))
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(raw.grad).all()


def test_large_counts_are_learnable() -> None:
    likelihood = Poisson(10_000_000)
    raw = torch.tensor([[1000.0]], requires_grad=True)
    likelihood.log_prob(torch.tensor([10_000_000.0]), likelihood.natural(raw)).sum().backward()
    assert torch.isfinite(raw.grad).all()
    reachable = likelihood.natural(torch.tensor([[math.log(1e7) + 1]], dtype=torch.float64)).exp()
    assert float(reachable) > 1e7
    small = torch.tensor([[0.5]], dtype=torch.float64)
    torch.testing.assert_close(likelihood.natural(small), small, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Normal(0.0), r"Normal: `weight` must be positive and finite, got 0\.0"),
        (lambda: LogNormal(math.inf), r"LogNormal: `weight` must be positive and finite, got inf"),
        (lambda: LogNormal(shift=-1.0), r"LogNormal: `shift` must be non-negative and finite, got -1\.0"),
        (lambda: Poisson(-1), r"Poisson: `largest` must be non-negative and finite, got -1"),
        (lambda: Categorical(0), r"Categorical: `classes` must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
