"""Which wrapper a parameter belongs to: the one made last. An older one must not act on it any more."""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.utils.weak import WeakTensorKeyDictionary

from .delegation import parameters_in
from .sharing import describe

_owners = WeakTensorKeyDictionary()
_claims = 0


@dataclass(eq=False)
class Owner:
    """Something that can own parameters, as long as it lives."""

    claims_seen: int = -1


def claim(owner: Owner, groups: Iterable[dict[str, Any]]) -> None:
    """Makes ``owner`` the owner of all parameters in an optimizer's groups."""
    global _claims
    _claims += 1
    for parameter in parameters_in(groups):
        _owners[parameter] = weakref.ref(owner)
    owner.claims_seen = _claims


def check_claims(owner: Owner, groups: Iterable[dict[str, Any]], names: dict[int, str]) -> None:
    """Raises if a wrapper made later, and still alive, holds one of the parameters; free if none was made."""
    if owner.claims_seen == _claims:
        return
    for parameter in parameters_in(groups):
        current = _owners[parameter]() if parameter in _owners else None
        if current is not None and current is not owner:
            raise ValueError(
                f"MultiObjectiveOptimizer: `optimizer` must be the only one over its parameters, got "
                f"{describe(parameter, names)}, which a wrapper made later holds too. Use that one, or give "
                f"each its own parameters."
            )
    owner.claims_seen = _claims
