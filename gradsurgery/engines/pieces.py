"""The K gradients of one shared parameter, each in the form in which they are cheapest."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .factored import compressed, saving
from .per_loss import sparse_gradient, times
from .products import Product, as_product
from .uses import Lookup, Use, as_lookup
from .workspace import Workspace

LIGHT = 1 << 16
"""Pieces with rows of up to so many numbers are handed to the kernels together, all others one after the other."""


class Arrival(NamedTuple):
    """What arrives at one use: deltas ``(K, *output)``, and how long each is, ``(K,)``."""

    use: Use
    delta: Tensor
    length: Tensor


class Piece(ABC):
    """The K gradients of one parameter."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter

    @property
    @abstractmethod
    def numel(self) -> int:
        """How many numbers the rows have, about."""

    @abstractmethod
    def rows(self, *, careful: bool) -> Tensor:
        """Rows ``(K, ...)`` with the inner products of the gradients; with care, from float64 sums."""

    def extent(self) -> Tensor | None:
        """How long each gradient would be if nothing in its sums cancelled, ``(K,)``; None: no sums here."""
        return None


class Explicit(Piece):
    """Gradients whose rows are the gradients themselves, or what of them is not zero for every loss."""

    def gradient(self, direction: Tensor) -> Tensor:
        """The parameter's gradient from the weighted sum of the rows."""
        return direction.to(self.parameter.dtype)


class Implicit(Piece):
    """Gradients that are never formed."""

    @abstractmethod
    def direction(self, weights: Tensor, *, careful: bool) -> Tensor:
        """The sum of the gradients with weights ``(K,)``; with care, in float64."""


class Held(Explicit):
    """Gradients that autograd has formed, ``(K, *parameter)``."""

    def __init__(self, parameter: Tensor, rows: Tensor) -> None:
        super().__init__(parameter)
        self._rows = rows

    @property
    def numel(self) -> int:
        return self._rows.numel()

    def rows(self, *, careful: bool) -> Tensor:
        return self._rows


class Alone(Implicit):
    """The gradient of a parameter that one of K losses alone reaches."""

    def __init__(self, parameter: Tensor, gradient: Tensor, loss: int, count: int) -> None:
        super().__init__(parameter)
        self._gradient, self._loss, self._count = gradient, loss, count

    @property
    def numel(self) -> int:
        return self._count

    def rows(self, *, careful: bool) -> Tensor:
        norm = length(self._gradient)
        rows = norm.new_zeros(self._count, 1)
        rows[self._loss] = norm
        return rows

    def direction(self, weights: Tensor, *, careful: bool) -> Tensor:
        return times(self._gradient, weights[self._loss])


class Summed(Explicit):
    """Gradients formed from what arrives at the parameter's uses."""

    def __init__(self, parameter: Tensor, arrivals: Sequence[Arrival]) -> None:
        super().__init__(parameter)
        self._arrivals = arrivals
        self._formed: dict[bool, Tensor] = {}

    @property
    def numel(self) -> int:
        return len(self._arrivals[0].delta) * self.parameter.numel()

    def rows(self, *, careful: bool) -> Tensor:
        if careful not in self._formed:
            dtype = _dtype(self._arrivals, careful)
            self._formed = {careful: total(self._part(use, delta, dtype) for use, delta, _ in self._arrivals)}
        return self._formed[careful]

    def extent(self) -> Tensor:
        return _extent(self._arrivals)

    def _part(self, use: Use, delta: Tensor, dtype: torch.dtype) -> Tensor:
        return use.gradients(delta, dtype)


