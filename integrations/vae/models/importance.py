"""Importance-weighted autoencoders: the VAE's network, trained on tighter bounds of the log-likelihood."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

import gradsurgery as gs

from ..likelihoods.base import Likelihood
from ..tables.encoding import Batch
from .objective import Objective, column_log_probs
from .vae import VAE, Posterior


class IWAE(VAE):
    r"""A VAE trained on the importance-weighted bound.

    .. math::
        \mathcal{L} = -\log \frac1M \sum_m w_m, \qquad
        \log w_m = \sum_d \log p(x_d \mid z_m) + \log p(z_m) - \log q(z_m \mid x)

    averaged over rows. The loss of a column is :math:`-\sum_m \tilde w_m \log p(x_d \mid z_m)` with the normalised
    weights :math:`\tilde w` held: its gradient is the column's share of the bound's. At the impartiality block the
    columns' gradients are compared over all draws and rows together.

    Args:
        num_features, likelihoods, aggregator: As for :class:`VAE`.
        num_samples: M, draws of z a row, >= 1.
        options: The other arguments of :class:`VAE`.

    Raises:
        ValueError: as for :class:`VAE`, or ``num_samples`` is less than 1.

    Cost:
        That of the VAE, with a decoder that sees M times as many rows.

    References:
        Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, ICLR 2016.
    """

    def __init__(
        self,
        num_features: int,
        likelihoods: Sequence[Likelihood],
        aggregator: gs.Aggregator | None = None,
        *,
        num_samples: int = 20,
        **options: Any,
    ) -> None:
        if num_samples < 1:
            raise ValueError(
                f"{type(self).__name__}: `num_samples` must be at least 1, got {num_samples}. Pass a larger one."
            )
        super().__init__(num_features, likelihoods, aggregator, **options)
        self.num_samples = num_samples

    def objective(self, batch: Batch, generator: torch.Generator | None = None, *, epoch: int = 0) -> Objective:
        posterior = self.encode(batch.features, generator)
        noise = self._noise(posterior, generator)
        z = posterior.loc + posterior.scale * noise
        log_probs = self._log_probs(self.decode(z.flatten(0, 1)), batch)
        ratios = log_ratio(z, noise, posterior.scale)
        weights, bound = normalised(log_probs.sum(-1) + ratios)
        losses = -(weights.unsqueeze(-1) * log_probs).sum(0).mean(0)
        return with_value(losses, -(weights * ratios).sum(0).mean(), -bound.mean())

    def _noise(self, posterior: Posterior, generator: torch.Generator | None) -> Tensor:
        """Standard normal, ``(M, N, L)``."""
        loc = posterior.loc
        shape = (self.num_samples, *loc.shape)
        return torch.randn(shape, dtype=loc.dtype, device=loc.device, generator=generator)

    def _log_probs(self, parameters: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Of the cells, ``(M, N, D)``, from the parameters at all draws."""
        scaled, observed = (cells.repeat(self.num_samples, 1) for cells in (batch.scaled, batch.observed))
        cells = column_log_probs(self.likelihoods, parameters, scaled, observed)
        return cells.view(self.num_samples, len(batch), -1)


class DReG(IWAE):
    r"""An IWAE whose encoder has the doubly reparametrised gradient, which does not fade as draws are added.

    With :math:`\log w_m` as in :class:`IWAE` and :math:`\tilde w` the normalised weights, held,

    .. math::
        \text{decoder: } -\sum_m \tilde w_m \sum_d \log p(x_d \mid z_m), \qquad
        \text{encoder: } -\sum_m \tilde w_m^2 \log w_m

    For the decoder z is held; for the encoder the decoder's weights are, and the parameters of q where its density is
    taken. Both have columns that may be overlooked, so each has an impartiality block with a method of its own.

    Args:
        arguments, options: Those of :class:`IWAE`. ``aggregator`` is copied for the encoder's block.

    Raises:
        ValueError: as for :class:`IWAE`.

    Cost:
        That of the IWAE and one more pass through the decoder.

    References:
        Tucker, Lawson, Gu and Maddison, Doubly reparameterized gradient estimators for Monte Carlo objectives,
        ICLR 2019.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.encoder_block = copy.deepcopy(self.block)

    def objective(self, batch: Batch, generator: torch.Generator | None = None, *, epoch: int = 0) -> Objective:
        posterior = self.encode(batch.features, generator)
        z = posterior.loc + posterior.scale * self._noise(posterior, generator)
        of_decoder = self._log_probs(self.decode(z.detach().flatten(0, 1)), batch)
        of_encoder = self._log_probs(self._decode_held(z.flatten(0, 1)), batch)
        ratios = log_ratio_held(z, posterior)
        weights, bound = normalised(of_decoder.sum(-1) + ratios)
        losses = -(weights.unsqueeze(-1) * of_decoder).sum(0).mean(0)
        encoder = -(weights.square() * (of_encoder.sum(-1) + ratios)).sum(0).mean()
        return with_value(losses, encoder, -bound.mean())

    def _decode_held(self, z: Tensor) -> tuple[Tensor, ...]:
        """As :meth:`decode`, with the decoder's weights held and the encoder's block."""
        hidden = functional_call(self.trunk, _held(self.trunk), (z,))
        raw = functional_call(self.heads, _held(self.heads), (hidden, self.encoder_block))
        return tuple(likelihood.natural(output) for likelihood, output in zip(self.likelihoods, raw, strict=True))


class Importance(NamedTuple):
    """Normalised weights of M draws, held, ``(M, N)``, and the bound on each row's log-likelihood, ``(N,)``."""

    weights: Tensor
    bound: Tensor


def normalised(log_weights: Tensor, dim: int = 0) -> Importance:
    """From the logarithms of the importance weights; M is the length of ``dim``.

    Example:
        >>> normalised(torch.tensor([[0.0], [math.log(3.0)]]))
        Importance(weights=tensor([[0.2500],
                [0.7500]]), bound=tensor([0.6931]))
    """
    held = log_weights.detach()
    return Importance(held.softmax(dim), held.logsumexp(dim) - math.log(held.shape[dim]))


def log_ratio(z: Tensor, noise: Tensor, scale: Tensor) -> Tensor:
    """log p(z) - log q(z), summed over the units, where z is ``loc + scale * noise``; the constants cancel."""
    return (0.5 * (noise.square() - z.square()) + scale.log()).sum(-1)


def log_ratio_held(z: Tensor, posterior: Posterior) -> Tensor:
    """The same with the parameters of q held: its gradient comes through z alone."""
    loc, scale = posterior.loc.detach(), posterior.scale.detach()
    return log_ratio(z, (z - loc) / scale, scale)


def with_value(losses: Tensor, rest: Tensor, value: Tensor) -> Objective:
    """The objective with the gradient of ``losses.sum() + rest``, whose total is ``value``."""
    surplus = losses.sum(-1) + rest
    return Objective(losses, rest + (value - surplus).detach())


def _held(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in module.named_parameters()}
