"""The terms of a training step: one loss a column, and what does not pass through the impartiality blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..likelihoods.base import Likelihood
from ..tables.encoding import Batch


class Objective(NamedTuple):
    """The terms of one step.

    Shape:
        - losses: ``(D,)``, one a column.
        - rest: scalar, such as a KL divergence.

    Of several models at once, both have a leading dimension.
    """

    losses: Tensor
    rest: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.losses.sum(-1) + self.rest


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
    return -column_log_probs(likelihoods, parameters, batch.scaled, batch.observed).mean(0)


def column_log_probs(
    likelihoods: Sequence[Likelihood], parameters: Sequence[Tensor], scaled: Tensor, observed: Tensor
) -> Tensor:
    """Log-likelihood of each cell, ``(N, D)``, in scaled units; 0 for a missing one."""
    # Replaced before the density and again after it: 0 times NaN, and its gradient, would be NaN.
    targets = torch.where(observed, scaled, 0.0).unbind(1)
    log_probs = [
        likelihood.log_prob(target, eta)
        for likelihood, target, eta in zip(likelihoods, targets, parameters, strict=True)
    ]
    return torch.where(observed, torch.stack(log_probs, dim=1), 0.0)
