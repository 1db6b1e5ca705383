"""The likelihoods of the kinds of columns, in natural parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .likelihood import Likelihood

# -eta2 = 1 / (2 sigma^2) of a scaled value: sigma stays below 22 standard deviations of the column, so
# that the mean -eta1 / (2 eta2) and the draws of an untrained network stay finite in float32.
SMALLEST_PRECISION = 1e-3


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
        if not 0 < weight < math.inf:
            raise ValueError(
                f"{type(self).__name__}: `weight` must be positive and finite, got {weight}. "
                "Use 1 for a constant column."
            )
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

    .. math:: x' = (x + s)^w, \qquad \log x' \mid \eta \sim \text{Normal}(\eta)

    The scaled value is held as its logarithm :math:`w \log(x + s)`, in which the density is the
    normal one and nothing overflows; the Jacobian is that of the logarithm, :math:`w / (x + s)`.

    As published, the logarithm is scaled but not centred: where values differ little from each other
    (heights in cm), it lies far from 0 and is slow to learn. Make such a column real.

    Args:
        weight: w, 1 / standard deviation of the logarithm of the training values, > 0.
        shift: s, in original units, >= 0; > 0 only where the column has zeros that are true values.

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

    def __init__(self, weight: float = 1.0, *, shift: float = 0.0) -> None:
        super().__init__(weight)
        if not 0 <= shift < math.inf:
            raise ValueError(
                f"LogNormal: `shift` must be non-negative and finite, got {shift}. "
                "Use half of the smallest positive value, or 0 without zeros."
            )
        self.shift = float(shift)

    def mode(self, eta: Tensor) -> Tensor:
        mean, deviation = moments(eta.double())
        return self._original(mean / self.weight - (deviation / self.weight) ** 2)

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, deviation = moments(eta.double())
        return self._original((mean + deviation * standard_normal(mean, generator)) / self.weight)

    def _original(self, logarithm: Tensor) -> Tensor:
        return (logarithm.exp() - self.shift).clamp(min=0.0)

    def transform(self, values: Tensor) -> Tensor:
        return self.weight * torch.log(values + self.shift)

    def log_jacobian(self, values: Tensor) -> Tensor:
        return math.log(self.weight) - torch.log(values + self.shift)


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
                f"Poisson: `largest` must be non-negative and finite, got {largest}. "
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


class Bernoulli(Likelihood):
    r"""Two categories, coded 0 and 1.

    .. math:: \log p(x \mid \eta) = x \eta - \log(1 + e^\eta)

    Shape:
        - eta: ``(..., 1)``, the logit of code 1.

    Example:
        >>> Bernoulli().mode(torch.tensor([[-0.2], [1.5]]))
        tensor([0., 1.], dtype=torch.float64)
    """

    num_parameters = 1

    def natural(self, raw: Tensor) -> Tensor:
        return raw

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        return scaled * eta[..., 0] - functional.softplus(eta[..., 0])

    def mode(self, eta: Tensor) -> Tensor:
        return (eta[..., 0] > 0).double()

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(eta[..., 0].double()), generator=generator)


class Categorical(Likelihood):
    r"""Categories without order, coded 0, ..., C - 1.

    .. math:: \log p(x \mid \eta) = \eta_x - \log \sum_c e^{\eta_c}

    Args:
        classes: C, >= 1.

    Shape:
        - eta: ``(..., classes)``, logits up to a constant.

    Raises:
        ValueError: ``classes`` is less than 1.

    Example:
        >>> Categorical(3).mode(torch.tensor([0.1, 0.3, 0.2]))
        tensor(1., dtype=torch.float64)
    """

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ValueError(f"Categorical: `classes` must be at least 1, got {classes}. Count the column's labels.")
        self.num_parameters = classes

    def natural(self, raw: Tensor) -> Tensor:
        return raw

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        codes = scaled.long().unsqueeze(-1)
        return functional.log_softmax(eta, dim=-1).gather(-1, codes).squeeze(-1)

    def mode(self, eta: Tensor) -> Tensor:
        return eta.argmax(dim=-1).double()

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probabilities = functional.softmax(eta.double(), dim=-1)
        flat = probabilities.reshape(-1, self.num_parameters)
        return torch.multinomial(flat, 1, generator=generator).reshape(eta.shape[:-1]).double()


def moments(eta: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the normal distribution with natural parameters ``(..., 2)``."""
    eta1, eta2 = eta.unbind(-1)
    return -eta1 / (2 * eta2), torch.rsqrt(-2 * eta2)


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise with the shape, dtype and device of ``like``."""
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
