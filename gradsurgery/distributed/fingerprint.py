"""Numbers that are the same on all ranks as long as these agree, compared without waiting for a GPU in every step."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def digest(text: str) -> int:
    """A number for a text, other for another text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


class Fingerprint:
    """Compares numbers that seldom change.

    Where ranks communicate from a GPU only, a rank whose numbers are those of the last call, which all had, goes on
    at once and looks at the outcome in the next call. One whose numbers are new waits for it.

    Args:
        gathered: Returns what each rank has, on the device that it is sent from.
        waits: Whether the outcome is at hand at once.
    """

    def __init__(self, gathered: Callable[[Tensor], Tensor], waits: bool) -> None:
        self._gathered = gathered
        self._waits = waits
        self._last: tuple[int, ...] | None = None
        self._outcome: tuple[Tensor, torch.cuda.Event | None] | None = None
        self.all_wait = True
        """Whether all ranks look at the outcome of the last call now, so that they can tell each other more."""

    def differing(self, numbers: Sequence[int], *, wait: bool = False) -> list[bool]:
        """Which of the numbers are not the same on all ranks; with a delay where none is new, unless all ``wait``."""
        own = tuple(numbers)
        table = self._gathered(torch.tensor(own))
        differs = (table != table[0]).any(0)
        steady = not (self._waits or wait) and own == self._last
        if steady:
            flags = self._earlier(len(own))
            self._outcome = _on_its_way(differs)
            self.all_wait = False
        else:
            flags = differs.tolist()
            self.all_wait = self._waits or list(self._last or ()) not in table.tolist()
        self._last = None if wait or any(flags) else own
        return flags

    def _earlier(self, count: int) -> list[bool]:
        """The outcome of the last call."""
        if self._outcome is None:
            return [False] * count
        flags, event = self._outcome
        if event is not None:
            event.synchronize()
        return flags.tolist()


def _on_its_way(flags: Tensor) -> tuple[Tensor, "torch.cuda.Event | None"]:
    """A tensor on the host that is filled by and by, and what says when it is."""
    if not flags.is_cuda:
        return flags, None
    host = torch.empty_like(flags, device="cpu", pin_memory=True)
    host.copy_(flags, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event
