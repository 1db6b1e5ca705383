"""What keeps the likelihoods finite in float32 whatever a network asks for."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

# From here on the series of `log_gamma_remainder` is exact to 1e-12; below, lgamma does not cancel.
SERIES_FROM = 10.0

# Bounds of the logarithm of a shape: below e^-5 nearly all draws underflow, above e^9 the standard
# deviation of a gamma variable is less than 1% of its mean.
LOG_SHAPES = (-5.0, 9.0)

# Bounds of the logarithm of a mean, relative to the mean of the training values.
LOG_MEANS = (-20.0, 20.0)


def soft_bound(raw: Tensor, low: float, high: float) -> Tensor:
    """Any real numbers squeezed between two bounds, unchanged well inside, without a flat region in between.

    Example:
        >>> soft_bound(torch.tensor([-1e6, 0.0, 1e6]), -20.0, 20.0)
        tensor([-20.,   0.,  20.])
    """
    below = high - functional.softplus(high - raw)
    return low + functional.softplus(below - low)


def log_softmax(logits: Tensor) -> Tensor:
    """Over the last dimension, where that is short: on a CPU torch is several times faster with it in front.

    Example:
        >>> log_softmax(torch.tensor([0.0, math.log(3.0)])).exp()
        tensor([0.2500, 0.7500])
    """
    return functional.log_softmax(logits.movedim(-1, 0), dim=0).movedim(0, -1)


def log_gamma_remainder(shape: Tensor) -> Tensor:
    r"""What Stirling's leading terms leave of the logarithm of the gamma function.

    .. math:: s(a) = \log \Gamma(a) - (a \log a - a) \approx \tfrac12 \log \tfrac{2\pi}{a} + \tfrac1{12 a} - \dots

    Densities in s do not subtract large numbers from each other where a shape is large.

    Example:
        >>> log_gamma_remainder(torch.tensor([1.0, 100.0]))
        tensor([ 1.0000, -1.3828])
    """
    small, large = shape.clamp(max=SERIES_FROM), shape.clamp(min=SERIES_FROM)
    direct = torch.lgamma(small) - small * small.log() + small
    square = large.square().reciprocal()
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))) / large
    return torch.where(shape < SERIES_FROM, direct, 0.5 * torch.log(2 * math.pi / large) + series)


def log_standard_gamma(shape: Tensor, generator: torch.Generator | None) -> Tensor:
    """Logarithms of draws from gamma distributions of rate 1, also where the draws themselves underflow."""
    # A draw of shape a is one of shape a + 1 times a uniform number to the power 1 / a.
    uniform = torch.rand(shape.shape, dtype=shape.dtype, device=shape.device, generator=generator)
    larger = torch._standard_gamma(shape + 1.0, generator=generator)
    return larger.log() + torch.log1p(-uniform) / shape
