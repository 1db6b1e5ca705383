"""Exponential averages of what surgeries did, each over the steps in which there was something to average."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..history.pairs import compared
from ..history.stretch import WHOLE, Stretch
from ..similarity import norms

AXES = {  # what each dimension counts: groups, losses, or rows of weights
    "losses": "k",
    "weights": "rk",
    "norms": "bk",
    "cosines": "bkk",
    "log_ratios": "bkk",
    "similarities": "bkk",
    "conflicts": "bkk",
}


class Averages:
    r"""Exponentially averaged losses, weights, norms and cosines, debiased.

    .. math:: \bar{x} = \sum_t \gamma^{a_t} x_t \Big/ \sum_t \gamma^{a_t}

    Here a is how many recorded steps ago a number was there, counting only those in which it was: a pair's cosine is
    averaged over the steps in which both losses were present and their gradients neither zero nor overflown, and NaN
    until the first of them. A pair that is seldom there keeps its average in between.

    Args:
        decay: The weight of a step relative to the next, in [0, 1). 0: the last one alone.

    Example:
        >>> averages = Averages(0.5)
        >>> averages.names, averages.cosines.shape
        ((), torch.Size([1, 0, 0]))
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.names: tuple[str, ...] = ()
        self._groups: tuple[str, ...] = ()
        self._sums: dict[str, Tensor] = {}
        self._masses: dict[str, Tensor] = {}

    @property
    def groups(self) -> tuple[str, ...]:
        """What the first dimension of norms and cosines counts: ``("all",)``, layers, tensors or blocks."""
        return self._groups or (WHOLE,)

    @property
    def losses(self) -> Tensor:
        """``(K,)``; NaN for blocks."""
        return self._mean("losses")

    @property
    def weights(self) -> Tensor | None:
        """``(K,)``, or with one row a group ``(Bw, K)``; None where there were none."""
        means = self._mean("weights")
        if not len(means):
            return None
        return means[0] if len(means) == 1 else means

    @property
    def norms(self) -> Tensor:
        """The lengths of the gradients, ``(B, K)``."""
        return self._mean("norms")

    @property
    def cosines(self) -> Tensor:
        """``(B, K, K)``."""
        return self._mean("cosines")

    @property
    def magnitude_ratios(self) -> Tensor:
        """How many times as long as gradient j gradient i is, a geometric mean, ``(B, K, K)``."""
        return self._mean("log_ratios").exp()

    @property
    def magnitude_similarities(self) -> Tensor:
        """``(B, K, K)``: 1 for equal lengths."""
        return self._mean("similarities")

    @property
    def conflicts(self) -> Tensor:
        """How often each pair conflicts, ``(B, K, K)``, 0 to 1."""
        return self._mean("conflicts")

    @property
    def conflicting_share(self) -> Tensor:
        """How many of the pairs conflict, ``(B,)``, 0 to 1, over those that were compared."""
        count = len(self.names)
        first, second = torch.triu_indices(count, count, offset=1)
        return self.conflicts[:, first, second].nanmean(-1)

    def update(self, part: Stretch) -> None:
        """Takes in more steps, in order."""
        found = _numbers(part)
        names = tuple(dict.fromkeys(self.names + part.names))
        groups = tuple(dict.fromkeys(self._groups + part.groups))
        rows = len(groups) if part.weights_by_group else part.weights.shape[1]
        self._make_room(names, groups, rows)
        self.steps += len(part.steps)
        flat = torch.cat([values.flatten(1) for values in found.values()], dim=1)  # seven small sums at once
        there = flat.isfinite().double()
        later = there.flip(0).cumsum(0).flip(0) - there  # steps after this one in which it was there, too
        factors = there * self.decay**later
        news = (self.decay ** there.sum(0), (factors * flat.nan_to_num(0.0, 0.0, 0.0)).sum(0), factors.sum(0))
        sizes = [values[0].numel() for values in found.values()]
        for key, *parts in zip(found, *(each.split(sizes) for each in news), strict=True):
            fading, sums, masses = (each.view(found[key].shape[1:]) for each in parts)
            own = self._place(key, part)
            self._sums[key][own] = fading * self._sums[key][own] + sums
            self._masses[key][own] = fading * self._masses[key][own] + masses

    def _place(self, key: str, part: Stretch) -> tuple[Any, ...]:
        """Where a stretch's numbers belong among all."""
        if (part.names, part.groups) == (self.names, self._groups):
            return (...,) if key != "weights" else (slice(part.weights.shape[1]),)
        columns = torch.tensor([self.names.index(name) for name in part.names], dtype=torch.long)
        labels = torch.tensor([self._groups.index(group) for group in part.groups], dtype=torch.long)
        rows = labels if part.weights_by_group else torch.arange(part.weights.shape[1])
        lines = {"k": columns, "b": labels, "r": rows}
        chosen = [lines[axis] for axis in AXES[key]]
        return torch.meshgrid(*chosen, indexing="ij")

    def _make_room(self, names: tuple[str, ...], groups: tuple[str, ...], rows: int) -> None:
        """Zeros for what is seen for the first time; names and groups are only ever appended."""
        known = self._sums.get("weights")
        rows = max(rows, 0 if known is None else len(known))
        self.names, self._groups = names, groups
        size = {"k": len(names), "b": len(groups), "r": rows}
        for key, axes in AXES.items():
            shape = [size[axis] for axis in axes]
            for kept in (self._sums, self._masses):
                old, new = kept.get(key), torch.zeros(shape, dtype=torch.float64)
                if old is not None and old.shape == new.shape:
                    continue
                if old is not None:
                    new[tuple(slice(length) for length in old.shape)] = old
                kept[key] = new

    def _mean(self, key: str) -> Tensor:
        if key not in self._sums:
            sizes = {"k": 0, "b": 1, "r": 0}
            return torch.zeros([sizes[axis] for axis in AXES[key]], dtype=torch.float64)
        masses = self._masses[key]
        means = self._sums[key] / torch.where(masses > 0, masses, torch.nan)
        if "b" in AXES[key] and not self._groups:
            return torch.full((1, *means.shape[1:]), torch.nan, dtype=torch.float64)
        return means

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on."""
        return {
            "decay": self.decay,
            "steps": self.steps,
            "names": list(self.names),
            "groups": list(self._groups),
            "sums": {key: value.clone() for key, value in self._sums.items()},
            "masses": {key: value.clone() for key, value in self._masses.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there, with the decay that was given here."""
        self.steps = int(state["steps"])
        self.names, self._groups = tuple(state["names"]), tuple(state["groups"])
        self._sums = {key: value.clone() for key, value in state["sums"].items()}
        self._masses = {key: value.clone() for key, value in state["masses"].items()}


def _numbers(part: Stretch) -> dict[str, Tensor]:
    """What is averaged, by step; NaN or infinite where it was not there."""
    pairs = compared(part.gramians)
    return {
        "losses": part.losses,
        "weights": part.weights,
        "norms": norms(part.gramians),
        "cosines": pairs.cosines,
        "log_ratios": pairs.ratios.log(),
        "similarities": pairs.similarities,
        "conflicts": pairs.conflicts,
    }


__all__ = ["Averages"]
