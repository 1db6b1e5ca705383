"""Inner products and weighted sums over many parameters, with sums repeated in float64 where they cancel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import kernels
from .passes import Passes
from .per_loss import Groups, SharedGradients
from .pieces import Explicit, Implicit, Piece

CANCELLATION = 100.0
"""Where a sum is shorter than its terms together by more than this, it is repeated in float64.

Up to there rounding to float32 leaves at most about 1e-5 of it, as in the gradients of any other engine.
"""

_LIGHT = 1 << 16
"""Pieces with rows of up to so many numbers are handed to the kernels together."""


class Measures:
    """What there is to know of pieces before they are combined.

    ``gramians`` is ``(n, K, K)``; ``extents`` is ``(n, K)``, how long each gradient would be if nothing in its sums
    cancelled, and zero where nothing was summed here; ``careful`` says which rows came from float64 sums.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        light = [position for position, piece in enumerate(pieces) if piece.numel <= _LIGHT]
        found: dict[int, Tensor] = {}
        if light:
            rows = [pieces[position].rows(careful=False) for position in light]
            found.update(zip(light, kernels.gramian(rows, list(range(len(light)))), strict=True))
        for position, piece in enumerate(pieces):
            if position not in found:
                found[position] = kernels.gramian([piece.rows(careful=False)])[0]
        self.gramians = torch.stack([found[position] for position in range(len(pieces))])
        zero = torch.zeros_like(self.gramians[0, 0])
        extents = [piece.extent() for piece in pieces]
        self.extents = torch.stack([zero if extent is None else extent.to(zero) for extent in extents])
        norms = self.gramians.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        self.careful: list[bool] = (self.extents > CANCELLATION * norms).any(1).tolist()
        for position, (piece, careful) in enumerate(zip(pieces, self.careful, strict=True)):
            if careful:
                self.gramians[position] = kernels.gramian([piece.rows(careful=True)])[0]

    def cancelling(self, weights: Tensor) -> list[bool]:
        """Which weighted sums, ``(n, K)``, are short compared with their terms."""
        lengths = torch.einsum("ni,nij,nj->n", weights, self.gramians, weights).clamp(min=0).sqrt()
        terms = torch.linalg.vector_norm(weights * self.extents, dim=1)
        found: list[bool] = (terms > CANCELLATION * lengths).tolist()
        return found


class Kept(SharedGradients):
    """Pieces that are at hand until they are combined."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._measures: Measures | None = None

    @property
    def parameters(self) -> list[Tensor]:
        return [piece.parameter for piece in self._pieces]

    def gramian(self, groups: Groups) -> Tensor:
        return _by_group(self.measured().gramians, self.parameters, groups)

    def combine(self, weights: Tensor, groups: Groups) -> list[tuple[Tensor, Tensor]]:
        measures, pieces = self.measured(), self._pieces
        indices = _indices(self.parameters, groups)
        own = weights.to(measures.gramians)[indices]
        cancelling = measures.cancelling(own)
        explicit = [(place, piece) for place, piece in enumerate(pieces) if isinstance(piece, Explicit)]
        rows = [piece.rows(careful=measures.careful[place]) for place, piece in explicit]
        sums = kernels.combine(rows, weights, [indices[place] for place, _ in explicit]) if rows else []
        result = [
            (piece.parameter, piece.gradient(direction)) for (_, piece), direction in zip(explicit, sums, strict=True)
        ]
        for place, piece in enumerate(pieces):
            if isinstance(piece, Implicit):
                direction = piece.direction(own[place].to(piece.parameter.device), careful=cancelling[place])
                result.append((piece.parameter, direction))
        return result

    def measured(self) -> Measures:
        """Measures the pieces, once."""
        if self._measures is None:
            self._measures = Measures(self._pieces)
        return self._measures


class Dropped(SharedGradients):
    """Pieces that are formed a pack at a time and not kept; the direction takes a pass of its own.

    Args:
        passes: Through the part of the graph that the losses share.
        packs: Parameters that several losses reach, a pack for each pass.
        form: Makes the pieces of a pack.
        alone: The pieces of parameters that one loss alone reaches.
    """

    def __init__(
        self,
        passes: Passes,
        packs: Sequence[list[Tensor]],
        form: Callable[[list[Tensor]], list[Piece]],
        alone: Sequence[Piece],
    ) -> None:
        self._passes, self._packs, self._form = passes, packs, form
        self._alone = Kept(alone)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self._alone.parameters, *(parameter for pack in self._packs for parameter in pack)]

    def gramian(self, groups: Groups) -> Tensor:
        parts = [Measures(self._form(pack)).gramians for pack in self._packs]
        if self._alone.parameters:
            parts.insert(0, self._alone.measured().gramians)
        return _by_group(torch.cat(parts), self.parameters, groups)

    def combine(self, weights: Tensor, groups: Groups) -> list[tuple[Tensor, Tensor]]:
        result = self._alone.combine(weights, groups) if self._alone.parameters else []
        several = [parameter for pack in self._packs for parameter in pack]
        indices = _indices(several, groups)
        for group in sorted(set(indices)):
            members = [parameter for parameter, index in zip(several, indices, strict=True) if index == group]
            found = self._passes.weighted(weights[group], members, last=group == max(indices))
            result.extend(zip(members, found, strict=True))
        return result


def _indices(parameters: Sequence[Tensor], groups: Groups) -> list[int]:
    return [0 if groups is None else groups[parameter] for parameter in parameters]


def _by_group(gramians: Tensor, parameters: Sequence[Tensor], groups: Groups) -> Tensor:
    """Adds up the Gramians ``(n, K, K)`` of the parameters of each group, ``(B, K, K)``."""
    if groups is None:
        return gramians.sum(0, keepdim=True)
    indices = torch.tensor(_indices(parameters, groups), device=gramians.device)
    return gramians.new_zeros(max(groups.values()) + 1, *gramians.shape[1:]).index_add_(0, indices, gramians)
