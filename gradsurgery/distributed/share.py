"""What a method has to know of a Jacobian of which it sees only a share."""

from typing import NamedTuple, Protocol

from torch import Tensor


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


class Share(Protocol):
    """Some columns of a Jacobian, while other processes have the rest."""

    @property
    def places(self) -> list[Place] | None:
        """Where the columns of each block lie; None if the processes have other items of one batch."""

    def total(self, partial: Tensor) -> Tensor:
        """The sum over the processes of what each has summed over its columns."""
