"""Columns with a spike at zero: first whether a cell is zero, then how much it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .base import Likelihood
from .counts import ZeroTruncatedPoisson

# Stands for zero among scaled values: below any logarithm, and finite in float32.
SPIKE = -1e30


class Hurdle(Likelihood):
    r"""Zero with some probability, else a draw from a distribution above zero.

    .. math::
        \log p(x \mid \eta) = \begin{cases}
            \log \sigma(-\eta_1) & x = 0 \\
            \log \sigma(\eta_1) + \log p_{+}(x' \mid \eta_2, \dots) & x > 0
        \end{cases}

    where :math:`p_+` is the distribution above zero, with its own scaling. The log-likelihood of a zero is
    that of a probability, no density: it has no Jacobian. Among scaled values zeros are held as -1e30.

    Args:
        above: The distribution above zero: :class:`LogNormal` or :class:`Gamma` without shift, or
            :class:`ZeroTruncatedPoisson`.

    Shape:
        - eta: ``(..., 1 + above.num_parameters)``, the log-odds of a value above zero, then those of ``above``.

    Raises:
        ValueError: ``above`` has zeros of its own (a shift).

    Example:
        >>> claims = Hurdle(ZeroTruncatedPoisson(largest=9))
        >>> claims.mode(torch.tensor([[-1.0, 2.0], [3.0, 2.0]]))
        tensor([0., 7.], dtype=torch.float64)
    """

    def __init__(self, above: Likelihood) -> None:
        if getattr(above, "shift", 0.0):
            raise ValueError(
                f"Hurdle: `above` must have no shift, got {type(above).__name__} with one. "
                "Scale it by values above 0."
            )
        self.above = above
        self.num_parameters = 1 + above.num_parameters
        self.num_locations = 1 + above.num_locations

    def natural(self, raw: Tensor) -> Tensor:
        return torch.cat([raw[..., :1], self.above.natural(raw[..., 1:])], dim=-1)

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        log_odds, rest = eta[..., 0], eta[..., 1:]
        zero = scaled < SPIKE / 2
        # Replaced before the density: infinity times zero, and its gradient, would be NaN.
        above = self.above.log_prob(torch.where(zero, 1.0, scaled), rest)
        return torch.where(zero, functional.logsigmoid(-log_odds), functional.logsigmoid(log_odds) + above)

    def mode(self, eta: Tensor) -> Tensor:
        """The most likely value, in original units.

        Of a count, the likeliest of all counts. A density above zero cannot be compared with the
        probability of zero: then 0 where that is at least one half, else the mode above zero.
        """
        log_odds, rest = eta[..., 0].double(), eta[..., 1:].double()
        mode = self.above.mode(rest)
        top = functional.logsigmoid(log_odds)
        if isinstance(self.above, ZeroTruncatedPoisson):
            top = top + self.above.log_prob(mode, rest)
        return torch.where(top > functional.logsigmoid(-log_odds), mode, 0.0)

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        odds = torch.sigmoid(eta[..., 0].double())
        return torch.bernoulli(odds, generator=generator) * self.above.sample(eta[..., 1:], generator)

    def transform(self, values: Tensor) -> Tensor:
        zero = values == 0
        return torch.where(zero, SPIKE, self.above.transform(torch.where(zero, 1.0, values)))

    def log_jacobian(self, values: Tensor) -> Tensor:
        zero = values == 0
        return torch.where(zero, 0.0, self.above.log_jacobian(torch.where(zero, 1.0, values)))
