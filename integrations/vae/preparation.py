"""What a training run starts from: split, scaling, model, generators; and the batches it goes through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import gradsurgery as gs

from .encoding import Batch, Encoding
from .model import VAE
from .table import Split, Table


class Prepared(NamedTuple):
    """What belongs to one seed.

    Args:
        split: Which rows are which.
        encoding: Scaling and likelihoods, from the training rows.
        training: The training rows.
        validation: The validation rows.
        vae: The model with its initial weights.
        noise: Draws batches, dropout and z.
    """

    split: Split
    encoding: Encoding
    training: Batch
    validation: Batch
    vae: VAE
    noise: torch.Generator


def prepare(
    table: Table, aggregator: gs.Aggregator | None, hidden_size: int, latent_size: int | None, seed: int
) -> Prepared:
    """Sets up one training run; everything random in it comes from ``seed``."""
    split = table.split(seed)
    encoding = Encoding(table, split.train)
    training, validation = _parts(encoding.encode(table), split)
    initial, noise = (torch.Generator().manual_seed(word) for word in _independent_seeds(seed))
    vae = VAE(
        encoding.num_features,
        encoding.likelihoods,
        aggregator,
        hidden_size=hidden_size,
        latent_size=latent_size,
        generator=initial,
    )
    return Prepared(split, encoding, training, validation, vae, noise)


def batches(rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled row numbers in batches of at least two rows."""
    chunks = list(torch.randperm(rows, generator=generator).split(batch_size))
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        last = chunks.pop()
        chunks[-1] = torch.cat([chunks[-1], last])
    return iter(chunks)


def check_arguments(caller: str, table: object, learning_rate: float, **smallest: tuple[int, int]) -> None:
    """Raises unless the arguments of a run are fit for it; ``smallest`` has value and bound by name."""
    if not isinstance(table, Table):
        raise TypeError(
            f"{caller}: `table` must be a Table, got {type(table).__name__}. Use Table.from_frame(frame)."
        )
    for name, (value, least) in smallest.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{caller}: `{name}` must be an integer, got {value!r}. Pass a whole number.")
        if value >= 1 << 63:
            raise ValueError(f"{caller}: `{name}` must be less than 2**63, got {value}. Pass a smaller one.")
        if value < least:
            raise ValueError(f"{caller}: `{name}` must be at least {least}, got {value}. Pass a larger one.")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"{caller}: `learning_rate` must be positive and finite, got {learning_rate}. Try 1e-3.")


def _parts(batch: Batch, split: Split) -> tuple[Batch, Batch]:
    """The training and the validation rows."""
    training, validation = batch.select(split.train), batch.select(split.validation)
    if not validation.observed.any():
        raise ValueError(
            f"fit: `table` must have an observed cell among its validation rows, got {len(validation)} rows "
            "without. Drop empty rows, or split by another `seed`."
        )
    return training, validation


def _independent_seeds(seed: int) -> list[int]:
    """Two seeds with unrelated streams; the split keeps ``seed`` itself."""
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(2)]
