"""The normal distribution, of values and of their logarithms."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .base import Likelihood
from .checks import check_shift, check_weight

# -eta2 = 1 / (2 sigma^2) of a scaled value: sigma stays below 22 standard deviations of the column, so
# that the mean -eta1 / (2 eta2) and the draws of an untrained network stay finite in float32.
SMALLEST_PRECISION = 1e-3
# The exponential of a larger number is infinite in float64.
LARGEST_LOGARITHM = 709.0


class Normal(Likelihood):
    r"""Normal values, centred and divided by a standard deviation.

    .. math::
        x' = w\,(x - c), \qquad \log p(x' \mid \eta)
        = \eta_1 x' + \eta_2 x'^2 + \frac{\eta_1^2}{4 \eta_2} + \frac12 \log\frac{-\eta_2}{\pi}

    with :math:`\eta_1 = \mu / \sigma^2` and :math:`\eta_2 = -1 / (2 \sigma^2) < 0`. It is evaluated as
    a square around the mean, which does not cancel.

    Args:
        weight: w, 1 / standard deviation of the training values, > 0.
        center: c, mean of the training values, in original units.

    Shape:
        - eta: ``(..., 2)``.

    Raises:
        ValueError: ``weight`` is not positive and finite.

    Example:
        >>> income = Normal(weight=0.5, center=10.0)
        >>> eta = income.natural(torch.tensor([0.0, 0.0]))
        >>> income.mode(eta)
        tensor(10., dtype=torch.float64)
    """

    num_parameters = 2

    def __init__(self, weight: float = 1.0, *, center: float = 0.0) -> None:
        check_weight(type(self).__name__, weight, "Use 1 for a constant column.")
        self.weight = float(weight)
        self.center = float(center)

    def natural(self, raw: Tensor) -> Tensor:
        precision = functional.softplus(raw[..., 1]) + SMALLEST_PRECISION
        return torch.stack([raw[..., 0], -precision], dim=-1)

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        eta1, eta2 = eta.unbind(-1)
        return eta2 * (scaled + eta1 / (2 * eta2)) ** 2 + 0.5 * torch.log(-eta2 / math.pi)

    def mode(self, eta: Tensor) -> Tensor:
        mean, _ = moments(eta.double())
        return mean / self.weight + self.center

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, deviation = moments(eta.double())
        return (mean + deviation * standard_normal(mean, generator)) / self.weight + self.center

    def transform(self, values: Tensor) -> Tensor:
        return self.weight * (values - self.center)

    def log_jacobian(self, values: Tensor) -> Tensor:
        return torch.full_like(values, math.log(self.weight))


class LogNormal(Normal):
    r"""Positive values whose logarithm is normal, raised to a power.

    .. math:: x' = (e^{-c} (x + s))^w, \qquad \log x' \mid \eta \sim \text{Normal}(\eta)

    The scaled value is held as its logarithm :math:`w (\log(x + s) - c)`, in which the density is the
    normal one and nothing overflows; the Jacobian is that of the logarithm, :math:`w / (x + s)`.

    With c = 0, as published for the VAE, a logarithm whose values differ little from each other (of heights
    in cm) lies far from 0 and is slow to learn. Make such a column real.

    Args:
        weight: w, 1 / standard deviation of the logarithm of the training values, > 0.
        shift: s, in original units, >= 0; > 0 only where the column has zeros that are true values.
        center: c, the mean of the logarithm of the training values where it is to be centred.

    Shape:
        - eta: ``(..., 2)``.

    Raises:
        ValueError: ``weight`` is not positive and finite, or ``shift`` is negative.

    Example:
        >>> eta = torch.tensor([2.0, -1.0])  # the logarithm has mean 1, variance 1/2
        >>> LogNormal().mode(eta).log()
        tensor(0.5000, dtype=torch.float64)
    """

    # Departs from the published code of Javaloy et al., 2021: it replaced zeros by small random noise,
    # which puts a random peak far from the other values and makes every evaluation differ.

    def __init__(self, weight: float = 1.0, *, shift: float = 0.0, center: float = 0.0) -> None:
        super().__init__(weight, center=center)
        check_shift("LogNormal", shift)
        self.shift = float(shift)

    def mode(self, eta: Tensor) -> Tensor:
        mean, deviation = moments(eta.double())
        return self._original(mean / self.weight + self.center - (deviation / self.weight) ** 2)

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, deviation = moments(eta.double())
        return self._original((mean + deviation * standard_normal(mean, generator)) / self.weight + self.center)

    def _original(self, logarithm: Tensor) -> Tensor:
        return (logarithm.clamp(max=LARGEST_LOGARITHM).exp() - self.shift).clamp(min=0.0)

    def transform(self, values: Tensor) -> Tensor:
        return self.weight * (torch.log(values + self.shift) - self.center)

    def log_jacobian(self, values: Tensor) -> Tensor:
        return math.log(self.weight) - torch.log(values + self.shift)


def moments(eta: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the normal distribution with natural parameters ``(..., 2)``."""
    eta1, eta2 = eta.unbind(-1)
    return -eta1 / (2 * eta2), torch.rsqrt(-2 * eta2)


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise with the shape, dtype and device of ``like``."""
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
