"""All that a training of several seeds would have to know to go on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..models.latent_model import LatentModel
from ..training.best_epoch import BestEpoch
from .loop import StackedLoop


class StackedState:
    """Between two epochs: the state of a training, and a training brought to a state.

    Args:
        loop: Takes the steps.
        models: The models of the seeds.
        bests: Their histories and best epochs.
    """

    def __init__(self, loop: StackedLoop, models: Sequence[LatentModel], bests: Sequence[BestEpoch]) -> None:
        self.loop, self.models, self.bests = loop, list(models), list(bests)

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return self.loop.epoch

    def state_dict(self) -> dict[str, Any]:
        """A copy, of tensors and plain Python objects alone."""
        stack = self.loop.stack
        state = {
            "epoch": self.loop.epoch,
            "weights": {name: weight.detach() for name, weight in stack.weights.items()},
            "statistics": stack.statistics,
            "learnt": [blocks.learnt for blocks in stack.surgery],
            "optimizer": self.loop.optimizer.state_dict(),
            "generators": [generator.get_state() for generator in self.loop.generators],
            "models": [_beside_weights(model) for model in self.models],
            "bests": [best.state_dict() for best in self.bests],
        }
        return copy.deepcopy(state)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Brings a training with the same settings to that state."""
        stack = self.loop.stack
        self.loop.epoch = state["epoch"]
        for name, weight in stack.weights.items():
            weight.copy_(state["weights"][name])
        for name, value in stack.statistics.items():
            value.copy_(state["statistics"][name])
        for blocks, learnt in zip(stack.surgery, state["learnt"], strict=True):
            blocks.load_learnt(learnt)
        self.loop.optimizer.load_state_dict(state["optimizer"])
        for generator, own in zip(self.loop.generators, state["generators"], strict=True):
            generator.set_state(own)
        for model, own in zip(self.models, state["models"], strict=True):
            model.load_state_dict({**model.state_dict(), **own})
        for best, own in zip(self.bests, state["bests"], strict=True):
            best.load_state_dict(own)
        if self.loop.captured is not None:
            self.loop.captured.forget()


def _beside_weights(model: nn.Module) -> dict[str, Any]:
    """What a model holds that its stack does not: what its own methods have learnt, counters."""
    weights = {name for name, _ in model.named_parameters()}
    return {name: value for name, value in model.state_dict().items() if name not in weights}
