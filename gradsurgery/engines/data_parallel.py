"""Data parallel: per-loss gradients of each rank's items become those of all items, spread over the ranks.

Each rank sends row pieces to the ranks that own them, ``(N-1)/N (K P_shared + P_task)`` numbers, and its piece of the
result to all, ``(N-1)/N (P_shared + P_task)``.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from .. import kernels
from ..distributed import Agreement, Place, Ranks
from ..sharing import describe
from .lots import Entry, Lot
from .per_loss import Block, Groups, Jacobian, PerLossGradients
from .spread import Spread

_BLOCK = 1 << 16
"""So many columns are added up at once, few enough to stay in the cache."""

_Sided: TypeAlias = list[tuple[Tensor, bool]]
"""Parameters, and whether their gradients are sparse."""


class Scattered(Spread):
    """Per-loss gradients of all items, of which each rank has an equal part of the columns."""

    def __init__(self, lots: list[Lot], rows: list[Tensor], ranks: Ranks) -> None:
        blocks, places = [], []
        for lot, own in zip(lots, rows, strict=True):
            for position, entry in enumerate(lot.entries):
                blocks.append(Block([entry.parameter], own[:, lot.within(position)]))
                places.append(Place((entry.numel,), (lot.own(position),)))
        super().__init__(blocks, places, ranks)
        self._lots = lots
        self._rows = rows

    def gramian(self, groups: Groups) -> Tensor:
        if groups is not None:
            return super().gramian(groups)
        gramians = [kernels.gramian([own]).to(self._rows[0].device) for own in self._rows]
        return self.ranks.total(torch.stack(gramians).sum(0))

    def combine(self, weights: Tensor, groups: Groups) -> list[tuple[Tensor, Tensor]]:
        if groups is not None:
            return super().combine(weights, groups)
        pieces = [kernels.combine([own], weights, [0])[0] for own in self._rows]
        return [pair for lot, piece in zip(self._lots, pieces, strict=True) for pair in lot.gradients(piece)]

    def assemble(self, parts: list[Block], directions: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        given = {part.parameters[0]: direction for part, direction in zip(parts, directions, strict=True)}
        result = []
        for lot in self._lots:
            piece = lot.entries[0].parameter.new_zeros(lot.piece)
            for position, entry in enumerate(lot.entries):
                piece[lot.within(position)] = given[entry.parameter].to(piece)
            result += lot.gradients(piece)
        return result


def all_items(
    found: PerLossGradients, agreement: Agreement, wrapped: list[Tensor], names: dict[int, str], *, whole: bool
) -> PerLossGradients:
    """Adds up over the ranks what each has found, weighted as agreed.

    Args:
        found: Per-loss gradients of the losses of this rank's items, each multiplied by its weight.
        agreement: Has been reached.
        wrapped: The parameters of the optimizer, in the same order on all ranks.
        names: Names of parameters, by id, for errors.
        whole: Whether each rank is to have all columns, not its part of them.

    Raises:
        RuntimeError: A parameter is none of the optimizer's.
    """
    ranks, presence = agreement.ranks, agreement.reached()
    places = torch.tensor([presence.names.index(name) for name in found.names], dtype=torch.long)
    lots, rows, totals = _everywhere(found.jacobian().parts(), found.plain, places, agreement, wrapped, names)
    jacobian = Jacobian(_blocks(lots, rows)) if whole or not lots else Scattered(lots, rows, ranks)
    own_values = found.values.to(wrapped[0].device)  # a rank without losses knows of no other device
    values = presence.averaged(found.names, own_values, ranks)
    how = f"{found.engine}, rows added up over {ranks.size} ranks"
    return PerLossGradients(presence.names, found.all_names, values, jacobian, totals, how)


def sums_of_all_items(
    plain: list[tuple[Tensor, Tensor]], agreement: Agreement, wrapped: list[Tensor], names: dict[int, str]
) -> list[tuple[Tensor, Tensor]]:
    """Adds up over the ranks gradients that are no rows; the arguments are those of :func:`all_items`."""
    return _everywhere([], plain, torch.empty(0, dtype=torch.long), agreement, wrapped, names)[2]


def _everywhere(
    parts: Iterable[Block],
    sums: Iterable[tuple[Tensor, Tensor]],
    places: Tensor,
    agreement: Agreement,
    wrapped: list[Tensor],
    names: dict[int, str],
) -> tuple[list[Lot], list[Tensor], list[tuple[Tensor, Tensor]]]:
    """This rank's columns of all rows, lot by lot, and the plain sums, each of the items of all ranks."""
    ranks, count = agreement.ranks, len(agreement.reached().names)
    shared = {part.parameters[0]: part for part in parts}
    plain = dict(sums)
    pairs = _layout(shared, plain, wrapped, names, agreement)
    entries, others = (
        [_entry(parameter, sparse, shared, plain, ranks) for parameter, sparse in own] for own in pairs
    )
    lots, rows, totals = [], [], []
    for kind in _kinds([*entries, *others]):
        lot = Lot([entry for entry in entries if _kind(entry) == kind], ranks)
        rest = Lot([entry for entry in others if _kind(entry) == kind], ranks)
        own, total = _added_up(
            lot, rest, count, ranks.exchanged(_outgoing(lot, rest, shared, plain, places, count, kind))
        )
        if lot.entries:
            lots.append(lot)
            rows.append(own)
        totals += rest.gradients(total) if rest.entries else []
    return lots, rows, totals


