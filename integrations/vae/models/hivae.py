"""HI-VAE: a mixture for the latent vector, linear maps, and small features of each column's own."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradsurgery as gs

from ..likelihoods.base import Likelihood
from ..likelihoods.numerics import log_softmax
from ..tables.encoder_inputs import Inputs
from ..tables.encoding import Batch
from .latent_model import LatentModel, check_sizes
from .objective import Objective, column_losses
from .vae import BIAS, SMALLEST_SCALE, Posterior

# The temperature of the draws of s falls by this much an epoch, to no less than the second.
COOLING, SMALLEST_TEMPERATURE = 0.01, 1e-3


class HIVAE(LatentModel):
    r"""Models the columns of a table by a mixture whose component s says what is typical of a row.

    .. math::
        s \sim \text{Uniform}\{1, \dots, C\}, \qquad z \mid s \sim \text{Normal}(A s, I), \qquad
        y_d = B_d z, \qquad x_d \mid z, s \sim p_d(\eta_d), \quad d = 1, \dots, D

    with s as a one-hot vector. The parameters of a column that say where its values lie are linear in
    :math:`(y_d, s)`; the others, which say how they spread, are linear in s alone (all maps have biases):

    ==============================  ============================  =========================
    likelihood                      from y and s                  from s alone
    ==============================  ============================  =========================
    normal, lognormal               mean / variance               1 / variance
    gamma, exponential              log mean                      log shape
    beta                            both logarithms               none
    poisson, negative_binomial      log rate, log mean            log size
    bernoulli, categorical          all logits                    none
    ordinal                         first log-odds                gaps
    hurdle_*                        log-odds of a cell above 0,   as above, of what is above 0
                                    and as above
    ==============================  ============================  =========================

    Mean / variance is as good as the mean here: the variance is the same for all rows of a component. The encoder is
    linear, as published: logits of s from the row, then mean and (through softplus) standard deviation of z from
    the row and s. In training s is a draw of a Gumbel-softmax distribution with temperature
    :math:`\max(10^{-3}, 1 - 0.01\,\text{epoch})`; to reconstruct, it is the likeliest component.

    Both z and s are what the columns fight over, so an impartiality block sits between z and the y, and another
    between s and the columns' parameters, each with a method of its own. What reaches z and s by another way, as the
    divergences of s and z from their priors do, and what passes from z to s, is left alone.

    Args:
        num_features: Width F of the encoder's input, >= 1.
        likelihoods: One a column.
        aggregator: Combines the columns' gradients at z; a copy of it does so at s. ``None``: ``gs.Sum()``, which is
            ordinary training.
        rescale: Whether the combined gradients get the norm of the plain sum; see :class:`ImpartialityBlock`.
        latent_size: Length of z, >= 1. The latent vector that :meth:`decode` takes is z and s.
        column_size: Length of each y, >= 1.
        components: C, length of s, >= 1.
        generator: Draws the initial weights (Xavier; biases are 0.01). ``None``: the global generator.

    Shape:
        - features: ``(N, F)``.
        - latent: ``(N, latent_size + components)``, z first.

    Raises:
        ValueError: a size is less than 1, or there is no likelihood.

    Cost:
        Backward: one ordinary pass, the aggregators on D gradients of length N times that of z and of s.

    References:
        Nazábal, Olmos, Ghahramani and Valera, Handling incomplete heterogeneous data using VAEs, Pattern
        Recognition 107 (2020).
        Javaloy, Meghdadi and Valera, Boosting heterogeneous VAEs via multi-objective optimization, 2021.

    Example:
        >>> model = HIVAE(3, [Normal(), Categorical(2)])
        >>> latent = model.posterior_mode(torch.zeros(5, 3))
        >>> latent.shape, [eta.shape[1] for eta in model.decode(latent)]
        (torch.Size([5, 20]), [2, 2])
    """

    # Departs from Nazábal et al.: categories have as many logits as there are, not the first held at 0, and the
    # standard deviation of z comes through softplus, as in the VAE.

    inputs: ClassVar[Inputs] = "hivae"

    def __init__(
        self,
        num_features: int,
        likelihoods: Sequence[Likelihood],
        aggregator: gs.Aggregator | None = None,
        *,
        rescale: bool = True,
        latent_size: int = 10,
        column_size: int = 5,
        components: int = 10,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.likelihoods = tuple(likelihoods)
        columns = len(self.likelihoods)
        sizes = {"latent_size": latent_size, "column_size": column_size, "components": components}
        check_sizes("HIVAE", {"num_features": num_features, "likelihoods": columns, **sizes})
        self.column_size, self.components = column_size, components
        self.latent_size = latent_size + components
        self.z_size = latent_size
        # The layers' own initialisation would draw from the global generator; it is replaced below.
        with torch.random.fork_rng(devices=[]):
            self.to_s = nn.Linear(num_features, components)
            self.to_z = nn.Linear(num_features + components, 2 * latent_size)
            self.prior = nn.Linear(components, latent_size)
            method = gs.Sum() if aggregator is None else aggregator
            self.block = gs.ImpartialityBlock(columns, method, rescale=rescale)
            self.s_block = copy.deepcopy(self.block)
            self.to_y = gs.FusedHeads(latent_size, [column_size] * columns)
            self.heads = gs.FusedHeads(components, [likelihood.num_parameters for likelihood in self.likelihoods])
        places = location_places(self.likelihoods, column_size)
        self.locations = nn.Parameter(torch.empty(places.columns.shape))
        self._rows: Tensor
        self._columns: Tensor
        self.register_buffer("_rows", places.rows, persistent=False)
        self.register_buffer("_columns", places.columns, persistent=False)
        self._initialise(generator)

    def objective(self, batch: Batch, generator: torch.Generator | None = None, *, epoch: int = 0) -> Objective:
        """The negative evidence lower bound, with one draw of s and z a row; s at the temperature of the epoch."""
        logits = self.to_s(batch.features)
        s = relaxed_draw(logits, _uniform(logits, generator), temperature(epoch))
        posterior = self.posterior_of_z(batch.features, s)
        parameters = self.decode(torch.cat([posterior.sample(generator), s], dim=1))
        rest = divergence_of_s(logits) + divergence_of_z(posterior, self.prior(s))
        return Objective(column_losses(self.likelihoods, parameters, batch), rest)

    def posterior_of_z(self, features: Tensor, s: Tensor) -> Posterior:
        """The normal distribution of z given rows and components ``(N, C)``."""
        return posterior_of(self.to_z(torch.cat([features, s], dim=1)))

    def posterior_mode(self, features: Tensor) -> Tensor:
        """The likeliest component of each row, and the mean of z given it."""
        s = self._one_hot(self.to_s(features).argmax(1))
        return torch.cat([self.posterior_of_z(features, s).loc, s], dim=1)

    def posterior_draw(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits = self.to_s(features)
        s = self._one_hot((logits + gumbel(_uniform(logits, generator))).argmax(1))
        return torch.cat([self.posterior_of_z(features, s).sample(generator), s], dim=1)

    def prior_draw(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        device = self.to_s.weight.device
        s = self._one_hot(torch.randint(self.components, (rows,), device=device, generator=generator))
        loc = self.prior(s)
        return torch.cat([Posterior(loc, torch.ones_like(loc)).sample(generator), s], dim=1)

    def decode(self, latent: Tensor) -> tuple[Tensor, ...]:
        """The natural parameters of every column, each ``(N, num_parameters)``."""
        z, s = latent.split([self.z_size, self.components], dim=1)
        y = torch.cat(self.to_y(z, self.block), dim=1)
        raw = torch.cat(self.heads(s, self.s_block), dim=1)
        spread = self.locations.new_zeros(raw.shape[1], y.shape[1])
        spread[self._rows, self._columns] = self.locations
        parts = torch.addmm(raw, y, spread.mT).split(self.heads.out_features, dim=1)
        return tuple(likelihood.natural(own) for likelihood, own in zip(self.likelihoods, parts, strict=True))

    def _one_hot(self, chosen: Tensor) -> Tensor:
        return functional.one_hot(chosen, self.components).to(self.to_s.weight.dtype)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        weights = [self.to_s.weight, *self.to_z.weight.chunk(2), self.prior.weight]
        weights += [heads.weight[rows] for heads in (self.to_y, self.heads) for rows in heads.head_slices()]
        weights += self.locations.split([likelihood.num_locations for likelihood in self.likelihoods])
        for weight in weights:
            nn.init.xavier_uniform_(weight, generator=generator)
        for layer in (self.to_s, self.to_z, self.prior, self.to_y, self.heads):
            if layer.bias is not None:
                layer.bias.fill_(BIAS)


class Places(NamedTuple):
    """Where weights stand in the matrix that takes all y, one beside the other, to all parameters.

    Shape:
        - rows: ``(R, 1)``, the parameters that depend on a y.
        - columns: ``(R, column_size)``, that y.
    """

    rows: Tensor
    columns: Tensor


def location_places(likelihoods: Sequence[Likelihood], column_size: int) -> Places:
    """The places of the columns' maps from y to the parameters that say where values lie.

    Example:
        >>> location_places([Normal(), Categorical(2)], 1)  # of the parameters 0, 1 and 2, 3
        Places(rows=tensor([[0],
                [2],
                [3]]), columns=tensor([[0],
                [1],
                [1]]))
    """
    rows: list[int] = []
    owners: list[int] = []
    start = 0
    for column, likelihood in enumerate(likelihoods):
        rows += range(start, start + likelihood.num_locations)
        owners += [column] * likelihood.num_locations
        start += likelihood.num_parameters
    first = torch.tensor(owners).unsqueeze(1) * column_size
    return Places(torch.tensor(rows).unsqueeze(1), first + torch.arange(column_size))


def temperature(epoch: int) -> float:
    """Of the draws of s after that many epochs.

    Example:
        >>> temperature(0), temperature(50), temperature(2000)
        (1.0, 0.5, 0.001)
    """
    return max(SMALLEST_TEMPERATURE, 1.0 - COOLING * epoch)


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise from uniform noise in [0, 1)."""
    positive = uniform.clamp_min(torch.finfo(uniform.dtype).tiny)
    return -torch.log(-torch.log(positive))


