"""What all models of a table have in common: rows become latent vectors, latent vectors become rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..likelihoods.base import Likelihood
from ..tables.encoder_inputs import Inputs
from ..tables.encoding import Batch
from .objective import Objective


class LatentModel(nn.Module, ABC):
    """A model in which the columns of a table are independent given a latent vector.

    Shape:
        - features: ``(N, F)``, the encoder's input.
        - latent: ``(N, latent_size)``, all that a row is reconstructed from.
    """

    likelihoods: tuple[Likelihood, ...]
    latent_size: int
    inputs: ClassVar[Inputs] = "vae"
    """The kind of input that the encoder takes; see :class:`Encoding`."""

    @abstractmethod
    def objective(self, batch: Batch, generator: torch.Generator | None = None, *, epoch: int = 0) -> Objective:
        """The terms of one training step; the backward pass of the total aggregates the columns' gradients.

        Args:
            batch: The rows, at least two in training mode (BatchNorm).
            generator: Draws all noise. ``None``: the global generator.
            epoch: How many passes over the training rows came before, for what is annealed.
        """

    @abstractmethod
    def posterior_mode(self, features: Tensor) -> Tensor:
        """The most likely latent vector of each row."""

    @abstractmethod
    def posterior_draw(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw of each row's latent vector."""

    @abstractmethod
    def prior_draw(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """Latent vectors of rows that nothing is known of."""

    @abstractmethod
    def decode(self, latent: Tensor) -> tuple[Tensor, ...]:
        """The natural parameters of every column, each ``(N, num_parameters)``."""


def check_sizes(owner: str, sizes: Mapping[str, int]) -> None:
    """Raises unless all sizes, by the argument's name, are at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{owner}: `{name}` must be at least 1, got {size}. Pass a larger one.")
