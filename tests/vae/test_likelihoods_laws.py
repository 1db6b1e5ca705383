"""What holds for every likelihood beyond the usual ones: safe in float32, smooth, draws and modes of its density."""

import math

import pytest
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
from gradsurgery.integrations.vae.likelihoods.numerics import log_gamma_remainder, soft_bound

NUMBERS: list[tuple[Likelihood, list[float]]] = [
    (Gamma(0.5), [1e-6, 0.3, 2.0, 900.0]),
    (Gamma(0.5, shift=0.01), [0.0, 0.3, 2.0, 900.0]),
    (Exponential(0.5), [0.0, 0.3, 2.0, 900.0]),
    (Beta(), [1e-9, 0.2, 0.5, 0.999]),
    (Beta(squeeze=0.001), [0.0, 0.2, 0.5, 1.0]),
    (Hurdle(LogNormal(1.3)), [0.0, 0.3, 2.0, 900.0]),
    (Hurdle(Gamma(0.5)), [0.0, 0.3, 2.0, 900.0]),
]
CODES: list[tuple[Likelihood, list[float]]] = [
    (NegativeBinomial(900), [0.0, 1.0, 7.0, 900.0]),
    (ZeroTruncatedPoisson(900), [1.0, 2.0, 7.0, 900.0]),
    (Hurdle(ZeroTruncatedPoisson(900)), [0.0, 1.0, 7.0, 900.0]),
    (Ordinal(2), [0.0, 1.0]),
    (Ordinal(5), [0.0, 1.0, 2.0, 4.0]),
]


def name_of(case: object) -> str:
    if isinstance(case, Hurdle):
        return f"Hurdle-{type(case.above).__name__}"
    return type(case).__name__ if isinstance(case, Likelihood) else ""


every = pytest.mark.parametrize(("likelihood", "cells"), NUMBERS + CODES, ids=name_of)
every_number = pytest.mark.parametrize(("likelihood", "cells"), NUMBERS, ids=name_of)


