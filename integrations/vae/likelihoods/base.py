"""What every likelihood of a column provides."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Likelihood(ABC):
    r"""A distribution of one column, in natural parameters (or those its docstring states), over scaled values.

    The model works with scaled values :math:`x' = t(x)`; the log-likelihood of a cell in original units is

    .. math:: \log p(x \mid \eta) = \log p(t(x) \mid \eta) + \log |t'(x)|,

    ``log_prob(transform(x), eta) + log_jacobian(x)``. :meth:`mode` and :meth:`sample` answer in
    original units.

    Shape:
        - eta: ``(..., num_parameters)``.
        - everything else: ``(...)``, one number a cell.
    """

    num_parameters: int
    num_locations: int = 1
    """How many of the parameters, the first ones, say where the values lie; the others say how they spread."""

    @abstractmethod
    def natural(self, raw: Tensor) -> Tensor:
        """Maps any real numbers ``(..., num_parameters)`` to the parameters eta, of that shape."""

    @abstractmethod
    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        """The log-density, or log-probability, of scaled values."""

    @abstractmethod
    def mode(self, eta: Tensor) -> Tensor:
        """The value that stands for the distribution, in original units.

        The most likely one; where that would be an end of the range whatever the middle is, the mean: gamma,
        exponential, beta, negative binomial.
        """

    @abstractmethod
    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw for each ``eta``, in original units; ``None`` draws from the global generator."""

    def transform(self, values: Tensor) -> Tensor:
        """Scales values that are in original units."""
        return values

    def log_jacobian(self, values: Tensor) -> Tensor:
        """The logarithm of the derivative of :meth:`transform` at values in original units."""
        return torch.zeros_like(values)