def _layout(
    shared: dict[Tensor, Block],
    plain: dict[Tensor, Tensor],
    wrapped: list[Tensor],
    names: dict[int, str],
    agreement: Agreement,
) -> tuple[_Sided, _Sided]:
    """The parameters that any rank has gradients of, shared and not, and whether they are sparse on all of these."""
    positions = {parameter: position for position, parameter in enumerate(wrapped)}
    for parameter in [*shared, *plain]:
        if parameter not in positions:
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `losses` must reach only parameters of the optimizer when there are "
                f"several ranks, got {describe(parameter, names)}. Hand it to the optimizer, or detach it."
            )
    everybody = agreement.layouts(
        (
            sorted((positions[parameter], part.indices is not None) for parameter, part in shared.items()),
            sorted((positions[parameter], gradient.is_sparse) for parameter, gradient in plain.items()),
        )
    )
    result = []
    for side in range(2):
        merged: dict[int, bool] = {}
        for each in everybody:
            for position, sparse in each[side]:
                merged[position] = merged.get(position, True) and sparse
        result.append([(wrapped[position], sparse) for position, sparse in sorted(merged.items())])
    return result[0], result[1]


def _entry(
    parameter: Tensor, sparse: bool, shared: dict[Tensor, Block], plain: dict[Tensor, Tensor], ranks: Ranks
) -> Entry:
    if not sparse:
        return Entry(parameter, None)
    touched = torch.empty(0, dtype=torch.long, device=parameter.device)
    known = shared[parameter].indices if parameter in shared else None
    if known is not None:
        touched = known
    elif parameter in plain:
        plain[parameter] = plain[parameter].coalesce()
        touched = plain[parameter].indices()[0]
    lengths = ranks.gathered(torch.tensor(len(touched))).tolist()
    padded = touched.new_zeros(max(lengths))
    padded[: len(touched)] = touched
    rows = [own[:length] for own, length in zip(ranks.gathered(padded), lengths, strict=True)]
    return Entry(parameter, torch.cat(rows).unique())


def _outgoing(
    lot: Lot,
    rest: Lot,
    shared: dict[Tensor, Block],
    plain: dict[Tensor, Tensor],
    places: Tensor,
    count: int,
    kind: tuple[torch.dtype, torch.device],
) -> Tensor:
    """For each rank its part of this one's rows ``(K, piece)`` and of its plain sums ``(piece,)``, side by side."""
    dtype, device = kind
    width = count * lot.piece
    outgoing = torch.zeros(lot.ranks.size, width + rest.piece, dtype=dtype, device=device)
    rows = outgoing[:, :width].view(lot.ranks.size, count, lot.piece)
    complete = len(places) == count
    for position, entry in enumerate(lot.entries):
        if entry.parameter in shared:
            values = _columns(shared[entry.parameter], entry)
            if not complete:
                values = values.new_zeros(count, values.shape[1]).index_copy_(0, places.to(device), values)
            lot.scatter(rows, position, values)
    for position, entry in enumerate(rest.entries):
        if entry.parameter in plain:
            rest.scatter(outgoing[:, width:], position, _flat(plain[entry.parameter], entry))
    return outgoing


def _added_up(lot: Lot, rest: Lot, count: int, received: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's part of the rows ``(K, piece)`` and of the plain sums ``(piece,)`` of all ranks."""
    total = received.new_empty(received.shape[1], dtype=torch.promote_types(received.dtype, torch.float32))
    for start in range(0, len(total), _BLOCK):  # float64 copies of all would be four times what is received
        total[start : start + _BLOCK] = received[:, start : start + _BLOCK].sum(0, dtype=torch.float64)
    rows, plain = total.split([count * lot.piece, rest.piece])
    return rows.view(count, lot.piece), plain.to(received.dtype)


def _columns(part: Block, entry: Entry) -> Tensor:
    """Rows ``(K, numel)`` of an entry."""
    if part.indices is None or entry.indices is None:
        return part.dense().reshape(len(part.rows), -1)
    rows = part.rows.view(len(part.rows), len(part.indices), entry.parameter[:1].numel())
    full = rows.new_zeros(len(rows), len(entry.indices), rows.shape[2])
    return full.index_copy_(1, torch.searchsorted(entry.indices, part.indices), rows).flatten(1)


def _flat(gradient: Tensor, entry: Entry) -> Tensor:
    """A gradient as the ``(numel,)`` of an entry."""
    if entry.indices is None:
        return (gradient.to_dense() if gradient.is_sparse else gradient).reshape(-1)
    values = gradient.values().flatten(1)
    full = values.new_zeros(len(entry.indices), values.shape[1])
    return full.index_copy_(0, torch.searchsorted(entry.indices, gradient.indices()[0]), values).flatten()


def _blocks(lots: list[Lot], rows: list[Tensor]) -> list[Block]:
    """All columns on each rank."""
    result = []
    for lot, own in zip(lots, rows, strict=True):
        for entry, whole in zip(lot.entries, lot.gathered(own.to(_kind(lot.entries[0])[0])), strict=True):
            result.append(Block([entry.parameter], whole, entry.indices))
    return result


def _kind(entry: Entry) -> tuple[torch.dtype, torch.device]:
    return entry.parameter.dtype, entry.parameter.device


def _kinds(entries: Iterable[Entry]) -> list[tuple[torch.dtype, torch.device]]:
    return list(dict.fromkeys(_kind(entry) for entry in entries))


__all__ = ["Scattered", "all_items", "sums_of_all_items"]
