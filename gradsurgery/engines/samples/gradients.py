"""What one use of a parameter gives for each sample: rows of deltas and inputs, or the gradients themselves."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..pieces import total
from ..products import Product
from ..uses import Lookup, Use
from .inner_products import products
from .layout import Layout
from .uses import Broadcast


class Arrived(NamedTuple):
    """What arrives at one use: deltas ``(K, *output)``, and where the samples lie in them."""

    use: Use
    delta: Tensor
    layout: Layout


def rows_of(use: Use, delta: Tensor, layout: Layout) -> Tensor:
    """Deltas of a product, T rows a sample: ``(N, K, E, T, height)``."""
    if not isinstance(use, Product):
        raise TypeError(f"rows_of: `use` must be a product, got {type(use).__name__}.")
    return _apart(use.factor(delta), 2, layout.before, layout.samples)


def inputs_of(use: Product, layout: Layout, first: int, last: int) -> Tensor:
    """Inputs of a product, of the samples from ``first`` to before ``last``: ``(n, E, T, width)``."""
    part = layout.part(use.stored, use.along, first, last)
    return _apart(use.unfolded(part), 1, layout.before, min(last, layout.samples) - first)


def places_of(use: Lookup, layout: Layout) -> Tensor:
    """The rows of the table that each sample's rows of delta go to, ``(N, T)``; -1 for none."""
    return layout.apart(use.places()).flatten(1)


def formed(arrived: Arrived, first: int, last: int) -> Tensor:
    """The gradients of the samples from ``first`` to before ``last``, ``(n * K, *parameter)``, float64."""
    use, delta, layout = arrived
    if isinstance(use, Product):
        rows = rows_of(use, delta, layout)[first:last].double()
        return use.shaped(products(rows, inputs_of(use, layout, first, last).double()).flatten(0, 1))
    if isinstance(use, Lookup):
        values = layout.apart(delta, 1)[first:last].flatten(2, -2).double()
        return _scattered(values, places_of(use, layout)[first:last], int(use.node._saved_weight_sym_argsize_0))
    if isinstance(use, Broadcast):
        return use.total(layout.apart(use.multiplied(delta, torch.float64), 1)[first:last].flatten(0, 1))
    return use.gradients(layout.apart(delta, 1)[first:last].flatten(0, 1), torch.float64)


def formed_by_all(arrivals: Sequence[Arrived], first: int, last: int) -> Tensor:
    """The same with respect to what is used several times."""
    return total(formed(arrived, first, last) for arrived in arrivals)


def _apart(rows: Tensor, dim: int, before: int, samples: int) -> Tensor:
    """Rows along a dimension as ``(N, ...)`` with T rows of each sample along the next one."""
    size = rows.shape[dim]
    split: Tensor = rows.unflatten(dim, (before, samples, size // (before * samples)))
    return split.movedim(dim + 1, 0).flatten(dim + 1, dim + 2)


def _scattered(values: Tensor, places: Tensor, height: int) -> Tensor:
    """Values ``(n, K, T, width)`` added up in tables ``(n * K, height, width)``."""
    samples, losses, _, width = values.shape
    counted = places >= 0
    rows = torch.arange(samples, device=places.device).unsqueeze(1) * height + places
    tables = values.new_zeros(samples * height, losses, width)
    tables.index_add_(0, rows[counted], values.transpose(1, 2)[counted])
    return tables.view(samples, height, losses, width).transpose(1, 2).flatten(0, 1)
