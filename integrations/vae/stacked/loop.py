"""The steps of several seeds' trainings, taken together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.registry import ModelName
from ..tables.encoding import Batch
from ..training.preparation import Prepared, Settings, batches
from .captured_step import CapturedStep, CudaGraphs
from .hivae import StackedHIVAE
from .importance import StackedDReG, StackedIWAE
from .likelihoods import StackedLikelihoods
from .vae import Fill, Stack, StackedVAE

STACKS: dict[ModelName, type[Stack]] = {
    "vae": StackedVAE,
    "iwae": StackedIWAE,
    "dreg": StackedDReG,
    "hivae": StackedHIVAE,
}


class StackedLoop:
    """Trains the models of several seeds on their training rows, which lie one below the other.

    On a GPU, steps are captured in a CUDA graph if the method can be: it needs inner products alone, draws nothing
    and reads nothing on the host. Else, and where the last batch is smaller, they are taken one operation after the
    other, with the same numbers up to rounding. Batches are drawn on the CPU, noise where the steps are taken.

    Args:
        caller: Whom error messages are to name.
        built: What belongs to each seed.
        seeds: They.
        settings: What is common to all.
    """

    def __init__(self, caller: str, built: Sequence[Prepared], seeds: Sequence[int], settings: Settings) -> None:
        self.caller = caller
        self.device = settings.place
        self.likelihoods = StackedLikelihoods([own.encoding.likelihoods for own in built], self.device)
        for own in built:
            own.model.train()
        self.stack = STACKS[settings.model]([own.model for own in built], self.likelihoods)
        for blocks in self.stack.surgery:
            blocks.to(self.device)
        self.generators = [own.noise for own in built]
        if self.device.type == "cuda":
            seeds_of_noise = [generator.initial_seed() for generator in self.generators]
            self.generators += [torch.Generator(self.device).manual_seed(seed) for seed in seeds_of_noise]
        self.shuffling, self.drawing = self.generators[: len(built)], self.generators[-len(built) :]
        captures = self.device.type == "cuda" and all(blocks.is_capturable for blocks in self.stack.surgery)
        self.captured = CapturedStep(self.step, CudaGraphs(self.device, self.drawing)) if captures else None
        # Fused: the layers are so small that Adam's many calls would take a third of the time.
        self.optimizer = torch.optim.Adam(
            self.stack.weights.values(), lr=settings.learning_rate, fused=True, capturable=captures
        )
        self.seeds, self.batch_size, self.epoch = list(seeds), settings.rows_a_step, 0
        self.rows = len(built[0].training)
        columns = self.likelihoods.columns
        self.names = [built[0].table.schema.names[column] for column in columns]
        self.training = Batch(
            torch.cat([own.training.features for own in built]),
            torch.cat([own.training.scaled[:, columns] for own in built]),
            torch.cat([own.training.observed[:, columns] for own in built]),
        )
        self.offsets = (torch.arange(len(built)).unsqueeze(1) * self.rows).to(self.device)
        self.total = torch.zeros(len(built), device=self.device)
        self.losses = torch.zeros(len(built), len(columns), device=self.device)

    def train_epoch(self) -> list[float]:
        """Takes one step a batch, copies the weights to the models and returns each seed's mean loss of a row."""
        self.total.zero_()
        self.losses.zero_()
        chunks = [batches(self.rows, self.batch_size, generator) for generator in self.shuffling]
        steps = [torch.stack(rows).to(self.device) for rows in zip(*chunks, strict=True)]
        if self.captured is not None:
            self.captured.take(steps, self.stack.phase(self.epoch))
        else:
            for rows in steps:
                self.step(rows)
        self._check_finite(self.total, self.losses)
        self.stack.copy_to_models()
        self.epoch += 1
        return (self.total.double() / self.rows).tolist()

    def step(self, rows: Tensor) -> None:
        """Takes one step on the rows ``(S, N)`` and adds its loss to those of the epoch."""
        self.optimizer.zero_grad()
        chosen = self.training.select((rows + self.offsets).flatten())
        parts = (chosen.features, chosen.scaled, chosen.observed)
        objective = self.stack.objective(
            Batch(*(part.view(*rows.shape, -1) for part in parts)), self._draw, self.epoch
        )
        objective.total.sum().backward()
        self.optimizer.step()
        self.total += objective.total.detach() * rows.shape[1]
        self.losses += objective.losses.detach()

    def _draw(self, fill: Fill, shape: tuple[int, ...]) -> Tensor:
        """Noise in which each seed's part is what its generator gives a model alone."""
        noise = torch.empty(shape, dtype=self.training.features.dtype, device=self.device)
        for own, generator in zip(noise, self.drawing, strict=True):
            fill(own, generator=generator)
        return noise

    def _check_finite(self, total: Tensor, losses: Tensor) -> None:
        for seed, value, own in zip(self.seeds, total.tolist(), losses.isfinite().tolist(), strict=True):
            if not math.isfinite(value):
                broken = [name for name, finite in zip(self.names, own, strict=True) if not finite]
                raise RuntimeError(
                    f"{self.caller}: the loss must stay finite, got {value} for seed {seed} (columns "
                    f"{', '.join(broken) or 'none'}; else what is not of a column). Lower `learning_rate`, or look "
                    "for extreme cells there."
                )
