"""The history of a training run and the weights of its best epoch, in memory."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows: mean loss a row (scaled units, KL included), validation error."""

    loss: float
    validation_error: float


class BestEpoch:
    """Remembers every epoch's figures and a copy of the weights of the best one.

    Example:
        >>> import torch
        >>> layer, best = torch.nn.Linear(1, 1), BestEpoch()
        >>> for weight, error in enumerate([0.3, 0.1, 0.2]):
        ...     _ = torch.nn.init.constant_(layer.weight, weight)
        ...     best.record(layer, Epoch(loss=0.0, validation_error=error))
        >>> best.restore(layer)
        >>> best.index, layer.weight.item()
        (1, 1.0)
    """

    def __init__(self) -> None:
        self.history: list[Epoch] = []
        self.index = 0
        self._state: dict[str, Any] = {}

    def record(self, model: nn.Module, epoch: Epoch) -> None:
        """Adds an epoch; copies the model's state if it has the smallest error so far, any number before NaN."""
        self.history.append(epoch)
        new, best = epoch.validation_error, self.history[self.index].validation_error
        if not self._state or new < best or (math.isnan(best) and not math.isnan(new)):
            self.index = len(self.history) - 1
            self._state = copy.deepcopy(model.state_dict())

    def restore(self, model: nn.Module) -> None:
        """Gives the model the weights of the best epoch."""
        model.load_state_dict(self._state)

    def state_dict(self) -> dict[str, Any]:
        """History, best epoch and its weights, as tensors and plain Python objects."""
        history = [(epoch.loss, epoch.validation_error) for epoch in self.history]
        return {"history": history, "index": self.index, "state": self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave."""
        self.history = [Epoch(*epoch) for epoch in state["history"]]
        self.index, self._state = state["index"], state["state"]