def relaxed_draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Draws of the Gumbel-softmax distribution: of sum 1, the closer to one-hot the lower the temperature."""
    return log_softmax((logits + gumbel(uniform)) / temperature).exp()


def posterior_of(raw: Tensor) -> Posterior:
    """Mean and standard deviation from outputs ``(..., 2 L)``."""
    loc, scale = raw.chunk(2, -1)
    return Posterior(loc, functional.softplus(scale) + SMALLEST_SCALE)


def divergence_of_s(logits: Tensor) -> Tensor:
    r"""KL divergence of s from the uniform distribution, averaged over rows: ``(..., N, C)`` to ``(...)``.

    .. math:: \frac1N \sum_n \sum_c q_{nc} \log (C q_{nc})
    """
    log_q = log_softmax(logits)
    return (log_q.exp() * (log_q + math.log(logits.shape[-1]))).sum(-1).mean(-1)


def divergence_of_z(posterior: Posterior, prior: Tensor) -> Tensor:
    """KL divergence of z from the normal distribution with that mean and variance 1: ``(..., N, L)`` to ``(...)``.

    Averaged over rows, at the component that was drawn.
    """
    loc, scale = posterior
    return (0.5 * ((loc - prior).square() + scale.square() - 1) - scale.log()).sum(-1).mean(-1)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
