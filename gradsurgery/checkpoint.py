"""What a wrapper adds to the wrapped optimizer's checkpoint: plain data that ``weights_only`` loading accepts."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .aggregators import Aggregator
from .run import Run
from .scalarizers import Scalarizer

KEY = "gradsurgery"
VERSION = 1
_ENTRIES = {"method", "aggregator", "losses", "groups", "shared"}


def pack(run: Run, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The method's state, what its rows and groups belong to, and what was found to be shared."""
    positions = {id(parameter): position for position, parameter in enumerate(parameters)}
    found = [positions.get(id(parameter)) for parameter in run.sharing.discovered]
    method = dict(run.settings.method.state_dict())
    return {
        "version": VERSION,
        "method": _name(run.settings.method),
        "aggregator": method,
        "entries": list(method),
        "losses": list(run.names),
        "groups": list(run.groups),
        "shared": sorted(position for position in found if position is not None),
    }


@contextmanager
def unpacking(saved: dict[str, Any], run: Run, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Loads what :func:`pack` returned, unless something raises, here or inside: then the run stays as it was."""
    _check(saved, len(parameters))
    with run.settings.method.transaction():
        _load_method(saved, run.settings.method)
        yield
    run.sharing.discovered = WeakTensorKeyDictionary()
    for position in saved["shared"]:
        run.sharing.discovered[parameters[position]] = True
    run.names = list(saved["losses"])
    run.groups = tuple(saved["groups"])


def _check(saved: dict[str, Any], parameters: int) -> None:
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
    lacking = [entry for entry in saved.get("entries", ()) if entry not in saved["aggregator"]]
    if lacking:
        raise ValueError(
            f"MultiObjectiveOptimizer: `state_dict` must hold all of the method's state, got one without {lacking}. "
            f"torch.distributed.checkpoint loads only what exists already: save and load SurgeryState(optimizer)."
        )


def _load_method(saved: dict[str, Any], method: Aggregator | Scalarizer) -> None:
    """Loads the method's state; that of another method is left out with a warning, and the method starts afresh."""
    method.reset()
    if saved["method"] == _name(method):
        method.load_state_dict(saved["aggregator"])
    elif saved["aggregator"]:
        warnings.warn(
            f"MultiObjectiveOptimizer: the checkpoint holds the state of {saved['method']}; {_name(method)} starts "
            f"afresh.",
            UserWarning,
            stacklevel=5,
        )


def _name(method: Aggregator | Scalarizer) -> str:
    kind = "scalarizers." if isinstance(method, Scalarizer) else ""  # there are two called Random
    return kind + "/".join(
        type(member).__name__ for member in method.modules() if isinstance(member, Aggregator | Scalarizer)
    )
