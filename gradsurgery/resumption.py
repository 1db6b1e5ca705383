"""What methods remember, for checkpoints that several processes write together."""

import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .optimizer import MultiObjectiveOptimizer
from .state import Stateful

_PACKED = "packed"


class SurgeryState:
    """What methods remember, as one entry of a ``torch.distributed.checkpoint``.

    Such a checkpoint keeps what torch knows of an optimizer, not what a wrapper adds, and loads only those buffers
    that exist already, while methods create theirs on first use. Therefore the state of a method, the positions of
    its generators, the names of its losses and what was found to be shared are handed over as one value that nobody
    looks into.

    Plain ``torch.save(optimizer.state_dict())`` holds all of it and needs none of this.

    Guarantees:
        resumption: what is loaded continues bit-identically to what was saved.
        a snapshot: later steps do not change what ``state_dict`` returned, nor what ``async_save`` is writing.
        all or nothing: where loading raises, everything is as before.

    Args:
        owners: Wrappers, and modules that hold impartiality blocks or methods; when loading, the same ones in the
            same order, each module after its own state was loaded.

    Raises:
        TypeError: An owner is neither a wrapper nor a module.
        ValueError: There is none, or a module holds no method.

    Cost:
        A copy of the state on the CPU; one rank writes it.

    Example:
        >>> model = nn.Linear(1, 2)
        >>> optimizer = MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), PCGrad())
        >>> state = SurgeryState(optimizer)  # dcp.save({"model": model, ..., "surgery": SurgeryState(optimizer)})
        >>> state.load_state_dict(state.state_dict())
    """

    def __init__(self, *owners: MultiObjectiveOptimizer | nn.Module) -> None:
        for owner in owners:
            if not isinstance(owner, MultiObjectiveOptimizer | nn.Module):
                raise TypeError(
                    f"SurgeryState: `owners` must be wrapped optimizers or modules, got {type(owner).__name__}."
                )
            if isinstance(owner, nn.Module) and not _methods(owner):
                raise ValueError(
                    f"SurgeryState: `owners` must remember something, got a {type(owner).__name__} without a method. "
                    f"Its parameters and buffers are in its own state_dict()."
                )
        if not owners:
            raise ValueError("SurgeryState: `owners` must be at least one optimizer or module, got none.")
        self._owners = owners

    def state_dict(self) -> dict[str, bytes]:
        """Returns the state as one value."""
        file = io.BytesIO()
        torch.save([_pack(owner) for owner in self._owners], file)
        return {_PACKED: file.getvalue()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what :meth:`state_dict` returned.

        Raises:
            ValueError: It is of other owners, or of something else.
        """
        if _PACKED not in state_dict:
            raise ValueError(
                f"SurgeryState: `state_dict` must be what SurgeryState.state_dict() returned, got one with "
                f"{sorted(state_dict)}. A wrapper loads its own: optimizer.load_state_dict()."
            )
        file = io.BytesIO(state_dict[_PACKED])
        saved = torch.load(file, map_location="cpu", weights_only=True)
        if len(saved) != len(self._owners):
            raise ValueError(
                f"SurgeryState: `state_dict` must be of {len(self._owners)} owners, got {len(saved)}. Name the ones "
                f"that were saved, in their order."
            )
        with ExitStack() as stack:
            for owner, own in zip(self._owners, saved, strict=True):
                stack.enter_context(_unpacking(own, owner))


def _pack(owner: MultiObjectiveOptimizer | nn.Module) -> Any:
    if isinstance(owner, MultiObjectiveOptimizer):
        return owner._packed()
    return [(type(method).__name__, dict(method.state_dict())) for method in _methods(owner)]


def _unpacking(saved: Any, owner: MultiObjectiveOptimizer | nn.Module) -> AbstractContextManager[None]:
    if isinstance(owner, nn.Module):
        return _loading(saved, _methods(owner))
    if not isinstance(saved, dict):
        raise ValueError(
            "SurgeryState: `state_dict` must be of a wrapped optimizer, got a module with methods. Name the owners "
            "that were saved, in their order."
        )
    return owner._unpacking(saved)


@contextmanager
def _loading(saved: Any, methods: Sequence[Stateful]) -> Iterator[None]:
    """Loads the methods of a module, unless something raises, here or inside."""
    own = [type(method).__name__ for method in methods]
    kinds = [kind for kind, _ in saved] if isinstance(saved, list) else "a wrapped optimizer"
    if kinds != own:
        raise ValueError(
            f"SurgeryState: `state_dict` must be of a module with the methods {own}, got {kinds}. "
            f"Name the owners that were saved, in their order."
        )
    with ExitStack() as stack:
        for method, (_, state) in zip(methods, saved, strict=True):
            stack.enter_context(method.transaction())
            method.reset()
            method.load_state_dict(state)
        yield


def _methods(module: nn.Module) -> list[Stateful]:
    """The methods in a module, without the ones that they are made of, in the module's order."""
    if isinstance(module, Stateful):
        return [module]
    return [method for child in module.children() for method in _methods(child)]
