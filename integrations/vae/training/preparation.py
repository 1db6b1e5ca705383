"""What a training run starts from: split, scaling, model, generators; and the batches it goes through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import gradsurgery as gs

from ..models.latent_model import LatentModel
from ..models.registry import MODELS, ModelName, build_model
from ..tables.encoding import Batch, Encoding
from ..tables.table import Split, Table


@dataclass(frozen=True)
class Settings:
    """How models are trained; the arguments of :func:`fit` that a seed does not change.

    Args:
        model, rescale, epochs, batch_size, learning_rate, hidden_size, latent_size, device: As there.
    """

    model: ModelName = "vae"
    rescale: bool = True
    epochs: int = 100
    batch_size: int | None = None
    learning_rate: float = 1e-3
    hidden_size: int | None = None
    latent_size: int | None = None
    device: str | torch.device | None = None

    def check(self, caller: str) -> None:
        """Raises unless all are fit for a run."""
        if not isinstance(self.model, str) or self.model not in MODELS:
            raise ValueError(
                f"{caller}: `model` must be among {', '.join(MODELS)}, got {self.model!r}. Check the spelling."
            )
        check_integer(caller, "epochs", self.epochs, 1)
        check_integer(caller, "batch_size", self.rows_a_step, 2)
        for name, size in (("hidden_size", self.hidden_size), ("latent_size", self.latent_size)):
            if size is not None:
                check_integer(caller, name, size, 1)
        if not isinstance(self.rescale, bool):
            raise TypeError(f"{caller}: `rescale` must be True or False, got {self.rescale!r}. Pass one of them.")
        if isinstance(self.learning_rate, bool) or not isinstance(self.learning_rate, int | float):
            raise TypeError(f"{caller}: `learning_rate` must be a number, got {self.learning_rate!r}. Try 1e-3.")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"{caller}: `learning_rate` must be positive and finite, got {self.learning_rate}. Try 1e-3."
            )
        _check_device(caller, self.device)

    @property
    def rows_a_step(self) -> int:
        """The batch size, the model's own where none is given."""
        return MODELS[self.model].batch_size if self.batch_size is None else self.batch_size

    @property
    def place(self) -> torch.device:
        """The device."""
        return torch.device("cpu" if self.device is None else self.device)


@dataclass(frozen=True)
class Prepared:
    """What belongs to one seed.

    Args:
        table: The whole table.
        split: Which rows are which.
        encoding: Scaling and likelihoods, from the training rows.
        training: The training rows, on the device.
        validation: The validation rows, there too.
        model: With its initial weights, there too.
        noise: Draws batches, on the CPU; and dropout and latent vectors, unless the device is another one.
    """

    table: Table
    split: Split
    encoding: Encoding
    training: Batch
    validation: Batch
    model: LatentModel
    noise: torch.Generator


def prepare(table: Table, aggregator: gs.Aggregator, settings: Settings, seed: int) -> Prepared:
    """Sets up one training run; everything random in it comes from ``seed``."""
    split = table.split(seed)
    encoding = Encoding(table, split.train, MODELS[settings.model].network.inputs)
    training, validation = _parts(encoding.encode(table), split)
    initial, noise = (torch.Generator().manual_seed(word) for word in _independent_seeds(seed))
    sizes = {"hidden_size": settings.hidden_size, "latent_size": settings.latent_size}
    model = build_model(settings.model, encoding, aggregator, generator=initial, rescale=settings.rescale, **sizes)
    place = settings.place
    return Prepared(table, split, encoding, _on(training, place), _on(validation, place), model.to(place), noise)


def batches(rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled row numbers in batches of at least two rows."""
    chunks = list(torch.randperm(rows, generator=generator).split(batch_size))
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        last = chunks.pop()
        chunks[-1] = torch.cat([chunks[-1], last])
    return iter(chunks)


def check_integer(caller: str, name: str, value: object, least: int) -> None:
    """Raises unless ``value`` is a whole number that is large enough, and not too large for a generator."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{caller}: `{name}` must be an integer, got {value!r}. Pass a whole number.")
    if value >= 1 << 63:
        raise ValueError(f"{caller}: `{name}` must be less than 2**63, got {value}. Pass a smaller one.")
    if value < least:
        raise ValueError(f"{caller}: `{name}` must be at least {least}, got {value}. Pass a larger one.")


def _on(batch: Batch, place: torch.device) -> Batch:
    return Batch(batch.features.to(place), batch.scaled.to(place), batch.observed.to(place))


def _check_device(caller: str, device: object) -> None:
    """Raises unless the device is the CPU or a GPU that is there."""
    if device is None:
        return
    if not isinstance(device, str | torch.device):
        raise TypeError(f"{caller}: `device` must be a name or a torch.device, got {device!r}. Try 'cuda'.")
    kind = str(device).partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"{caller}: `device` must be 'cpu' or 'cuda', got {str(device)!r}. Pass one of them.")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{caller}: `device` must be a torch.device, got {str(device)!r}. Try {kind!r}.") from error
    there = torch.cuda.device_count() if place.type == "cuda" and torch.cuda.is_available() else 0
    if place.type == "cuda" and (place.index or 0) >= there:
        raise ValueError(
            f"{caller}: `device` must be one that torch can use, got {str(device)!r} with {there} CUDA devices. "
            "Pass 'cpu', or install torch for CUDA."
        )


def _parts(batch: Batch, split: Split) -> tuple[Batch, Batch]:
    """The training and the validation rows."""
    training, validation = batch.select(split.train), batch.select(split.validation)
    if not validation.observed.any():
        raise ValueError(
            f"Table: `table` must have an observed cell among its validation rows, got {len(validation)} rows "
            "without. Drop empty rows, or split by another `seed`."
        )
    return training, validation


def _independent_seeds(seed: int) -> list[int]:
    """Two seeds with unrelated streams; the split keeps ``seed`` itself."""
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(2)]
