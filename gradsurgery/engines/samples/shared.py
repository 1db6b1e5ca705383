"""Inner products and weighted sums over many parameters of gradients of which each belongs to one sample."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..measured import cancelling, indexed
from ..per_loss import Groups, Jacobian, SharedGradients
from .inner_products import symmetric
from .pieces import Known, SamplePiece


class PerSample(SharedGradients):
    """Gradients of N samples, K of each.

    Args:
        pieces: Those of most parameters.
        rest: Those of all others, as rows.
        samples: N.
        losses: K.
    """

    def __init__(self, pieces: Sequence[SamplePiece], rest: Jacobian, samples: int, losses: int) -> None:
        self._pieces, self._rest = pieces, rest
        self._samples, self._losses = samples, losses
        self._gramians: Tensor | None = None

    @property
    def parameters(self) -> list[Tensor]:
        return [*(piece.parameter for piece in self._pieces), *self._rest.parameters]

    def gramian(self, groups: Groups) -> Tensor:
        indices, count = indexed(self.parameters, groups)
        size, device = self._samples * self._losses, self.parameters[0].device
        lower = torch.zeros(count, size, size, dtype=torch.float64, device=device)
        known: Known = {}
        for piece, index in zip(self._pieces, indices, strict=False):
            lower[index] += piece.gramian(known).to(device)
        result = symmetric(lower)
        if self._rest.blocks:
            found = self._rest.gramian(groups)
            result[: len(found)] += found.to(device)
        self._gramians = result
        return result

    def combine(self, weights: Tensor, groups: Groups) -> list[tuple[Tensor, Tensor]]:
        indices, _ = indexed(self.parameters, groups)
        result = self._rest.combine(weights, groups) if self._rest.blocks else []
        own = weights.double().unflatten(1, (self._samples, self._losses))
        careful = self._cancelling(
            weights.double(), self.gramian(groups) if self._gramians is None else self._gramians, indices
        )
        for piece, index, care in zip(self._pieces, indices, careful, strict=False):
            result.append((piece.parameter, piece.direction(own[index], careful=care)))
        return result

    def _cancelling(self, weights: Tensor, gramians: Tensor, indices: list[int]) -> list[bool]:
        """Which pieces are summed in float64: where terms are longer than the direction, or where that is cheap."""
        extents = [piece.extent() for piece in self._pieces]
        known = [place for place, extent in enumerate(extents) if extent is not None]
        result = [True] * len(extents)
        if known:
            stacked = torch.stack([extent.to(gramians.device) for extent in extents if extent is not None])
            found = cancelling(weights.to(gramians.device), gramians, stacked, [indices[place] for place in known])
            for place, care in zip(known, found, strict=True):
                result[place] = care
        return result
