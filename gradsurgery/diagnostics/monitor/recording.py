"""Surgeries as they come, kept cheaply and put in order when somebody asks."""

from collections.abc import Callable

from ...surgery import Surgery
from ..history.history import History
from ..history.stretch import Stretch, joined, stretch_of

FOLDED = 256  # surgeries that are put in order at once
MOST_PENDING = 2**20  # inner products that are, at most
MOST_STEPS = 10_000
MOST_BYTES = 2**26


class Recording:
    """The last surgeries, in order.

    While a model trains, nothing but a reference to the surgery's small tensors is kept, so that no GPU is waited
    for. Every 256 surgeries, or sooner where they are large, they are copied to the CPU, in one go.

    Args:
        keep: How many steps are kept, the oldest go first. None: 10,000, or fewer that fit into 64 MB.
        folded: Is given each stretch of steps once, as it is put in order.
    """

    def __init__(self, keep: int | None, folded: Callable[[Stretch], None]) -> None:
        self._keep = keep
        self._folded = folded
        self._pending: list[tuple[int, Surgery]] = []
        self._products = 0
        self._parts: list[Stretch] = []

    def add(self, step: int, surgery: Surgery) -> None:
        """Takes down a surgery, whose tensors must not be written to any more."""
        self._pending.append((step, surgery))
        self._products += len(surgery.names) ** 2 * max(1, len(surgery.groups))
        if len(self._pending) >= FOLDED or self._products >= MOST_PENDING:
            self.fold()

    def fold(self) -> None:
        """Puts in order what is pending."""
        if not self._pending:
            return
        pending, self._pending, self._products = self._pending, [], 0
        part = stretch_of(pending)
        self._folded(part)
        while self._parts and len(self._parts[-1].steps) <= len(part.steps) < FOLDED:  # where somebody asks often
            part = joined([self._parts.pop(), part])
        self._parts.append(part)
        self._forget(exactly=False)

    def history(self) -> History:
        """All that is kept."""
        self.fold()
        self._forget(exactly=True)
        whole = joined(self._parts)
        self._parts = [whole] if self._parts else []
        return whole.history()

    def _forget(self, *, exactly: bool) -> None:
        """Drops the oldest steps; not one by one, which would copy all others each time."""
        if not self._parts:
            return
        keep, last = self._keep, self._parts[-1]
        if keep is None:
            keep = max(1, min(MOST_STEPS, MOST_BYTES * len(last.steps) // max(1, last.bytes)))
        excess = sum(len(part.steps) for part in self._parts) - keep
        if not exactly and excess <= keep // 8:
            return
        while excess > 0:
            oldest = self._parts.pop(0)
            if len(oldest.steps) > excess:
                self._parts.insert(0, oldest.after(excess))
            excess -= len(oldest.steps)


__all__ = ["Recording"]
