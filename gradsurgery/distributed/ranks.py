"""The processes that train one model together, and the few things they do together."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .fingerprint import Fingerprint


class Ranks:
    """A process group of two or more, seen from one of its processes.

    Args:
        group: The group.
    """

    def __init__(self, group: "dist.ProcessGroup") -> None:
        self._group = weakref.ref(group)  # one that outlives destroy_process_group aborts the interpreter at its end
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.has_host_backend = "cpu" in dist.get_backend_config(group)
        self._fingerprints: dict[str, Fingerprint] = {}

    @property
    def group(self) -> Any:
        """The group; None once it has been destroyed."""
        return self._group()

    def total(self, partial: Tensor) -> Tensor:
        """The sum over the ranks, the same bits on each."""
        placed = self._placed(partial).clone()
        dist.all_reduce(placed, group=self.group)
        return placed.to(partial.device)

    def everywhere(self, condition: bool) -> bool:
        """Whether something holds on all ranks."""
        return not bool(self.total(torch.tensor(float(not condition))))

    def from_first(self, own: Tensor) -> Tensor:
        """What the first rank has."""
        placed = self._placed(own).clone()
        dist.broadcast(placed, dist.get_global_rank(self.group, 0), group=self.group)
        return placed.to(own.device)

    def gathered(self, own: Tensor) -> Tensor:
        """What each rank has, ``(N, *own.shape)``."""
        return self._gathered_there(own).to(own.device)

    def _gathered_there(self, own: Tensor) -> Tensor:
        placed = self._placed(own).contiguous()
        result = placed.new_empty(self.size, *placed.shape)
        name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"  # before 2.13
        getattr(dist, name)(result.view(-1), placed.view(-1), group=self.group)
        return result

    def exchanged(self, parts: Tensor) -> Tensor:
        """Sends ``parts[r]`` to rank r, and returns what each rank has sent here, ``(N, ...)``."""
        placed = self._placed(parts).contiguous()
        result = torch.empty_like(placed)
        dist.all_to_all_single(result.view(-1), placed.view(-1), group=self.group)
        return result.to(parts.device)

    def gathered_objects(self, own: Any) -> list[Any]:
        """What each rank has, for what is rare: it is pickled."""
        result: list[Any] = [None] * self.size
        dist.all_gather_object(result, own, group=self.group)
        return result

    def differing(self, purpose: str, numbers: Sequence[int], *, wait: bool = False) -> list[bool]:
        """Which of the numbers, of which there are always as many, are not the same on all ranks."""
        if purpose not in self._fingerprints:
            self._fingerprints[purpose] = Fingerprint(self._gathered_there, self.has_host_backend)
        return self._fingerprints[purpose].differing(numbers, wait=wait)

    def all_wait(self, purpose: str) -> bool:
        """Whether all ranks know the outcome of the last comparison by now."""
        return self._fingerprints[purpose].all_wait

    def _placed(self, tensor: Tensor) -> Tensor:
        """The tensor where the group can send it from; a copy on a GPU is not waited for."""
        if self.has_host_backend or not tensor.is_cpu:
            return tensor
        return tensor.pin_memory().cuda(non_blocking=True)


class Peers:
    """Which processes take part, looked up when it matters: a group may be set up after the optimizer.

    Args:
        process_group: The group. ``None``: the default one, if there is one.

    Raises:
        TypeError: ``process_group`` is not a process group, or none of this process.
    """

    def __init__(self, process_group: Any, caller: str) -> None:
        known = process_group is None or (dist.is_available() and isinstance(process_group, dist.ProcessGroup))
        if not known:
            raise TypeError(
                f"{caller}: `process_group` must be a torch.distributed.ProcessGroup that this process belongs to, "
                f"or None, got {process_group!r}."
            )
        self._group = process_group
        self._caller = caller
        self._known: Ranks | None = None
        self.have_followed = False
        """Whether all have taken over what the first rank remembers."""

    def now(self) -> Ranks | None:
        """The ranks that take part, None if this process is alone.

        Raises:
            RuntimeError: The group that was given is gone.
        """
        if not (dist.is_available() and dist.is_initialized()):
            if self._group is not None:
                raise RuntimeError(
                    f"{self._caller}: `process_group` must be one that has not been destroyed, got {self._group!r}. "
                    f"Train without ranks, or on new ones, with a new {self._caller}."
                )
            return None
        group = dist.group.WORLD if self._group is None else self._group
        if self._known is None or self._known.group is not group:
            if group is None or dist.get_world_size(group) == 1:
                return None
            self._known, self.have_followed = Ranks(group), False
        return self._known

    def __deepcopy__(self, memo: dict[int, Any]) -> "Peers":
        return Peers(self._group, self._caller)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._group is not None:
            raise TypeError(
                f"{self._caller}: `process_group` must be None to be pickled, got {self._group!r}. A process group "
                f"belongs to one process: save a state_dict() instead."
            )
        return Peers, (None, self._caller)
