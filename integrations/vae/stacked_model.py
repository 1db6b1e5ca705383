"""The weights of several VAEs of the same shapes in one tensor a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .model import SMALLEST_SCALE, VAE, Posterior
from .stacked_likelihoods import StackedLikelihoods
from .stacked_surgery import StackedBlocks

# Each layer of the stack, and the model's layers that it holds one below the other.
ENCODER = ("encoder.0", "encoder.2", "encoder.4")
TRUNK = ("trunk.0", "trunk.2", "trunk.4")
LAYERS = {name: (name,) for name in ("normalise", *ENCODER, *TRUNK, "heads")} | {"posterior": ("to_loc", "to_scale")}
STATISTICS = ("normalise.running_mean", "normalise.running_var")


class StackedVAE:
    """Trains S models at once: what each would do alone, up to rounding.

    The stack has weights of its own, which start as the models'; :meth:`copy_to_models` writes them back. The rows
    of the heads' weights are in the order of the groups of ``likelihoods``.

    Args:
        models: The models, all of the same shapes and in training mode.
        likelihoods: Theirs.
    """

    def __init__(self, models: Sequence[VAE], likelihoods: StackedLikelihoods) -> None:
        self.models = list(models)
        self.likelihoods = likelihoods
        widths = [likelihood.num_parameters for likelihood in models[0].likelihoods]
        self.blocks = StackedBlocks([model.block for model in models], widths, likelihoods.rows)
        self._rows = torch.tensor(likelihoods.rows)
        self.weights = {
            f"{layer}.{kind}": nn.Parameter(self._stack(f"{layer}.{kind}", [f"{name}.{kind}" for name in names]))
            for layer, names in LAYERS.items()
            for kind in ("weight", "bias")
        }
        self.statistics = {name: self._stack(name, [name]) for name in STATISTICS}
        self.steps = 0

    def _stack(self, name: str, parts: Sequence[str]) -> Tensor:
        states = [model.state_dict() for model in self.models]
        stacked = torch.stack([torch.cat([state[part] for part in parts]) for state in states])
        return stacked[:, self._rows] if name.startswith("heads.") else stacked

    @torch.no_grad()
    def copy_to_models(self) -> None:
        """Gives the models the weights, BatchNorm's statistics and what their methods have learnt."""
        self.blocks.hand_back()
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
            state["normalise.num_batches_tracked"].add_(self.steps)
        self.steps = 0

    def encode(self, features: Tensor, uniform: Tensor) -> Posterior:
        """The posteriors, from the rows ``(S, N, F)`` and uniform noise of that shape for the dropout."""
        share = self.models[0].dropout
        kept = features * (uniform >= share) / (1 - share)
        hidden = self._normalise(kept)
        for layer in ENCODER:
            hidden = torch.tanh(self._linear(layer, hidden))
        loc, raw = self._linear("posterior", hidden).chunk(2, -1)
        return Posterior(loc, functional.softplus(raw) + SMALLEST_SCALE)

    def decode(self, z: Tensor) -> Tensor:
        """The outputs of all heads, ``(S, N, rows)``, from latent values ``(S, N, L)``."""
        hidden = z
        for layer in TRUNK:
            hidden = torch.relu(self._linear(layer, hidden))
        return self.blocks.heads(hidden, self.weights["heads.weight"], self.weights["heads.bias"])

    def _linear(self, layer: str, inputs: Tensor) -> Tensor:
        return torch.baddbmm(self.weights[f"{layer}.bias"].unsqueeze(1), inputs, self.weights[f"{layer}.weight"].mT)

    def _normalise(self, inputs: Tensor) -> Tensor:
        """BatchNorm of each model by its own batch, as one over all models' features."""
        seeds, rows, width = inputs.shape
        layer = self.models[0].normalise
        mean, variance = (self.statistics[name].view(-1) for name in STATISTICS)
        weight, bias = (self.weights[f"normalise.{kind}"].view(-1) for kind in ("weight", "bias"))
        side_by_side = inputs.transpose(0, 1).reshape(rows, seeds * width)
        momentum = 0.1 if layer.momentum is None else layer.momentum
        normal = functional.batch_norm(side_by_side, mean, variance, weight, bias, True, momentum, layer.eps)
        self.steps += 1
        return normal.view(rows, seeds, width).transpose(0, 1)
