"""A Jacobian whose columns are spread over several processes."""

import torch
from torch import Tensor

from .. import kernels
from ..distributed import Place, Ranks, Share
from .per_loss import Block, Groups, Jacobian


class Spread(Jacobian):
    """The columns that this rank has; what is summed over columns is then summed over the ranks.

    A subclass says how directions become gradients, in :meth:`assemble`.

    Args:
        blocks: One a parameter, with the columns of it that are here, if need be none; the same parameters in the
            same order on all ranks.
        places: Where the columns of each block lie.
        ranks: Those that have the columns between them.
    """

    def __init__(self, blocks: list[Block], places: list[Place], ranks: Ranks) -> None:
        super().__init__(blocks)
        self.places = places
        self.ranks = ranks

    def parts(self) -> list[Block]:
        return self.blocks

    def gramian(self, groups: Groups) -> Tensor:
        rows = self.blocks[0].rows
        size = 1 if groups is None else max(groups.values()) + 1
        result = torch.zeros(size, len(rows), len(rows), dtype=torch.float64, device=rows.device)
        for copies in sorted({place.copies for place in self.places}):
            pairs = zip(self.blocks, self.places, strict=True)
            chosen = [block for block, place in pairs if place.copies == copies and block.rows.numel()]
            owners = [0 if groups is None else groups[block.parameters[0]] for block in chosen]
            if chosen:
                local = kernels.gramian([block.rows for block in chosen], owners)
                result[: len(local)] += local.to(result.device) / copies
        return self.ranks.total(result)

    def combine(self, weights: Tensor, groups: Groups) -> list[tuple[Tensor, Tensor]]:
        directions = [block.rows.new_empty(block.rows.shape[1:]) for block in self.blocks]
        filled = [position for position, direction in enumerate(directions) if direction.numel()]
        owners = [0 if groups is None else groups[self.blocks[position].parameters[0]] for position in filled]
        if filled:
            found = kernels.combine([self.blocks[position].rows for position in filled], weights, owners)
            for position, direction in zip(filled, found, strict=True):
                directions[position] = direction
        return self.assemble(self.blocks, directions)

    def share(self, parts: list[Block]) -> Share:
        places = {block.parameters[0]: place for block, place in zip(self.blocks, self.places, strict=True)}
        return Share(self.ranks, [places[part.parameters[0]] for part in parts])

    def of_first_rank(self, weights: Tensor) -> Tensor:
        return self.ranks.from_first(weights)

    def on_all_ranks(self, condition: bool) -> bool:
        return self.ranks.everywhere(condition)
