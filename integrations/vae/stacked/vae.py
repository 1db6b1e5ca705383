"""The weights of several VAEs of the same shapes in one tensor a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models.objective import Objective
from ..models.vae import SMALLEST_SCALE, VAE, Posterior
from ..tables.encoding import Batch
from .likelihoods import StackedLikelihoods
from .surgery import StackedBlocks

# Each layer of the stack, and the model's layers that it holds one below the other.
ENCODER = ("encoder.0", "encoder.2", "encoder.4")
TRUNK = ("trunk.0", "trunk.2", "trunk.4")
LAYERS = {name: (name,) for name in ("normalise", *ENCODER, *TRUNK, "heads")} | {"posterior": ("to_loc", "to_scale")}
STATISTICS = ("normalise.running_mean", "normalise.running_var")

# Fills a tensor with noise; and noise of a shape (S, ...) in which each seed's part comes from its generator.
Fill: TypeAlias = Callable[..., Tensor]
Draw: TypeAlias = Callable[[Fill, tuple[int, ...]], Tensor]


class Stack(ABC):
    """Trains S models at once: what each would do alone, up to rounding.

    The stack has weights of its own, which start as the models'; :meth:`copy_to_models` writes them back.

    Args:
        models: The models, all of the same shapes and in training mode.
        likelihoods: Theirs.
    """

    weights: dict[str, nn.Parameter]
    """By name, each ``(S, ...)``."""
    statistics: dict[str, Tensor]
    """What the layers keep beside them, by name, each ``(S, ...)``."""
    surgery: list[StackedBlocks]
    """All impartiality blocks."""

    @abstractmethod
    def __init__(self, models: Sequence[Any], likelihoods: StackedLikelihoods) -> None: ...

    @abstractmethod
    def objective(self, batch: Batch, draw: Draw, epoch: int) -> Objective:
        """The terms of one step of each model, ``(S, D)`` and ``(S,)``; see :meth:`LatentModel.objective`.

        Args:
            batch: Rows of each model, with a leading dimension S; the columns in the order of ``likelihoods``, in
                which the losses are too.
            draw: Gives the noise that each model would draw.
            epoch: How many passes over the training rows came before.
        """

    def phase(self, epoch: int) -> float:
        """Equal for epochs whose steps differ in nothing but rows and noise."""
        return epoch

    @abstractmethod
    def copy_to_models(self) -> None:
        """Gives the models the weights, BatchNorm's statistics and what their methods have learnt."""


class StackedVAE(Stack):
    """The rows of the heads' weights are in the order of the groups of ``likelihoods``."""

    def __init__(self, models: Sequence[VAE], likelihoods: StackedLikelihoods) -> None:
        self.models = list(models)
        self.likelihoods = likelihoods
        self.blocks = self._blocks("block")
        self.surgery = [self.blocks]
        self._rows = torch.tensor(likelihoods.rows)
        self.weights = {
            f"{layer}.{kind}": nn.Parameter(self._stack(f"{layer}.{kind}", [f"{name}.{kind}" for name in names]))
            for layer, names in LAYERS.items()
            for kind in ("weight", "bias")
        }
        self.statistics = {name: self._stack(name, [name]) for name in STATISTICS}
        self._steps = torch.zeros((), dtype=torch.int64, device=self.statistics[STATISTICS[0]].device)

    def phase(self, epoch: int) -> float:
        return 0.0

    def _stack(self, name: str, parts: Sequence[str]) -> Tensor:
        states = [model.state_dict() for model in self.models]
        stacked = torch.stack([torch.cat([state[part] for part in parts]) for state in states])
        return stacked[:, self._rows] if name.startswith("heads.") else stacked

    @torch.no_grad()
    def copy_to_models(self) -> None:
        for blocks in self.surgery:
            blocks.hand_back()
        for index, model in enumerate(self.models):
            state = model.state_dict()
            for layer, names in LAYERS.items():
                for kind in ("weight", "bias"):
                    rows = self.weights[f"{layer}.{kind}"][index]
                    if layer == "heads":
                        state[f"heads.{kind}"][self._rows] = rows
                        continue
                    for name, part in zip(names, rows.chunk(len(names)), strict=True):
                        state[f"{name}.{kind}"].copy_(part)
            for name, value in self.statistics.items():
                state[name].copy_(value[index])
            state["normalise.num_batches_tracked"].add_(self._steps)
        self._steps.zero_()

    def _blocks(self, name: str) -> StackedBlocks:
        """The models' blocks of that name, in front of the heads."""
        widths = [likelihood.num_parameters for likelihood in self.models[0].likelihoods]
        return StackedBlocks([getattr(model, name) for model in self.models], widths, self.likelihoods.rows)

    def objective(self, batch: Batch, draw: Draw, epoch: int) -> Objective:
        loc, scale = self.encode(batch.features, draw)
        outputs = self.decode(loc + scale * draw(Tensor.normal_, tuple(loc.shape)))
        losses = self.likelihoods.losses(outputs, batch.scaled, batch.observed)
        return Objective(losses, (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum(2).mean(1))

    def encode(self, features: Tensor, draw: Draw) -> Posterior:
        """The posteriors ``(S, N, L)``, from the rows ``(S, N, F)``."""
        share = self.models[0].dropout
        kept = features * (draw(Tensor.uniform_, tuple(features.shape)) >= share) / (1 - share)
        hidden = self._normalise(kept)
        for layer in ENCODER:
            hidden = torch.tanh(linear(self.weights, layer, hidden))
        loc, raw = linear(self.weights, "posterior", hidden).chunk(2, -1)
        return Posterior(loc, functional.softplus(raw) + SMALLEST_SCALE)

    def decode(self, z: Tensor) -> Tensor:
        """The outputs of all heads, ``(S, N, rows)``, from latent values ``(S, N, L)``."""
        return decode(z, self.weights, self.blocks)

    def _normalise(self, inputs: Tensor) -> Tensor:
        """BatchNorm of each model by its own batch, as one over all models' features."""
        seeds, rows, width = inputs.shape
        layer = self.models[0].normalise
        mean, variance = (self.statistics[name].view(-1) for name in STATISTICS)
        weight, bias = (self.weights[f"normalise.{kind}"].view(-1) for kind in ("weight", "bias"))
        side_by_side = inputs.transpose(0, 1).reshape(rows, seeds * width)
        momentum = 0.1 if layer.momentum is None else layer.momentum
        normal = functional.batch_norm(side_by_side, mean, variance, weight, bias, True, momentum, layer.eps)
        self._steps += 1
        return normal.view(rows, seeds, width).transpose(0, 1)


def decode(z: Tensor, weights: Mapping[str, Tensor], blocks: StackedBlocks) -> Tensor:
    """The outputs of all heads, ``(S, N, rows)``, by these weights and with these blocks."""
    hidden = z
    for layer in TRUNK:
        hidden = torch.relu(linear(weights, layer, hidden))
    return blocks.heads(hidden, weights["heads.weight"], weights["heads.bias"])


def linear(weights: Mapping[str, Tensor], layer: str, inputs: Tensor) -> Tensor:
    """A linear layer of each model: ``(S, N, in)`` to ``(S, N, out)``."""
    return torch.baddbmm(weights[f"{layer}.bias"].unsqueeze(1), inputs, weights[f"{layer}.weight"].mT)