class Occurring(Summed):
    """Gradients of an embedding's table, of which only the rows that occur are formed."""

    def __init__(self, parameter: Tensor, arrivals: Sequence[Arrival]) -> None:
        super().__init__(parameter, arrivals)
        lookups = [as_lookup(use) for use, _, _ in arrivals]
        self._used, places = torch.cat([lookup.used for lookup in lookups]).unique(return_inverse=True)
        parts = places.split([len(lookup.used) for lookup in lookups])
        self._places: dict[Use, Tensor] = dict(zip(lookups, parts, strict=True))
        self._sparse = all(lookup.sparse for lookup in lookups)

    def _part(self, use: Use, delta: Tensor, dtype: torch.dtype) -> Tensor:
        own = as_lookup(use).compact(delta, dtype)
        if len(self._places) == 1:
            return own
        return own.new_zeros(len(own), len(self._used), own.shape[2]).index_copy_(1, self._places[use], own)

    def gradient(self, direction: Tensor) -> Tensor:
        values = super().gradient(direction)
        if self._sparse:
            return sparse_gradient(self.parameter, self._used, values)
        return values.new_zeros(self.parameter.shape).index_copy_(0, self._used, values)


class Compressed(Implicit):
    """Gradients of products over few rows."""

    def __init__(self, parameter: Tensor, arrivals: Sequence[Arrival], workspace: Workspace) -> None:
        super().__init__(parameter)
        self._arrivals, self._workspace = arrivals, workspace

    @property
    def numel(self) -> int:
        return sum(arrival.delta.numel() for arrival in self._arrivals)

    def rows(self, *, careful: bool) -> Tensor:
        dtype = _dtype(self._arrivals, careful)
        products = [(as_product(use), delta) for use, delta, _ in self._arrivals]
        inputs = [product.inputs for product, _ in products]
        deltas = [product.factor(delta).to(dtype) for product, delta in products]
        workspace = self._workspace if self.numel > LIGHT else {}  # several light ones are alive at once
        return compressed(joined(inputs, 1), joined(deltas, 2), workspace, careful=careful)

    def extent(self) -> Tensor:
        return _extent(self._arrivals)

    def direction(self, weights: Tensor, *, careful: bool) -> Tensor:
        dtype = _dtype(self._arrivals, careful)
        own = weights.to(dtype)
        sums = [
            (use, (own @ delta.to(dtype).flatten(1)).view(1, *delta.shape[1:])) for use, delta, _ in self._arrivals
        ]
        return total(use.gradients(delta, dtype)[0] for use, delta in sums).to(self.parameter.dtype)


def length(gradient: Tensor) -> Tensor:
    """The Frobenius norm of a gradient, which may be sparse, in float64."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm


def piece_of(parameter: Tensor, arrivals: Sequence[Arrival], workspace: Workspace) -> Piece:
    """The cheapest form for a parameter of which all uses are known."""
    if saving_of([arrival.use for arrival in arrivals], len(arrivals[0].delta)) > 0:
        return Compressed(parameter, arrivals, workspace)
    return summed_of(parameter, arrivals)


def summed_of(parameter: Tensor, arrivals: Sequence[Arrival]) -> Summed:
    """The direct form for a parameter of which all uses are known."""
    lookups = all(isinstance(arrival.use, Lookup) for arrival in arrivals)
    return Occurring(parameter, arrivals) if lookups else Summed(parameter, arrivals)


def saving_of(uses: Sequence[Use], losses: int) -> float:
    """The floating point operations that are saved by not forming the gradients of a parameter with such uses."""
    if not uses or not is_joint(uses):
        return 0.0
    sizes = [as_product(use).size for use in uses]
    return saving(sizes[0]._replace(rows=sum(size.rows for size in sizes)), losses)


def is_joint(uses: Sequence[Use]) -> bool:
    """Whether uses are products that differ in their rows only, so that they are one product of more rows."""
    first = uses[0]
    return isinstance(first, Product) and all(
        isinstance(use, Product) and use.key == first.key and use.size[2:] == first.size[2:] for use in uses
    )


def _dtype(arrivals: Sequence[Arrival], careful: bool) -> torch.dtype:
    return torch.float64 if careful else torch.promote_types(arrivals[0].delta.dtype, torch.float32)


def _extent(arrivals: Sequence[Arrival]) -> Tensor:
    extents: list[Tensor] = [length * use.gain() for use, _, length in arrivals]
    return extents[0] if len(extents) == 1 else torch.stack(extents).square().sum(0).sqrt()


def joined(parts: list[Tensor], dim: int) -> Tensor:
    """Tensors side by side, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def total(parts: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first
