"""Counts: Poisson, and negative binomial where they spread more."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .base import Likelihood
from .numerics import LOG_MEANS, LOG_SHAPES, log_standard_gamma, soft_bound

# At this log-rate all but 1 in 40,000 of the counts that are not 0 are 1.
SMALLEST_LOG_RATE = -10.0


class Poisson(Likelihood):
    r"""Counts, unscaled.

    .. math:: \log p(x \mid \eta) = x \eta - e^\eta - \log x!

    :math:`\eta = b - \operatorname{softplus}(b - r)` keeps the log-rate below a bound b without a flat
    region: an untrained network may ask for e^100, whose rate is infinite in float32, while no row of
    the training data gains from a rate above the largest count.

    Args:
        largest: The largest count of the training rows, >= 0; b = log(largest + 1) + 1.

    Shape:
        - eta: ``(..., 1)``, the log-rate.

    Raises:
        ValueError: ``largest`` is negative or not finite.

    Example:
        >>> visits = Poisson(largest=77)
        >>> visits.mode(torch.tensor([1.0]))  # floor of the rate 2.718
        tensor(2., dtype=torch.float64)
    """

    num_parameters = 1

    def __init__(self, largest: float) -> None:
        if not 0 <= largest < math.inf:
            raise ValueError(
                f"{type(self).__name__}: `largest` must be non-negative and finite, got {largest}. "
                "Give the largest count of the training rows."
            )
        self.bound = math.log(largest + 1.0) + 1.0

    def natural(self, raw: Tensor) -> Tensor:
        return self.bound - functional.softplus(self.bound - raw)

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        log_rate = eta[..., 0]
        return scaled * log_rate - log_rate.exp() - torch.lgamma(scaled + 1.0)

    def mode(self, eta: Tensor) -> Tensor:
        return eta[..., 0].double().exp().floor()

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.poisson(eta[..., 0].double().exp(), generator=generator)


class NegativeBinomial(Poisson):
    r"""Counts that spread more than a Poisson count: one whose rate follows a gamma distribution.

    .. math::
        \log p(x \mid \eta) = \log \frac{\Gamma(x + r)}{\Gamma(r)\, x!}
        + r \log \frac{r}{r + m} + x \log \frac{m}{r + m}

    with mean :math:`m = e^{\eta_1}` and size :math:`r = e^{\eta_2}`; the variance is
    :math:`m + m^2 / r`. With r held fixed the natural parameter is :math:`\log (m / (r + m))`.
    :math:`\eta_1` stays between -20 and the bound of :class:`Poisson`, :math:`\eta_2` within [-5, 9].

    Args:
        largest: The largest count of the training rows, >= 0.

    Shape:
        - eta: ``(..., 2)``, the logarithms of mean and size.

    Raises:
        ValueError: ``largest`` is negative or not finite.

    Example:
        >>> eta = torch.tensor([4.0, 2.0]).log()
        >>> NegativeBinomial(77).log_prob(torch.tensor(0.0), eta).exp()  # (r / (r + m))^r = 1 / 9
        tensor(0.1111)
        >>> NegativeBinomial(77).mode(eta)
        tensor(4., dtype=torch.float64)
    """

    num_parameters = 2

    def natural(self, raw: Tensor) -> Tensor:
        log_mean = soft_bound(raw[..., 0], LOG_MEANS[0], self.bound)
        return torch.stack([log_mean, soft_bound(raw[..., 1], *LOG_SHAPES)], dim=-1)

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        log_mean, log_size = eta.unbind(-1)
        size, log_ratio = log_size.exp(), log_mean - log_size
        ways = torch.lgamma(scaled + size) - torch.lgamma(size) - torch.lgamma(scaled + 1.0)
        return ways - size * functional.softplus(log_ratio) - scaled * functional.softplus(-log_ratio)

    def mode(self, eta: Tensor) -> Tensor:
        """The mean, rounded.

        The likeliest count is 0 wherever the size is at most 1, whatever the mean: it would stand for no cell.
        """
        return eta[..., 0].double().exp().round()

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        log_mean, log_size = eta.double().unbind(-1)
        log_rate = log_standard_gamma(log_size.exp(), generator) + log_mean - log_size
        return torch.poisson(log_rate.exp(), generator=generator)


class ZeroTruncatedPoisson(Poisson):
    r"""Counts from 1 on: a Poisson count given that it is not 0; the second part of a hurdle.

    .. math:: \log p(x \mid \eta) = x \eta - e^\eta - \log x! - \log (1 - e^{-e^\eta}), \quad x \ge 1

    with the log-rate :math:`\eta` between -10 and the bound of :class:`Poisson`; the mean tends to 1
    as the rate tends to 0.

    Args:
        largest: The largest count of the training rows, >= 0.

    Shape:
        - eta: ``(..., 1)``, the log-rate.

    Raises:
        ValueError: ``largest`` is negative or not finite.

    Example:
        >>> visits = ZeroTruncatedPoisson(largest=77)
        >>> visits.log_prob(torch.tensor(1.0), torch.tensor([math.log(math.log(2.0))])).exp()
        tensor(0.6931)
        >>> visits.mode(torch.tensor([-3.0]))
        tensor(1., dtype=torch.float64)
    """

    def natural(self, raw: Tensor) -> Tensor:
        return soft_bound(raw, SMALLEST_LOG_RATE, self.bound)

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        rate = eta[..., 0].exp()
        return super().log_prob(scaled, eta) - torch.log(-torch.expm1(-rate))

    def mode(self, eta: Tensor) -> Tensor:
        return super().mode(eta).clamp(min=1.0)

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        # The first of the arrivals in the unit interval is drawn given that there is one; the others are free.
        rate = eta[..., 0].double().exp()
        uniform = torch.rand(rate.shape, dtype=rate.dtype, device=rate.device, generator=generator)
        first = -torch.log1p(uniform * torch.expm1(-rate))
        return 1.0 + torch.poisson((rate - first).clamp(min=0.0), generator=generator)
