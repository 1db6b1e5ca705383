"""Shares: values between 0 and 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .base import Likelihood
from .numerics import LOG_SHAPES, log_gamma_remainder, log_standard_gamma, soft_bound

# The smallest distance of a share from 1 in float64.
INSIDE = 2.0**-53


class Beta(Likelihood):
    r"""Shares between 0 and 1, unscaled.

    .. math::
        x' = s + (1 - 2 s)\, x, \qquad \log p(x' \mid \eta)
        = (\alpha - 1) \log x' + (\beta - 1) \log (1 - x') - \log B(\alpha, \beta)

    with natural parameters :math:`\alpha = e^{\eta_1}`, :math:`\beta = e^{\eta_2}`; both logarithms stay
    within [-5, 9]. The scaled value is held as its log-odds, in which both ends are as precise as the
    middle; the density is then that of the log-odds and the Jacobian
    :math:`(1 - 2 s) / (x' (1 - x'))`.

    Args:
        squeeze: s, in [0, 1/2); > 0 only where the column has exact zeros or ones, whose log-odds are
            infinite. It moves all cells inwards, and modes and draws outwards again, up to 0 and 1.

    Shape:
        - eta: ``(..., 2)``, the logarithms of alpha and beta.

    Raises:
        ValueError: ``squeeze`` is outside its range.

    Example:
        >>> eta = torch.tensor([3.0, 2.0]).log()
        >>> Beta().mode(eta)  # alpha / (alpha + beta)
        tensor(0.6000, dtype=torch.float64)
    """

    num_parameters = 2
    num_locations = 2  # the mean is alpha / (alpha + beta): neither is a spread

    def __init__(self, *, squeeze: float = 0.0) -> None:
        if not 0 <= squeeze < 0.5:
            raise ValueError(
                f"Beta: `squeeze` must be in [0, 1/2), got {squeeze}. "
                "Use half of the smallest distance of a value from its end, or 0 without zeros and ones."
            )
        self.squeeze = float(squeeze)

    def natural(self, raw: Tensor) -> Tensor:
        return soft_bound(raw, *LOG_SHAPES)

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        log_alpha, log_beta = eta.unbind(-1)
        alpha, beta = log_alpha.exp(), log_beta.exp()
        # Each end against its share of alpha + beta: where both are large, the formula's terms cancel.
        upper = functional.logsigmoid(scaled) - functional.logsigmoid(log_alpha - log_beta)
        lower = functional.logsigmoid(-scaled) - functional.logsigmoid(log_beta - log_alpha)
        rest = log_gamma_remainder(alpha) + log_gamma_remainder(beta) - log_gamma_remainder(alpha + beta)
        return alpha * upper + beta * lower - rest

    def mode(self, eta: Tensor) -> Tensor:
        """The value whose log-odds are the most likely ones, in original units: the mean.

        The density of the value itself is infinite at the ends where a parameter is less than 1.
        """
        log_alpha, log_beta = eta.double().unbind(-1)
        return self._original(torch.sigmoid(log_alpha - log_beta))

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        alpha, beta = eta.double().exp().unbind(-1)
        odds = log_standard_gamma(alpha, generator) - log_standard_gamma(beta, generator)
        return self._original(torch.sigmoid(odds))

    def _original(self, squeezed: Tensor) -> Tensor:
        if not self.squeeze:
            return squeezed.clamp(INSIDE, 1.0 - INSIDE)  # a draw that rounds to an end has no log-odds
        return ((squeezed - self.squeeze) / (1 - 2 * self.squeeze)).clamp(0.0, 1.0)

    def transform(self, values: Tensor) -> Tensor:
        return torch.logit(self._squeezed(values))

    def log_jacobian(self, values: Tensor) -> Tensor:
        squeezed = self._squeezed(values)
        return math.log(1 - 2 * self.squeeze) - squeezed.log() - torch.log1p(-squeezed)

    def _squeezed(self, values: Tensor) -> Tensor:
        return self.squeeze + (1 - 2 * self.squeeze) * values
