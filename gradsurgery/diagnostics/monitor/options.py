"""Checks of what a monitor is told."""

from collections.abc import Sequence
from typing import get_args

from ...scope import Scope


def check_options(every: object, scope: object, decay: float, max_losses: int, keep: int | None) -> None:
    """Raises unless all are in range.

    Raises:
        ValueError: One is not.
    """
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"ConflictMonitor: `every` must be an integer >= 1, got {every!r}. 1 records every step.")
    if scope is not None and scope not in get_args(Scope):
        raise ValueError(f"ConflictMonitor: `scope` must be None or one of {list(get_args(Scope))}, got {scope!r}.")
    if not 0 <= decay < 1:
        raise ValueError(f"ConflictMonitor: `decay` must be in [0, 1), got {decay!r}. 0 keeps the last step alone.")
    if max_losses < 0:
        raise ValueError(f"ConflictMonitor: `max_losses` must be at least 0, got {max_losses}. 0 writes the summary.")
    if keep is not None and (not isinstance(keep, int) or keep < 1):
        raise ValueError(
            f"ConflictMonitor: `keep` must be an integer >= 1, got {keep!r}. None keeps what fits into 64 MB."
        )


def checked_names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names in the place of numbers.

    Raises:
        ValueError: They are not different names.
    """
    if names is None:
        return None
    if isinstance(names, str) or len(set(map(str, names))) < len(names):
        raise ValueError(
            f"ConflictMonitor: `names` must be a sequence of different names, got {names!r}. One for each loss."
        )
    return tuple(map(str, names))


def renamed(names: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """Names, with those given in the place of ``"0"``, ``"1"`` and so on.

    Raises:
        ValueError: Two losses would have the same name.

    Example:
        >>> renamed(("0", "1", "penalty"), ["depth", "labels"])
        ('depth', 'labels', 'penalty')
    """
    numbers = {str(position): name for position, name in enumerate(given)}
    result = tuple(numbers.get(name, name) for name in names)
    if len(set(result)) < len(result):
        raise ValueError(
            f"ConflictMonitor: `names` must not hold names that losses have already, got {list(given)} for losses "
            f"named {list(names)}. They take the place of '0', '1' and so on."
        )
    return result


def refuse_shared(shared: object, kind: str) -> None:
    """Raises where it is known already what is shared.

    Raises:
        ValueError: Something was given.
    """
    if shared is not None:
        raise ValueError(
            f"ConflictMonitor: `shared` must be left out for {kind}, got {type(shared).__name__}. It is for "
            f"a model that is trained on a plain sum."
        )


__all__ = ["check_options", "checked_names", "refuse_shared", "renamed"]
