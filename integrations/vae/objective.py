"""The negative evidence lower bound, one loss a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .encoding import Batch
from .likelihood import Likelihood
from .model import VAE, Posterior


class Objective(NamedTuple):
    """The terms of one step.

    Shape:
        - losses: ``(D,)``, one a column.
        - kl: scalar.
    """

    losses: Tensor
    kl: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.losses.sum() + self.kl


def column_losses(likelihoods: Sequence[Likelihood], parameters: Sequence[Tensor], batch: Batch) -> Tensor:
    r"""Negative log-likelihood of each column, in scaled units.

    .. math:: \ell_d = -\frac1N \sum_{n \text{ observed}} \log p(x'_{nd} \mid \eta_{nd})

    It divides by all N rows, so that the losses add up to the average of a row's log-likelihood; a
    missing cell counts as 0, and a column with none observed has loss and gradient 0.

    Args:
        likelihoods: One a column.
        parameters: Their natural parameters, one tensor a column.
        batch: The rows. What stands in a missing cell, even NaN, changes nothing.

    Shape:
        - parameters: ``(N, num_parameters)`` each.
        - output: ``(D,)``.

    Example:
        >>> batch = Batch(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]), torch.tensor([[True], [False]]))
        >>> column_losses([Bernoulli()], [torch.zeros(2, 1)], batch)  # log(2) / 2
        tensor([0.3466])
    """
    # Replaced before the density and again after it: 0 times NaN, and its gradient, would be NaN.
    targets = torch.where(batch.observed, batch.scaled, 0.0).unbind(1)
    log_probs = [
        likelihood.log_prob(target, eta)
        for likelihood, target, eta in zip(likelihoods, targets, parameters, strict=True)
    ]
    return -torch.where(batch.observed, torch.stack(log_probs, dim=1), 0.0).mean(0)


def kl_divergence(posterior: Posterior) -> Tensor:
    r"""KL divergence of the posterior from the standard normal prior, averaged over rows.

    .. math:: \frac1N \sum_n \sum_l \tfrac12 (\mu_{nl}^2 + \sigma_{nl}^2 - 1) - \log \sigma_{nl}

    Example:
        >>> kl_divergence(Posterior(torch.ones(4, 2), torch.ones(4, 2)))
        tensor(1.)
    """
    loc, scale = posterior
    return (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum(1).mean()


def negative_elbo(vae: VAE, batch: Batch, generator: torch.Generator | None = None) -> Objective:
    """The terms of the negative evidence lower bound with one draw of z a row.

    ``.total.backward()`` aggregates the columns' gradients in the model's block; the KL divergence
    does not pass through it.

    Args:
        vae: The model.
        batch: The rows, at least two in training mode (BatchNorm).
        generator: Draws dropout masks and z. ``None``: the global generator.
    """
    posterior, parameters = vae(batch.features, generator)
    return Objective(column_losses(vae.likelihoods, parameters, batch), kl_divergence(posterior))