def random_raw(likelihood: Likelihood, rows: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return scale * torch.randn(rows, likelihood.num_parameters, generator=generator, dtype=dtype)


def in_original_units(likelihood: Likelihood, values: Tensor, eta: Tensor) -> Tensor:
    return likelihood.log_prob(likelihood.transform(values), eta) + likelihood.log_jacobian(values)


@every
def test_any_output_is_safe_in_float32(likelihood: Likelihood, cells: list[float]) -> None:
    """Log-probability, gradient, mode and draw are finite for outputs of size 100, and a million."""
    generator = torch.Generator().manual_seed(0)
    uniform = 200 * torch.rand(400, likelihood.num_parameters, generator=generator) - 100
    corners = 100.0 * (1 - 2 * torch.randint(2, (64, likelihood.num_parameters), generator=generator).float())
    raw = torch.cat([uniform, corners, 1e4 * corners, torch.zeros(1, likelihood.num_parameters)])
    for cell in [*cells, None]:
        output = raw.clone().requires_grad_()
        eta = likelihood.natural(output)
        # A missing cell is 0 among the scaled values.
        one = 0.0 if cell is None else likelihood.transform(torch.tensor(cell, dtype=torch.float64)).item()
        log_prob = likelihood.log_prob(torch.full((len(raw),), one), eta)
        log_prob.sum().backward()
        assert log_prob.dtype == torch.float32
        assert torch.isfinite(log_prob).all()
        assert torch.isfinite(output.grad).all()
    assert torch.isfinite(likelihood.mode(eta.detach())).all()
    assert torch.isfinite(likelihood.sample(eta.detach(), generator)).all()


@every
def test_gradients_are_those_of_the_density(likelihood: Likelihood, cells: list[float]) -> None:
    raw = random_raw(likelihood, len(cells)).requires_grad_()
    scaled = likelihood.transform(torch.tensor(cells, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda each: likelihood.log_prob(scaled, likelihood.natural(each)), raw)


@every
def test_float32_agrees_with_float64(likelihood: Likelihood, cells: list[float]) -> None:
    raw = random_raw(likelihood, 200)
    for cell in cells:
        scaled = likelihood.transform(torch.tensor(cell, dtype=torch.float64)).expand(200)
        exact = likelihood.log_prob(scaled, likelihood.natural(raw))
        single = likelihood.log_prob(scaled.float(), likelihood.natural(raw.float()))
        torch.testing.assert_close(single.double(), exact, rtol=2e-4, atol=2e-4)


@every_number
def test_jacobian_is_the_derivative_of_the_scaling(likelihood: Likelihood, cells: list[float]) -> None:
    values = torch.tensor([cell for cell in cells if cell > 0], dtype=torch.float64, requires_grad=True)
    if not isinstance(likelihood, Exponential):
        # Densities over the logarithm or the log-odds: x', held as its logarithm, has slope w there.
        (slope,) = torch.autograd.grad(likelihood.transform(values).sum(), values)
    else:
        slope = torch.full_like(values, likelihood.weight)
    torch.testing.assert_close(likelihood.log_jacobian(values).detach(), slope.log(), rtol=1e-9, atol=1e-9)


def test_a_zero_of_a_hurdle_is_a_probability() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert Hurdle(Gamma(0.5)).log_jacobian(zero).tolist() == [0.0]


@every
def test_draws_are_those_of_the_generator(likelihood: Likelihood, cells: list[float]) -> None:
    eta = likelihood.natural(random_raw(likelihood, 50))
    before = torch.get_rng_state()
    first, same, other = (likelihood.sample(eta, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (50,)
    assert first.dtype == torch.float64
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def grid(likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """Values that cover the density, and the widths of their cells (1 for codes and for a spike)."""
    zero = torch.zeros(1, dtype=torch.float64)
    if isinstance(likelihood, Ordinal):
        return torch.arange(likelihood.num_parameters + 1).double(), torch.tensor(1.0)
    if isinstance(likelihood, NegativeBinomial):
        return torch.arange(20_000).double(), torch.tensor(1.0)
    if isinstance(likelihood, ZeroTruncatedPoisson):
        return torch.arange(1, 1000).double(), torch.tensor(1.0)
    if isinstance(likelihood, Hurdle):
        values, widths = grid(likelihood.above)
        return torch.cat([zero, values]), torch.cat([zero + 1.0, widths.expand(len(values))])
    t = torch.linspace(-45, 45, 200_001, dtype=torch.float64)
    if isinstance(likelihood, Beta):
        values = torch.sigmoid(t)
        return values, values * torch.sigmoid(-t) * (t[1] - t[0])
    return t.exp(), t.exp() * (t[1] - t[0])


@pytest.mark.parametrize(
    "likelihood", [case for case, _ in NUMBERS + CODES if not getattr(case, "shift", 0)], ids=name_of
)
def test_draws_have_the_moments_of_the_density(likelihood: Likelihood) -> None:
    values, widths = grid(likelihood)
    for eta in likelihood.natural(random_raw(likelihood, 3, scale=0.7)):
        inside = values < 1 if isinstance(likelihood, Beta) else torch.ones_like(values, dtype=torch.bool)
        density = in_original_units(likelihood, values[inside], eta.expand(int(inside.sum()), -1))
        mass = density.exp() * widths.expand(len(values))[inside]
        draws = likelihood.sample(eta.expand(40_000, -1), torch.Generator().manual_seed(2))
        for power in (0.5, 1.0):
            wanted = float((mass * values[inside] ** power).sum() / mass.sum())
            spread = float((mass * values[inside] ** (2 * power)).sum() / mass.sum() - wanted**2) ** 0.5
            assert float((draws**power).mean()) == pytest.approx(wanted, abs=5 * spread / 200 + 1e-12)


def test_mode_of_dispersed_counts_is_their_rounded_mean() -> None:
    likelihood = NegativeBinomial(9)
    counts = torch.arange(100_000.0, dtype=torch.float64)
    for eta in likelihood.natural(random_raw(likelihood, 20, scale=2.0)):
        chances = likelihood.log_prob(counts, eta.expand(len(counts), -1)).exp()
        if chances.sum() > 1 - 1e-9:
            assert float(likelihood.mode(eta)) == pytest.approx(float((counts * chances).sum()), abs=0.5 + 1e-3)


@pytest.mark.parametrize(
    "likelihood", [case for case, _ in CODES if not isinstance(case, NegativeBinomial)], ids=name_of
)
def test_mode_of_codes_is_the_likeliest(likelihood: Likelihood) -> None:
    values, _ = grid(likelihood)
    for eta in likelihood.natural(random_raw(likelihood, 40, scale=2.0)):
        best = values[in_original_units(likelihood, values, eta.expand(len(values), -1)).argmax()]
        assert float(likelihood.mode(eta)) == float(best)


@pytest.mark.parametrize(
    "likelihood", [Gamma(0.5), Gamma(0.5, shift=0.3), Exponential(0.5), Beta(), Beta(squeeze=0.02)], ids=name_of
)
def test_mode_of_numbers_is_the_highest_point_of_the_logarithm(likelihood: Likelihood) -> None:
    """Or of the log-odds: there the peak is inside, whatever the parameters."""
    shares = isinstance(likelihood, Beta)
    values = torch.linspace(0, 1, 20_001) if shares else torch.linspace(0, 60, 60_001)
    values = values.double()
    clear = values.clamp(1e-7, 1 - 1e-7) if shares else values.clamp(min=1e-7)
    seen = 0
    for eta in likelihood.natural(random_raw(likelihood, 40, scale=1.5)):
        height = likelihood.log_prob(likelihood.transform(clear), eta.expand(len(values), -1))
        if isinstance(likelihood, Exponential):
            height = height + clear.log()  # the others are held as logarithms or log-odds
        best = values[height.argmax()]
        if best < 60:
            assert float(likelihood.mode(eta)) == pytest.approx(float(best), abs=2e-3)
            seen += 1
    assert seen >= 15


def test_mode_of_a_hurdle_of_amounts_is_the_likelier_part() -> None:
    likelihood = Hurdle(Gamma(0.5))
    eta = torch.tensor([[-0.1, 0.0, math.log(2.0)], [0.1, 0.0, math.log(2.0)]])
    torch.testing.assert_close(likelihood.mode(eta), torch.tensor([0.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("likelihood", [Gamma(0.5), Beta()], ids=name_of)
def test_modes_are_cells_that_can_be_encoded_again(likelihood: Likelihood) -> None:
    """Also where the density of the value itself is largest at an end, of which no logarithm exists."""
    eta = torch.tensor([[-0.5, -1.0], [0.2, -3.0], [-3.0, 0.2]], dtype=torch.float64)
    assert torch.isfinite(likelihood.transform(likelihood.mode(eta))).all()


def test_draws_of_shares_stay_inside() -> None:
    """Where most log-odds are beyond what a float64 between 0 and 1 can express."""
    draws = Beta().sample(torch.full((500, 2), -4.0), torch.Generator().manual_seed(0))
    assert torch.isfinite(Beta().transform(draws)).all()


def test_helpers() -> None:
    shapes = torch.logspace(-4, 4, 400, dtype=torch.float64)
    exact = torch.lgamma(shapes) - shapes * shapes.log() + shapes
    torch.testing.assert_close(log_gamma_remainder(shapes), exact, rtol=1e-9, atol=1e-10)
    raw = torch.linspace(-100, 100, 999, dtype=torch.float64, requires_grad=True)
    bounded = soft_bound(raw, -5.0, 9.0)
    assert bounded.min() >= -5
    assert bounded.max() <= 9 + 1e-5
    (slope,) = torch.autograd.grad(bounded.sum(), raw)
    assert (slope > 0).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gamma(0.0), r"Gamma: `weight` must be positive and finite, got 0\.0"),
        (lambda: Gamma(shift=-1.0), r"Gamma: `shift` must be non-negative and finite, got -1\.0"),
        (lambda: Exponential(math.inf), r"Exponential: `weight` must be positive and finite, got inf"),
        (lambda: Beta(squeeze=0.5), r"Beta: `squeeze` must be in \[0, 1/2\), got 0\.5"),
        (lambda: NegativeBinomial(-1), r"NegativeBinomial: `largest` must be non-negative and finite, got -1"),
        (lambda: ZeroTruncatedPoisson(math.nan), r"ZeroTruncatedPoisson: `largest` must be .* got nan"),
        (lambda: Ordinal(1), r"Ordinal: `classes` must be at least 2, got 1"),
        (lambda: Hurdle(LogNormal(shift=0.5)), r"Hurdle: `above` must have no shift, got LogNormal with one"),
    ],
)
def test_wrong_options_are_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
