"""What a method does to be right where it sees only some columns of a Jacobian, as other processes have the rest."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import kernels
from ..distributed import Place, Share
from ..state import Stateful


class Columnwise(Stateful):
    """Completes sums over columns, and knows where the columns lie."""

    _share: Share | None = None

    @property
    def works_on_parts(self) -> bool:
        """Whether it may see only some of the columns, as it takes every sum over columns through :meth:`total`."""
        return False

    def total(self, partial: Tensor) -> Tensor:
        """Completes a sum over columns: where others have the rest of them, adds up over the processes."""
        return partial if self._share is None else self._share.total(partial)

    def place(self, block: int) -> Place | None:
        """Where the columns of a block of this call lie in the whole; None where they are the whole."""
        return None if self._share is None or self._share.places is None else self._share.places[block]

    def gramian_of_all(self, blocks: Sequence[Tensor]) -> Tensor:
        """The Gramian ``(1, K, K)`` of all columns; those that several processes have count once."""
        places = [self.place(block) for block in range(len(blocks))]
        copies = [1 if place is None else place.copies for place in places]
        parts = [
            kernels.gramian([block for block, own in zip(blocks, copies, strict=True) if own == count]) / count
            for count in sorted(set(copies))
        ]
        return self.total(parts[0] if len(parts) == 1 else torch.stack(parts).sum(0))

    @contextmanager
    def seeing(self, share: Share | None) -> Iterator[None]:
        """Tells the method that it sees only a share of the columns, if any."""
        members = [member for member in self.modules() if isinstance(member, Columnwise)]
        for member in members if share is not None else ():
            member._share = share
        try:
            yield
        finally:
            for member in members if share is not None else ():
                del member._share
