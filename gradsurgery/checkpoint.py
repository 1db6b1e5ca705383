"""What a wrapper adds to the wrapped optimizer's checkpoint: plain data that ``weights_only`` loading accepts."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .aggregators import Aggregator
from .scalarizers import Scalarizer
from .sharing import Sharing

KEY = "gradsurgery"
VERSION = 1
_ENTRIES = {"method", "aggregator", "losses", "groups", "shared"}


def pack(
    method: Aggregator | Scalarizer,
    losses: Sequence[str],
    groups: Sequence[str],
    sharing: Sharing,
    parameters: Sequence[Tensor],
) -> dict[str, Any]:
    """The method's state, what its rows and groups belong to, and what was found to be shared."""
    positions = {id(parameter): position for position, parameter in enumerate(parameters)}
    found = [positions.get(id(parameter)) for parameter in sharing.discovered]
    return {
        "version": VERSION,
        "method": _name(method),
        "aggregator": dict(method.state_dict()),
        "losses": list(losses),
        "groups": list(groups),
        "shared": sorted(position for position in found if position is not None),
    }


def check(saved: dict[str, Any], parameters: int) -> None:
    """Raises if what was saved is not of this version and of as many parameters."""
    if saved.get("version") != VERSION or not saved.keys() >= _ENTRIES:
        raise ValueError(
            f"MultiObjectiveOptimizer: `state_dict` must be of version {VERSION} of this library's format, got "
            f"version {saved.get('version')} with {sorted(saved)}. Remove its {KEY!r} entry to load the wrapped "
            f"optimizer's state alone."
        )
    if any(not 0 <= position < parameters for position in saved["shared"]):
        raise ValueError(
            f"MultiObjectiveOptimizer: `state_dict` must be of an optimizer over the same {parameters} parameters, "
            f"got shared ones at {saved['shared']}."
        )


def load_method(saved: dict[str, Any], method: Aggregator | Scalarizer) -> None:
    """Loads the method's state; that of another method is left out with a warning, and the method starts afresh."""
    method.reset()
    if saved["method"] == _name(method):
        method.load_state_dict(saved["aggregator"])
    elif saved["aggregator"]:
        warnings.warn(
            f"MultiObjectiveOptimizer: the checkpoint holds the state of {saved['method']}; {_name(method)} starts "
            f"afresh.",
            UserWarning,
            stacklevel=3,
        )


def _name(method: Aggregator | Scalarizer) -> str:
    kind = "scalarizers." if isinstance(method, Scalarizer) else ""  # there are two called Random
    return kind + "/".join(
        type(member).__name__ for member in method.modules() if isinstance(member, Aggregator | Scalarizer)
    )
