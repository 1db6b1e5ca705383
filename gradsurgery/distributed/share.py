"""What a method has to know of a Jacobian of which it sees only a share."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .ranks import Ranks


class Place(NamedTuple):
    """Where the columns of a block lie in the whole parameter: they are ``whole.view(shape)[slices]``.

    Args:
        shape: Of the whole, as it is indexed.
        slices: One a dimension.
        copies: How many processes have the same columns.
    """

    shape: tuple[int, ...]
    slices: tuple[slice, ...]
    copies: int = 1


@dataclass(frozen=True)
class Share:
    """Some columns of a Jacobian, while other ranks have the rest.

    Args:
        ranks: Those that have the columns between them.
        places: Where the columns of each block lie; None if the ranks have other items of one batch.
    """

    ranks: Ranks
    places: list[Place] | None = None

    def total(self, partial: Tensor) -> Tensor:
        """The sum over the ranks of what each has summed over its columns."""
        return self.ranks.total(partial)
