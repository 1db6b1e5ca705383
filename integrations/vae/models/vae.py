"""The variational autoencoder: one encoder, one decoder trunk, one head a column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradsurgery as gs

from ..likelihoods.base import Likelihood
from ..tables.encoding import Batch
from .latent_model import LatentModel, check_sizes
from .objective import Objective, column_losses

# Keeps log(scale) finite where softplus underflows.
SMALLEST_SCALE = 1e-6
BIAS = 0.01
TANH_GAIN, RELU_GAIN = 5 / 3, math.sqrt(2)


class Posterior(NamedTuple):
    """The encoder's normal distribution of the latent values: mean and standard deviation, ``(N, L)``."""

    loc: Tensor
    scale: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One reparametrised draw; ``None`` draws from the global generator."""
        noise = torch.randn(self.loc.shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator)
        return self.loc + self.scale * noise


class VAE(LatentModel):
    r"""Models the columns of a table as independent given a latent vector.

    .. math:: z \sim \text{Normal}(0, I), \qquad x_d \mid z \sim p_d(\eta_d(z)), \quad d = 1, \dots, D

    The encoder is Dropout(0.1), BatchNorm and three layers of tanh, then two linear maps to the mean and
    (through softplus) the standard deviation of z. The decoder is a trunk of three layers of ReLU and
    one linear head a column. Between trunk and heads sits an impartiality block: in the backward pass
    the aggregator combines the D gradients of the columns' log-likelihoods, so no column is overlooked.
    What reaches z by another way, as the KL divergence does, is left alone.

    Args:
        num_features: Width F of the encoder's input, >= 1.
        likelihoods: One a column.
        aggregator: Combines the columns' gradients, for example ``gs.UPGrad()``. ``None``: ``gs.Sum()``,
            which is ordinary training.
        rescale: Whether the combined gradient gets the norm of the plain sum; see :class:`ImpartialityBlock`.
        hidden_size: Width of all hidden layers, >= 1.
        latent_size: Length L of z, >= 1. ``None``: half the number of columns, rounded up.
        dropout: Share of the encoder's inputs set to 0 in training, in [0, 1).
        generator: Draws the initial weights (Xavier; biases are 0.01). ``None``: the global generator.

    Shape:
        - features: ``(N, F)``.
        - output: the posterior's mean and standard deviation ``(N, L)``; D tensors of natural
          parameters ``(N, num_parameters)``.

    Raises:
        ValueError: a size is less than 1, there is no likelihood, or ``dropout`` is out of range.

    Cost:
        Backward: one ordinary pass, the aggregator on D gradients of length N h, nothing else.

    References:
        Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014.
        Javaloy, Meghdadi and Valera, Boosting heterogeneous VAEs via multi-objective optimization, 2021.

    Example:
        >>> vae = VAE(3, [Normal(), Categorical(2)])
        >>> posterior, parameters = vae(torch.zeros(5, 3))
        >>> posterior.loc.shape, [eta.shape[1] for eta in parameters]
        (torch.Size([5, 1]), [2, 2])
    """

    def __init__(
        self,
        num_features: int,
        likelihoods: Sequence[Likelihood],
        aggregator: gs.Aggregator | None = None,
        *,
        rescale: bool = True,
        hidden_size: int = 50,
        latent_size: int | None = None,
        dropout: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.likelihoods = tuple(likelihoods)
        columns = len(self.likelihoods)
        self.latent_size = max(1, (columns + 1) // 2) if latent_size is None else latent_size
        _check_arguments(num_features, columns, hidden_size, self.latent_size, dropout)
        self.dropout = dropout
        # The layers' own initialisation would draw from the global generator; it is replaced below.
        with torch.random.fork_rng(devices=[]):
            self.normalise = nn.BatchNorm1d(num_features)
            self.encoder = _layers(num_features, hidden_size, nn.Tanh)
            self.to_loc = nn.Linear(hidden_size, self.latent_size)
            self.to_scale = nn.Linear(hidden_size, self.latent_size)
            self.trunk = _layers(self.latent_size, hidden_size, nn.ReLU)
            method = gs.Sum() if aggregator is None else aggregator
            self.block = gs.ImpartialityBlock(columns, method, rescale=rescale)
            self.heads = gs.FusedHeads(hidden_size, [likelihood.num_parameters for likelihood in self.likelihoods])
        self._initialise(generator)

    def encode(self, features: Tensor, generator: torch.Generator | None = None) -> Posterior:
        """The posterior of z; ``generator`` draws the dropout mask in training mode."""
        kept = _drop(features, self.dropout, generator) if self.training else features
        hidden = self.encoder(self.normalise(kept))
        return Posterior(self.to_loc(hidden), functional.softplus(self.to_scale(hidden)) + SMALLEST_SCALE)

    def decode(self, z: Tensor) -> tuple[Tensor, ...]:
        """The natural parameters of every column, each ``(N, num_parameters)``."""
        raw = self.heads(self.trunk(z), self.block)
        return tuple(likelihood.natural(output) for likelihood, output in zip(self.likelihoods, raw, strict=True))

    def posterior_mode(self, features: Tensor) -> Tensor:
        return self.encode(features).loc

    def posterior_draw(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.encode(features, generator).sample(generator)

    def prior_draw(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        weight = self.to_loc.weight
        size = (rows, self.latent_size)
        return torch.randn(size, dtype=weight.dtype, device=weight.device, generator=generator)

    def objective(self, batch: Batch, generator: torch.Generator | None = None, *, epoch: int = 0) -> Objective:
        """The negative evidence lower bound, with one draw of z a row."""
        posterior, parameters = self(batch.features, generator)
        return Objective(column_losses(self.likelihoods, parameters, batch), kl_divergence(posterior))

    def forward(
        self, features: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Posterior, tuple[Tensor, ...]]:
        """Encodes, draws z once and decodes it."""
        posterior = self.encode(features, generator)
        return posterior, self.decode(posterior.sample(generator))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        for part, gain in ((self.encoder, TANH_GAIN), (self.trunk, RELU_GAIN)):
            for layer in part:
                if isinstance(layer, nn.Linear):
                    _xavier(layer.weight, layer.bias, gain, generator)
        for layer in (self.to_loc, self.to_scale):
            _xavier(layer.weight, layer.bias, 1.0, generator)
        for rows in self.heads.head_slices():
            nn.init.xavier_uniform_(self.heads.weight[rows], generator=generator)
        if self.heads.bias is not None:
            self.heads.bias.fill_(BIAS)


def kl_divergence(posterior: Posterior) -> Tensor:
    r"""KL divergence of the posterior from the standard normal prior, averaged over rows.

    .. math:: \frac1N \sum_n \sum_l \tfrac12 (\mu_{nl}^2 + \sigma_{nl}^2 - 1) - \log \sigma_{nl}

    Example:
        >>> kl_divergence(Posterior(torch.ones(4, 2), torch.ones(4, 2)))
        tensor(1.)
    """
    loc, scale = posterior
    return (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum(1).mean()


def _layers(inputs: int, hidden: int, activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, hidden, hidden):
        layers += [nn.Linear(width, hidden), activation()]
    return nn.Sequential(*layers)


def _xavier(weight: Tensor, bias: Tensor, gain: float, generator: torch.Generator | None) -> None:
    nn.init.xavier_uniform_(weight, gain, generator=generator)
    bias.fill_(BIAS)


def _drop(features: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Dropout whose mask comes from ``generator``; torch's own takes none."""
    noise = torch.rand(features.shape, dtype=features.dtype, device=features.device, generator=generator)
    return features * (noise >= share) / (1 - share)


def _check_arguments(features: int, columns: int, hidden: int, latent: int, dropout: float) -> None:
    sizes = {"num_features": features, "likelihoods": columns, "hidden_size": hidden, "latent_size": latent}
    check_sizes("VAE", sizes)
    if not 0 <= dropout < 1:
        raise ValueError(f"VAE: `dropout` must be in [0, 1), got {dropout}. Use 0 for none.")
