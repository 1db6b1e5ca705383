"""Positive values that are not lognormal: gamma and exponential."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Likelihood
from .checks import check_shift, check_weight
from .numerics import LOG_MEANS, LOG_SHAPES, log_gamma_remainder, log_standard_gamma, soft_bound

_OF_MEAN = "Use 1 / mean of the training values."


class Gamma(Likelihood):
    r"""Positive values whose spread grows with their mean.

    .. math::
        x' = w\,(x + s), \qquad \log p(x' \mid \eta)
        = a \log \frac{a}{m} - \log \Gamma(a) + (a - 1) \log x' - \frac{a x'}{m}

    with mean :math:`m = e^{\eta_1}` and shape :math:`a = e^{\eta_2}`; the natural parameters are
    :math:`a - 1` and :math:`-a / m`. The scaled value is held as its logarithm, in which nothing
    overflows; the density is then that of the logarithm and the Jacobian :math:`1 / (x + s)`.
    :math:`\eta_1` stays within [-20, 20] and :math:`\eta_2` within [-5, 9].

    Args:
        weight: w, 1 / mean of the training values, > 0.
        shift: s, in original units, >= 0; > 0 only where the column has zeros that are true values.

    Shape:
        - eta: ``(..., 2)``, the logarithms of mean and shape.

    Raises:
        ValueError: ``weight`` is not positive and finite, or ``shift`` is negative.

    Example:
        >>> Gamma(weight=0.5).mode(torch.tensor([1.0, 2.0]).log())  # mean m = 1 of half the value
        tensor(2., dtype=torch.float64)
    """

    num_parameters = 2

    def __init__(self, weight: float = 1.0, *, shift: float = 0.0) -> None:
        check_weight("Gamma", weight, _OF_MEAN)
        check_shift("Gamma", shift)
        self.weight = float(weight)
        self.shift = float(shift)

    def natural(self, raw: Tensor) -> Tensor:
        return torch.stack([soft_bound(raw[..., 0], *LOG_MEANS), soft_bound(raw[..., 1], *LOG_SHAPES)], dim=-1)

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        log_mean, log_shape = eta.unbind(-1)
        shape, distance = log_shape.exp(), scaled - log_mean
        # expm1 and the remainder: at shape 8000 the terms of the formula cancel to one part in a million.
        return shape * (distance - torch.expm1(distance)) - log_gamma_remainder(shape)

    def mode(self, eta: Tensor) -> Tensor:
        """The value whose logarithm is the most likely one, in original units: the mean.

        The density of the value itself is largest at 0 where the shape is at most 1, which no cell need be.
        """
        return (eta[..., 0].double().exp() / self.weight - self.shift).clamp(min=0.0)

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        log_mean, log_shape = eta.double().unbind(-1)
        logarithm = log_standard_gamma(log_shape.exp(), generator) + log_mean - log_shape
        return (logarithm.exp() / self.weight - self.shift).clamp(min=0.0)

    def transform(self, values: Tensor) -> Tensor:
        return torch.log(values + self.shift) + math.log(self.weight)

    def log_jacobian(self, values: Tensor) -> Tensor:
        return -torch.log(values + self.shift)


class Exponential(Likelihood):
    r"""Waiting times: non-negative values, the smaller the likelier; zeros need no care.

    .. math:: x' = w x, \qquad \log p(x' \mid \eta) = -\eta - x' e^{-\eta}

    with :math:`\eta` the logarithm of the mean, within [-20, 20]; the natural parameter is
    :math:`-e^{-\eta}`.

    Args:
        weight: w, 1 / mean of the training values, > 0.

    Shape:
        - eta: ``(..., 1)``, the logarithm of the mean.

    Raises:
        ValueError: ``weight`` is not positive and finite.

    Example:
        >>> Exponential().log_prob(torch.tensor(3.0), torch.tensor([0.0]))  # rate 1
        tensor(-3.)
    """

    num_parameters = 1

    def __init__(self, weight: float = 1.0) -> None:
        check_weight("Exponential", weight, _OF_MEAN)
        self.weight = float(weight)

    def natural(self, raw: Tensor) -> Tensor:
        return soft_bound(raw, *LOG_MEANS)

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        log_mean = eta[..., 0]
        return -log_mean - scaled * torch.exp(-log_mean)

    def mode(self, eta: Tensor) -> Tensor:
        """The value whose logarithm is the most likely one, in original units: the mean.

        The density of the value itself is largest at 0 whatever the parameter.
        """
        return eta[..., 0].double().exp() / self.weight

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = eta[..., 0].double().exp()
        uniform = torch.rand(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        return -torch.log1p(-uniform) * mean / self.weight

    def transform(self, values: Tensor) -> Tensor:
        return self.weight * values

    def log_jacobian(self, values: Tensor) -> Tensor:
        return torch.full_like(values, math.log(self.weight))
