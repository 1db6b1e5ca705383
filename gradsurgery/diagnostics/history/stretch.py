"""Stretches of history: surgeries put in order, and stretches put one after the other."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...surgery import Surgery
from .history import History

WHOLE = "all"  # the group of a surgery over everything that is shared


class Stretch(NamedTuple):
    """Some steps of a history, with its arguments; R rows of weights, none where no step had any.

    Groups are those of the Gramians, none where no step had one.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    steps: Tensor  # (T,)
    losses: Tensor  # (T, K)
    gramians: Tensor  # (T, B, K, K)
    weights: Tensor  # (T, R, K)
    finite: Tensor  # (T,)

    @property
    def weights_by_group(self) -> bool:
        """Whether the rows of weights are those of the groups."""
        return self.weights.shape[1] == len(self.groups) and self.groups != (WHOLE,)

    @property
    def bytes(self) -> int:
        """How many it takes."""
        return 8 * (self.losses.numel() + self.gramians.numel() + self.weights.numel())

    def after(self, steps: int) -> "Stretch":
        """What comes after so many steps, in memory of its own."""
        tensors = (each[steps:].clone() for each in self[2:])
        return Stretch(self.names, self.groups, *tensors)

    def history(self) -> History:
        """As a history of its own; where nothing was shared, of one group."""
        gramians, weights = self.gramians, None
        if not self.groups:
            count = len(self.names)
            gramians = torch.full((len(self.steps), 1, count, count), torch.nan, dtype=torch.float64)
        if self.weights.shape[1]:
            weights = self.weights[:, 0] if self.weights.shape[1] == 1 else self.weights
        return History(self.names, self.groups or (WHOLE,), self.steps, self.losses, gramians, weights, self.finite)


def stretch_of(records: Sequence[tuple[int, Surgery]]) -> Stretch:
    """Puts surgeries in order, by step.

    Surgeries of one kind are stacked together: three copies from the device for each kind.
    """
    kinds: dict[tuple[object, ...], list[int]] = {}
    for position, (_, surgery) in enumerate(records):
        shape = None if surgery.weights is None else surgery.weights.shape
        kind = (surgery.names, surgery.groups, surgery.gramian is None, shape, surgery.losses.device)
        kinds.setdefault(kind, []).append(position)
    parts, places = [], []
    for where in kinds.values():
        parts.append(_alike([records[position] for position in where]))
        places += where
    whole = joined(parts)
    back = torch.tensor(places).argsort()
    return whole if len(parts) == 1 else Stretch(whole.names, whole.groups, *(each[back] for each in whole[2:]))


def joined(parts: Sequence[Stretch]) -> Stretch:
    """Stretches one after the other, with the names and groups of all; NaN where one did not have them."""
    if len(parts) == 1:
        return parts[0]
    names, groups = _union(part.names for part in parts), _union(part.groups for part in parts)
    rows = max((len(groups) if part.weights_by_group else part.weights.shape[1] for part in parts), default=0)
    wide = [_widened(part, names, groups, rows) for part in parts]
    if not wide:
        none = torch.zeros(0, dtype=torch.float64)
        return Stretch((), (), none.long(), none.view(0, 0), none.view(0, 0, 0, 0), none.view(0, 0, 0), none.bool())
    return Stretch(names, groups, *(torch.cat(each) for each in zip(*(part[2:] for part in wide), strict=True)))


def _alike(records: Sequence[tuple[int, Surgery]]) -> Stretch:
    """Surgeries with the same losses, groups and kinds of numbers."""
    steps, surgeries = torch.tensor([step for step, _ in records]), [surgery for _, surgery in records]
    first, count = surgeries[0], len(records)
    losses = _stacked([surgery.losses for surgery in surgeries])
    groups = () if first.gramian is None else first.groups or (WHOLE,)
    size = len(first.names)
    gramians = _stacked([surgery.gramian for surgery in surgeries if surgery.gramian is not None])
    gramians = gramians.reshape(count, len(groups), size, size)
    weights = _stacked([surgery.weights for surgery in surgeries if surgery.weights is not None])
    weights = weights.reshape(count, weights.numel() // (count * size) if size else 0, size)
    finite = gramians.isfinite().flatten(1).all(1)
    return Stretch(first.names, groups, steps, losses, gramians, weights, finite)


def _widened(part: Stretch, names: tuple[str, ...], groups: tuple[str, ...], rows: int) -> Stretch:
    """A stretch with room for other losses, groups and rows of weights."""
    if (part.names, part.groups, part.weights.shape[1]) == (names, groups, rows):
        return part
    columns = torch.tensor([names.index(name) for name in part.names], dtype=torch.long)
    labels = torch.tensor([groups.index(group) for group in part.groups], dtype=torch.long)
    steps, count = len(part.steps), len(names)
    losses = torch.full((steps, count), torch.nan, dtype=torch.float64)
    losses[:, columns] = part.losses
    gramians = torch.full((steps, len(groups), count, count), torch.nan, dtype=torch.float64)
    gramians[:, labels[:, None, None], columns[:, None], columns] = part.gramians
    weights = torch.full((steps, rows, count), torch.nan, dtype=torch.float64)
    own = part.weights.shape[1]
    if own:  # one row for all holds for each group
        lines = labels if part.weights_by_group else torch.arange(rows if own == 1 else own)
        weights[:, lines[:, None], columns] = part.weights
    return Stretch(names, groups, part.steps, losses, gramians, weights, part.finite)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).double().cpu() if tensors else torch.zeros(0, dtype=torch.float64)


def _union(several: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for each in several for name in each))


__all__ = ["WHOLE", "Stretch", "joined", "stretch_of"]
