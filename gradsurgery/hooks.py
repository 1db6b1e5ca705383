"""Functions that are shown what surgeries did, each of them every so often."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch.utils.hooks import RemovableHandle

from .scope import Scope
from .settings import check_scope
from .surgery import Surgery

Hook = Callable[[Surgery], None]


@dataclass
class Watcher:
    """A hook, and how often it wants to be called.

    Args:
        hook: What is called.
        every: How many surgeries there are from one call to the next.
        scope: Of the Gramian that it wants to see. None: whatever the surgery has.
        count: How many surgeries it has been there for.
    """

    hook: Hook
    every: int
    scope: Scope | None
    count: int = 0


class SurgeryHooks:
    """The hooks of one wrapper or block; they are not copied with it."""

    def __init__(self) -> None:
        self._watchers: OrderedDict[int, Watcher] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._watchers)

    def __deepcopy__(self, memo: object) -> "SurgeryHooks":
        return SurgeryHooks()

    def __reduce__(self) -> tuple[type["SurgeryHooks"], tuple[()]]:
        return SurgeryHooks, ()

    def register(self, hook: Hook, every: int, scope: Scope | None, caller: str) -> RemovableHandle:
        """Adds a hook; the handle's ``remove()`` takes it away.

        Raises:
            TypeError: ``hook`` cannot be called.
            ValueError: ``every`` is < 1, or ``scope`` is unknown.
        """
        if not callable(hook):
            raise TypeError(f"{caller}: `hook` must be callable with a Surgery, got {type(hook).__name__}.")
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"{caller}: `every` must be an integer >= 1, got {every!r}. 1 is every surgery.")
        if scope is not None:
            check_scope(scope, caller)
        handle = RemovableHandle(self._watchers)
        self._watchers[handle.id] = Watcher(hook, every, scope)
        return handle

    def due(self) -> list[Watcher]:
        """The watchers that the surgery now under way is shown to."""
        return [watcher for watcher in self._watchers.values() if watcher.count % watcher.every == 0]

    def show(self, due: Iterable[Watcher], seen: Callable[[Watcher], Surgery]) -> None:
        """Counts one surgery for all hooks, then calls those that are due."""
        for watcher in self._watchers.values():
            watcher.count += 1
        for watcher in due:
            watcher.hook(seen(watcher))
