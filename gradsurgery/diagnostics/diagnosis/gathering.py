"""Inner products of the gradients of several batches, by group of parameters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...scope import Scope
from .gradients import BatchRows, RowsByBatch
from .noise import BatchProducts


@dataclass(frozen=True)
class Gathered:
    """What all batches together say.

    Args:
        names: The K losses, by first appearance.
        groups: The B groups of shared parameters; ``"all"`` where there is one scope for all.
        sizes: How many numbers each group has.
        products: Inner products of the gradients.
        losses: ``(n, K)``, NaN where absent or left out.
        non_finite: By loss, in how many batches it or its gradient was not finite, and was left out.
        numbers: Which batches have any loss.
        parameters: The names of the shared parameters.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    products: BatchProducts
    losses: Tensor
    non_finite: dict[str, int]
    numbers: tuple[int, ...]
    parameters: tuple[str, ...]


@dataclass
class _Seen:
    """What is kept of one batch: its losses, and products ``(k, k)`` and ``(K, k)`` by parameter."""

    names: tuple[str, ...]
    values: Tensor
    finite: Tensor
    within: dict[str, Tensor] = field(default_factory=dict)
    across: dict[str, Tensor] = field(default_factory=dict)


def gather(source: RowsByBatch, scope: Scope) -> Gathered:
    """Goes through all batches twice: for sums and the products within them, then for the products across.

    Raises:
        ValueError: A loss is never finite, or never has a graph.
    """
    seen: dict[int, _Seen] = {}
    sums: dict[str, dict[str, Tensor]] = {}  # by parameter and loss
    for number in range(len(source.batches)):
        batch = source[number]
        if batch is not None:
            seen[number] = _Seen(batch.names, batch.values, batch.finite)
            _add(batch, seen[number], sums)
    for number, record in seen.items():  # what a later batch showed to be shared counts in earlier ones too
        if len(record.within) < len(sums):
            source.forget(number)
            _add(_again(source, number), record, sums)
    source.check()
    names = tuple(dict.fromkeys(name for record in seen.values() for name in record.names))
    _refuse_never_finite(names, seen.values())
    whole = {parameter: _stacked(sums.pop(parameter), names) for parameter in list(sums)}
    for number, record in seen.items():
        for parameter, own in _again(source, number).rows.items():
            record.across[parameter] = _inner(whole[parameter], own)
    return _assembled(source, scope, names, seen, {key: own[0].numel() for key, own in whole.items()})


def _add(batch: BatchRows, record: _Seen, sums: dict[str, dict[str, Tensor]]) -> None:
    """Adds the rows of the parameters that the record does not have yet."""
    for parameter, own in batch.rows.items():
        if parameter in record.within:
            continue
        record.within[parameter] = _inner(own, own)
        by_loss = sums.setdefault(parameter, {})
        for name, row in zip(batch.names, own, strict=True):
            if name in by_loss:
                by_loss[name] += row
            else:
                by_loss[name] = row.to(torch.promote_types(row.dtype, torch.float32), copy=True)


def _again(source: RowsByBatch, number: int) -> BatchRows:
    found = source[number]
    if found is None:
        raise RuntimeError(
            f"diagnose: `losses` must return the same losses each time it is called on a batch with the same random "
            f"state, got none at the second time on batch {number}."
        )
    return found


def _stacked(by_loss: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """``(K, *shape)``, zero for losses that do not have this parameter."""
    some = next(iter(by_loss.values()))
    return torch.stack([by_loss.get(name, torch.zeros_like(some)) for name in names])


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Inner products of rows, ``(k, l)``, float64."""
    first, second = first.flatten(1), second.flatten(1)
    products = torch.zeros(len(first), len(second), dtype=torch.float64, device=first.device)
    # In float64 a chunk fits a processor's cache, where all columns are several times slower.
    width = 1 << 14 if first.is_cpu else 1 << 22
    for one, other in zip(first.split(width, 1), second.split(width, 1), strict=True):
        products += one.double() @ other.double().mT
    return products.cpu()


def _assembled(
    source: RowsByBatch, scope: Scope, names: tuple[str, ...], seen: dict[int, _Seen], numel: dict[str, int]
) -> Gathered:
    order = [name for name, _ in source.model.named_parameters() if name in numel]
    indices, labels = source.look.groups(order, scope) if order else ([], ())
    labels = labels or (("all",) if order else ())
    group, place = dict(zip(order, indices, strict=True)), {name: k for k, name in enumerate(names)}
    shape = (len(seen), len(labels), len(names), len(names))
    within, across = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    present = torch.zeros(len(seen), len(names), dtype=torch.bool)
    values = torch.full((len(seen), len(names)), torch.nan, dtype=torch.float64)
    for position, record in enumerate(seen.values()):
        at = torch.tensor([place[name] for name in record.names])
        present[position, at] = record.finite
        values[position, at] = torch.where(record.finite, record.values, torch.nan)
        for parameter, products in record.within.items():
            within[position, group[parameter]][at.unsqueeze(1), at] += products
        for parameter, products in record.across.items():
            across[position, group[parameter]][:, at] += products
    sizes = [0] * len(labels)
    for parameter, count in numel.items():
        sizes[group[parameter]] += count
    bad = {name: sum(not _finite(record, name) for record in seen.values()) for name in names}
    non_finite = {name: count for name, count in bad.items() if count}
    return Gathered(
        names=names,
        groups=tuple(label or type(source.model).__name__ for label in labels),
        sizes=tuple(sizes),
        products=BatchProducts(within, across, present),
        losses=values,
        non_finite=non_finite,
        numbers=tuple(seen),
        parameters=tuple(order),
    )


def _finite(record: _Seen, name: str) -> bool:
    """Whether a loss is finite on a batch, or absent there."""
    return name not in record.names or bool(record.finite[record.names.index(name)])


def _refuse_never_finite(names: tuple[str, ...], seen: Iterable[_Seen]) -> None:
    records = list(seen)
    never = [name for name in names if not any(name in record.names and _finite(record, name) for record in records)]
    if never:
        raise ValueError(
            f"diagnose: `losses` must be finite in at least one batch, got {never} that never are, or whose "
            f"gradients never are. Look for a logarithm or a division of zero."
        )


__all__ = ["Gathered", "gather"]
