"""Inner products and weighted sums over many parameters, with sums repeated in float64 where they cancel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import kernels
from .passes import Passes
from .per_loss import Groups, SharedGradients
from .pieces import LIGHT, Arrival, Explicit, Implicit, Piece, Summed, length, summed_of
from .uses import Use, norms

CANCELLATION = 100.0
"""Where a gradient is shorter than the terms of one of its sums by more than this, that sum is repeated in float64.

Up to there rounding to float32 leaves at most about 1e-5 of it, as in the gradients of any other engine.
"""


class Measures:
    """The Gramians of the groups that pieces belong to, ``(B, K, K)``, from rows that are exact enough.

    Args:
        pieces: At least one.
        indices: For each piece its group, in ``range(groups)``.
        groups: B.
    """

    def __init__(self, pieces: Sequence[Piece], indices: Sequence[int], groups: int) -> None:
        self._indices = list(indices)
        self.careful = [False] * len(pieces)
        self.gramians = self._gramians(pieces, groups)
        extents = [piece.extent() for piece in pieces]
        self._summed = [place for place, extent in enumerate(extents) if extent is not None]
        if not self._summed:
            return
        known = [extent.to(self.gramians.device) for extent in extents if extent is not None]
        self._extents = torch.stack(known).to(self.gramians)
        norms = self.gramians.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        cancelling = (self._extents > CANCELLATION * norms[self._groups_of_summed()]).any(1).tolist()
        for place, careful in zip(self._summed, cancelling, strict=True):
            self.careful[place] = careful
        if any(cancelling):
            self.gramians = self._gramians(pieces, groups)

    def cancelling(self, weights: Tensor) -> list[bool]:
        """Of which pieces the sums with weights ``(B, K)`` have terms that are long compared with the direction."""
        result = [False] * len(self._indices)
        if self._summed:
            found = cancelling(weights, self.gramians, self._extents, self._groups_of_summed())
            for place, own in zip(self._summed, found, strict=True):
                result[place] = own
        return result

    def _gramians(self, pieces: Sequence[Piece], groups: int) -> Tensor:
        light = [place for place, piece in enumerate(pieces) if piece.numel <= LIGHT]
        heavy = [place for place, piece in enumerate(pieces) if piece.numel > LIGHT]
        result: list[Tensor] = []
        for part in [[place] for place in heavy] + ([light] if light else []):
            rows = [pieces[place].rows(careful=self.careful[place]) for place in part]
            found = kernels.gramian(rows, [self._indices[place] for place in part])
            if not result:
                result = [found.new_zeros(groups, *found.shape[1:])]
            result[0][: len(found)] += found.to(result[0].device)
        return result[0]

    def _groups_of_summed(self) -> list[int]:
        return [self._indices[place] for place in self._summed]


def cancelling(weights: Tensor, gramians: Tensor, extents: Tensor, groups: list[int]) -> list[bool]:
    """In which sums with weights the terms are long compared with the direction.

    Args:
        weights: ``(B, K)``.
        gramians: ``(B, K, K)``.
        extents: ``(n, K)``, how long the terms of each of n sums are.
        groups: For each sum its group, in ``range(B)``.
    """
    lengths = torch.einsum("bi,bij,bj->b", weights, gramians, weights).clamp(min=0).sqrt()
    terms = torch.linalg.vector_norm(weights[groups] * extents, dim=1)
    found: list[bool] = (terms > CANCELLATION * lengths[groups]).tolist()
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
        self._measures = Measures(self._pieces, *indexed(self.parameters, groups))
        return self._measures.gramians

    def combine(self, weights: Tensor, groups: Groups) -> list[tuple[Tensor, Tensor]]:
        pieces = self._pieces
        indices, count = indexed(self.parameters, groups)
        measures = self._measures or Measures(pieces, indices, count)
        cancelling = measures.cancelling(weights.to(measures.gramians))
        explicit = [(place, piece) for place, piece in enumerate(pieces) if isinstance(piece, Explicit)]
        rows = [piece.rows(careful=measures.careful[place]) for place, piece in explicit]
        sums = kernels.combine(rows, weights, [indices[place] for place, _ in explicit]) if rows else []
        result = [
            (piece.parameter, piece.gradient(direction)) for (_, piece), direction in zip(explicit, sums, strict=True)
        ]
        for place, piece in enumerate(pieces):
            if isinstance(piece, Implicit):
                own = weights[indices[place]].to(piece.parameter.device)
                result.append((piece.parameter, piece.direction(own, careful=cancelling[place])))
        return result


class Dropped(SharedGradients):
    """Pieces that are formed a pack at a time and not kept; the direction takes a pass of its own.

    Hooks and custom Functions that are not linear in the gradient make something else of a weighted sum than of its
    terms. The direction then has not the length that follows from the Gramian.

    Args:
        passes: Through the part of the graph that the losses share.
        packs: Parameters that several losses reach, a pack for each pass.
        form: Makes the pieces of a pack.
        uses: The known uses of parameters.
        kept: The pieces of all other parameters.

    Raises:
        RuntimeError: The direction is not the weighted sum of the gradients.
    """

    def __init__(
        self,
        passes: Passes,
        packs: Sequence[list[Tensor]],
        uses: dict[Tensor, list[Use]],
        form: Callable[[list[Tensor]], list[Piece]],
        kept: list[Piece],
    ) -> None:
        self._passes, self._packs, self._uses, self._form, self._kept = passes, packs, uses, form, kept
        self._gramians: list[Tensor] = []  # one a pack
        self._several = [parameter for pack in packs for parameter in pack]

    @property
    def parameters(self) -> list[Tensor]:
        return [*(piece.parameter for piece in self._kept), *self._several]

    def gramian(self, groups: Groups) -> Tensor:
        indices, count = indexed(self.parameters, groups)
        of_parameter = dict(zip(self.parameters, indices, strict=True))

        def measured(pieces: Sequence[Piece]) -> Tensor:
            if not pieces:
                return torch.zeros(count, self._passes.count, self._passes.count, dtype=torch.float64)
            return Measures(pieces, [of_parameter[piece.parameter] for piece in pieces], count).gramians

        self._gramians = [measured(self._form(pack)) for pack in self._packs]
        parts = [measured(self._kept), *self._gramians]
        return torch.stack([part.to(parts[-1].device) for part in parts]).sum(0)

    def combine(self, weights: Tensor, groups: Groups) -> list[tuple[Tensor, Tensor]]:
        result = Kept(self._kept).combine(weights, groups) if self._kept else []
        indices, _ = indexed(self._several, groups)
        for group in sorted(set(indices)):
            members = [leaf for leaf, index in zip(self._several, indices, strict=True) if index == group]
            result.extend(self._directions(weights[group], members, last=group == max(indices)))
        if self._gramians:
            self._check(weights.to(torch.float64), dict(result), dict(zip(self._several, indices, strict=True)))
        return result

    def _check(self, weights: Tensor, found: dict[Tensor, Tensor], groups: dict[Tensor, int]) -> None:
        """Raises unless directions are as long as the Gramians say; small ones may be nothing but rounding."""
        gramians = torch.stack([gramian.to(weights) for gramian in self._gramians])  # (packs, B, K, K)
        squares = torch.zeros_like(gramians[..., 0, 0])
        for square, pack in zip(squares, self._packs, strict=True):
            for leaf in pack:
                if leaf in found:
                    square[groups[leaf]] += length(found[leaf]).to(squares).square()
        wrong = (squares - torch.einsum("bi,pbij,bj->pb", weights, gramians, weights)).abs()
        diagonals = gramians.diagonal(dim1=2, dim2=3).clamp(min=0)
        longest = (weights.abs() * diagonals.sqrt()).sum(2).square()
        tolerance = self._passes.rounding**0.5
        large = (diagonals > tolerance * diagonals.sum((0, 1))).any(2)
        if bool((large & (wrong > tolerance * longest)).any()):
            raise RuntimeError(
                "Ghost: `losses` must have hooks and custom Functions that are linear in the gradient where memory "
                "does not allow to keep all gradients, got some that are not. Use engine='loop'."
            )

    def _directions(self, weights: Tensor, members: list[Tensor], *, last: bool) -> list[tuple[Tensor, Tensor]]:
        edges = list(dict.fromkeys(use.edge for leaf in members for use in self._uses.get(leaf, [])))
        others = [leaf for leaf in members if leaf not in self._uses]
        found = self._passes.weighted(weights, [*edges, *others], last=last)
        result = [(leaf, own) for leaf, own in zip(others, found[len(edges) :], strict=True) if own is not None]
        arrived = {edge: own.unsqueeze(0) for edge, own in zip(edges, found, strict=False) if own is not None}
        for leaf in members:
            own = [use for use in self._uses.get(leaf, []) if use.edge in arrived]
            if own:
                arrivals = [Arrival(use, arrived[use.edge], norms(arrived[use.edge])) for use in own]
                result.append((leaf, _direction(summed_of(leaf, arrivals))))
        return result


def _direction(piece: Summed) -> Tensor:
    """The gradient itself, where the weighted sum of the losses was differentiated."""
    rows = piece.rows(careful=False)
    if bool(piece.extent() > CANCELLATION * norms(rows)):
        rows = piece.rows(careful=True)
    return piece.gradient(rows[0])


def indexed(parameters: Sequence[Tensor], groups: Groups) -> tuple[list[int], int]:
    """For each parameter the number of its group, and how many groups there are."""
    if groups is None:
        return [0] * len(parameters), 1
    return [groups[parameter] for parameter in parameters], max(groups.values()) + 1
