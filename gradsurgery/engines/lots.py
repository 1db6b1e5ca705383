"""Parameters side by side, cut into one piece of equal length a rank."""

from dataclasses import dataclass

from torch import Tensor

from ..distributed import Ranks
from .per_loss import sparse_gradient


@dataclass(frozen=True)
class Entry:
    """A parameter's gradient: all of it, or the ``indices`` of its rows that any rank touches."""

    parameter: Tensor
    indices: Tensor | None

    @property
    def numel(self) -> int:
        if self.indices is None:
            return self.parameter.numel()
        return len(self.indices) * self.parameter[:1].numel()

    def gradient(self, flat: Tensor) -> Tensor:
        if self.indices is None:
            return flat.view(self.parameter.shape)
        return sparse_gradient(self.parameter, self.indices, flat)


class Lot:
    """Parameters of one dtype and device, cut into as many pieces of one length as there are ranks."""

    def __init__(self, entries: list[Entry], ranks: Ranks) -> None:
        self.entries = entries
        self.ranks = ranks
        total = sum(entry.numel for entry in entries)
        self.piece = -(-total // ranks.size)
        self.starts = [0]
        for entry in entries:
            self.starts.append(self.starts[-1] + entry.numel)

    def scatter(self, rows: Tensor, position: int, values: Tensor) -> None:
        """Writes the ``values`` of an entry, ``(..., numel)``, into what goes out, ``(N, ..., piece)``."""
        start, end = self.starts[position], self.starts[position + 1]
        for owner in range(start // self.piece, -(-end // self.piece)) if end > start else ():
            first, last = max(start, owner * self.piece), min(end, (owner + 1) * self.piece)
            rows[owner][..., first - owner * self.piece : last - owner * self.piece].copy_(
                values[..., first - start : last - start]
            )

    def own(self, position: int) -> slice:
        """The columns of an entry that this rank has, within the entry."""
        start, offset = self.starts[position], self.ranks.rank * self.piece
        first = min(max(start, offset), self.starts[position + 1])
        last = max(first, min(self.starts[position + 1], offset + self.piece))
        return slice(first - start, last - start)

    def within(self, position: int) -> slice:
        """Those columns, within this rank's piece."""
        own, shift = self.own(position), self.starts[position] - self.ranks.rank * self.piece
        return slice(own.start + shift, own.stop + shift)

    def gathered(self, pieces: Tensor) -> list[Tensor]:
        """For each entry the whole of its columns, from this rank's piece ``(..., piece)`` and all others."""
        whole = self.ranks.gathered(pieces).movedim(0, -2).flatten(-2)
        return [whole[..., start:end] for start, end in zip(self.starts, self.starts[1:], strict=False)]

    def gradients(self, piece: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What is to be added to each ``.grad``, from this rank's piece ``(piece,)`` and all others."""
        whole = self.gathered(piece.to(self.entries[0].parameter.dtype))
        return [(entry.parameter, entry.gradient(flat)) for entry, flat in zip(self.entries, whole, strict=True)]
