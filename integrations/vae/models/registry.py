"""The models by name: the network and its batch size."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import torch

import gradsurgery as gs

from ..tables.encoding import Encoding
from .hivae import HIVAE
from .importance import IWAE, DReG
from .latent_model import LatentModel
from .vae import VAE

ModelName: TypeAlias = Literal["vae", "iwae", "dreg", "hivae"]


class ModelKind(NamedTuple):
    """What training needs to know of a model.

    Args:
        network: The model.
        batch_size: Rows a step, as published.
    """

    network: type[LatentModel]
    batch_size: int = 128


MODELS: dict[ModelName, ModelKind] = {
    "vae": ModelKind(VAE),
    "iwae": ModelKind(IWAE),
    "dreg": ModelKind(DReG),
    "hivae": ModelKind(HIVAE, batch_size=1000),
}


def build_model(
    name: ModelName,
    encoding: Encoding,
    aggregator: gs.Aggregator | None,
    *,
    generator: torch.Generator | None = None,
    **options: Any,
) -> LatentModel:
    """A model for the columns of a table.

    Args:
        name: One of :data:`MODELS`.
        encoding: Its width and likelihoods.
        aggregator: Combines the columns' gradients. ``None``: their sum.
        generator: Draws the initial weights.
        options: ``rescale``, ``hidden_size``, ``latent_size``; those that are None are left to the model.

    Raises:
        ValueError: a size is less than 1, or the model has no such layers.
    """
    given = {option: value for option, value in options.items() if value is not None}
    if name == "hivae" and "hidden_size" in given:
        raise ValueError(
            f"build_model: `hidden_size` must be None for 'hivae', which has no hidden layers, got "
            f"{given['hidden_size']}. Set `latent_size`."
        )
    network: Any = MODELS[name].network
    model: LatentModel = network(
        encoding.num_features, encoding.likelihoods, aggregator, generator=generator, **given
    )
    return model
