"""The gradients of one parameter for each sample, in the form in which their inner products are cheapest."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..per_loss import sparse_gradient
from ..pieces import is_joint, joined, total
from ..products import as_product
from ..uses import Bias, Lookup, Use, as_lookup
from .gradients import Arrived, formed_by_all, inputs_of, places_of, rows_of
from .inner_products import SCRATCH, by_gradients, by_occurrences, by_pairs, inner_products, is_by_pairs

Known: TypeAlias = dict[GradientEdge, Tensor]
"""Inner products of what arrives at a point for each sample: a weight and its bias both need them."""


class SamplePiece(ABC):
    """The gradients of one parameter, N times K of them; those of one sample are next to each other.

    Their inner products come from float64 sums: within a sample much may cancel.
    """

    def __init__(self, parameter: Tensor, arrivals: Sequence[Arrived]) -> None:
        self.parameter = parameter
        self._arrivals = arrivals
        self._samples, self._losses = arrivals[0].layout.samples, len(arrivals[0].delta)

    @abstractmethod
    def gramian(self, known: Known) -> Tensor:
        """Inner products ``(N * K, N * K)``, valid on and below the diagonal."""

    def extent(self) -> Tensor | None:
        """How long each gradient would be if nothing in it cancelled, ``(N * K,)``; None: float64 costs little."""
        return None

    def direction(self, weights: Tensor, *, careful: bool) -> Tensor:
        """The sum of the gradients with weights ``(N, K)``; with care, in float64."""
        parts = []
        for use, delta, layout in self._arrivals:
            dtype = torch.float64 if careful else torch.promote_types(delta.dtype, torch.float32)
            weighed = layout.weighed(delta.to(dtype), weights.to(device=delta.device, dtype=dtype))
            parts.append(self._gradient(use, weighed))
        return total(parts)

    def _gradient(self, use: Use, delta: Tensor) -> Tensor:
        """The gradient of the parameter from one delta, ``(1, *output)``."""
        return use.gradients(delta, delta.dtype)[0].to(self.parameter.dtype)


class Formed(SamplePiece):
    """Gradients that are formed, all at a time or some."""

    def gramian(self, known: Known) -> Tensor:
        edge = self._arrivals[0].use.edge
        if self._is_delta() and edge in known:
            return known[edge]
        step = max(1, SCRATCH // (2 * self._losses * max(1, self.parameter.numel())))
        if step >= self._samples:
            return inner_products(self.rows(0, self._samples))
        total = self._samples * self._losses
        result = torch.zeros(total, total, dtype=torch.float64, device=self._arrivals[0].delta.device)
        for first in range(0, self._samples, step):
            rows = self.rows(first, first + step).flatten(1)
            own = slice(first * self._losses, first * self._losses + len(rows))
            result[own, own] = rows @ rows.mT
            for before in range(0, first, step):
                others = self.rows(before, before + step).flatten(1)
                result[own, before * self._losses : (before + step) * self._losses] = rows @ others.mT
        return result

    def rows(self, first: int, last: int) -> Tensor:
        """The gradients of the samples from ``first`` to before ``last``, ``(n * K, *parameter)``, float64."""
        return formed_by_all(self._arrivals, first, last)

    def _is_delta(self) -> bool:
        """Whether all that arrives for one sample is its gradient."""
        use, delta, _ = self._arrivals[0]
        whole = self._samples * self.parameter.numel() == delta[0].numel()
        return len(self._arrivals) == 1 and isinstance(use, Bias) and whole


class Products(SamplePiece):
    """Gradients that are products, of uses that differ in their rows only."""

    def gramian(self, known: Known) -> Tensor:
        deltas = joined([rows_of(*arrived) for arrived in self._arrivals], 3)
        samples, losses, copies, rows, height = deltas.shape
        width = self._inputs(0, 1).shape[-1]
        if not is_by_pairs(samples, losses, rows, height, width):
            return by_gradients(deltas, self._inputs, width)
        inputs = self._inputs(0, samples)
        if rows == copies == 1:
            outer = known[self._arrivals[0].use.edge] = inner_products(deltas.flatten(0, 1))
            inner = inner_products(inputs).view(samples, 1, samples, 1)
            return (outer.view(samples, losses, samples, losses) * inner).view(outer.shape)
        return total([by_pairs(own, a) for own, a in zip(deltas.unbind(2), inputs.unbind(1), strict=True)])

    def extent(self) -> Tensor:
        squares = []
        for use, delta, layout in self._arrivals:
            others = [dim for dim in range(1, delta.ndim) if dim != 1 + layout.dim]
            wide = delta.to(torch.promote_types(delta.dtype, torch.float32))
            lengths = torch.linalg.vector_norm(wide, dim=others).double()
            squares.append(layout.of_samples((lengths * as_product(use).gains()).square()))
        return total(squares).sqrt().flatten()

    def _inputs(self, first: int, last: int) -> Tensor:
        """a of the samples from ``first`` to before ``last``, ``(n, E, T, width)``."""
        return joined([inputs_of(as_product(use), layout, first, last) for use, _, layout in self._arrivals], 2)


class Lookups(SamplePiece):
    """Gradients of an embedding's table."""

    def gramian(self, known: Known) -> Tensor:
        values = [layout.apart(delta, 1).flatten(2, -2) for _, delta, layout in self._arrivals]
        places = [places_of(as_lookup(use), layout) for use, _, layout in self._arrivals]
        return by_occurrences(joined(values, 2), joined(places, 1))

    def _gradient(self, use: Use, delta: Tensor) -> Tensor:
        if not all(as_lookup(arrived.use).sparse for arrived in self._arrivals):
            return super()._gradient(use, delta)
        values = as_lookup(use).compact(delta, delta.dtype)[0].to(self.parameter.dtype)
        return sparse_gradient(self.parameter, as_lookup(use).used, values)


def sample_piece_of(parameter: Tensor, arrivals: Sequence[Arrived]) -> SamplePiece:
    """The cheapest form for a parameter of which all uses are known."""
    uses = [arrived.use for arrived in arrivals]
    if all(isinstance(use, Lookup) for use in uses):
        return Lookups(parameter, arrivals)
    return Products(parameter, arrivals) if is_joint(uses) else Formed(parameter, arrivals)
