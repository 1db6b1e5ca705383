"""What methods remember from step to step: buffers, created on first use, and generators."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Stateful(nn.Module):
    """A module whose buffers are the state of a method.

    They keep their dtype whatever ``bfloat16()`` and friends ask for, may start as None and be created on first use,
    and can be rolled back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: tuple[int, ...] | None = None
        self._initial: dict[str, Tensor | None] = {}

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As in torch; what is registered is what :meth:`reset` goes back to."""
        super().register_buffer(name, tensor, persistent)
        self._initial[name] = None if tensor is None else tensor.clone()

    @contextmanager
    def objectives(self, rows: Sequence[int] | None, count: int) -> Iterator[None]:
        """Tells the method, for one call, which objectives its ``count`` rows belong to."""
        chosen = tuple(range(count)) if rows is None else tuple(int(row) for row in rows)
        if len(chosen) != count or len(set(chosen)) != count or min(chosen) < 0:
            raise ValueError(
                f"{type(self).__name__}: `rows` must be {count} different indices >= 0, got {list(chosen)}."
            )
        members = self._members()
        previous = [member._rows for member in members]
        for member in members:
            member._rows = chosen
        try:
            yield
        finally:
            for member, before in zip(members, previous, strict=True):
                member._rows = before

    def current_rows(self, count: int) -> list[int]:
        """Returns the objectives that the ``count`` rows of this call belong to."""
        rows = self._rows
        return list(range(count)) if rows is None or len(rows) != count else list(rows)

    def grow(self, name: str, shape: Sequence[int], like: Tensor, fill: float) -> Tensor:
        """Returns the buffer ``name`` on the device of ``like``, enlarged in its last dimension to hold ``shape``."""
        buffer: Tensor | None = self._buffers.get(name)
        if buffer is not None and tuple(buffer.shape[:-1]) != tuple(shape[:-1]):
            raise ValueError(
                f"{type(self).__name__}: `gramian` must keep the batch shape {tuple(buffer.shape[:-1])} that "
                f"the method's state has, got {tuple(shape[:-1])}. Call reset() to start over."
            )
        if buffer is None:
            buffer = like.new_full(tuple(shape), fill)
        elif buffer.shape[-1] < shape[-1]:
            missing = buffer.new_full((*buffer.shape[:-1], shape[-1] - buffer.shape[-1]), fill)
            buffer = torch.cat([buffer, missing], dim=-1)
        buffer = buffer.to(like.device)  # a checkpoint may have been loaded on the host
        self._buffers[name] = buffer
        return buffer

    @property
    def keeps_buffers(self) -> bool:
        """Whether a call can change a buffer."""
        return any(module._buffers for module in self.modules())

    @property
    def stateful(self) -> bool:
        """Whether a call can leave anything behind: in a buffer, or in the position of a random generator."""
        return self.keeps_buffers or any(isinstance(module, Randomized) for module in self.modules())

    def reset(self) -> None:
        """Forgets everything seen so far; random methods continue their sequence."""
        for member in self._members():
            for name, buffer in member._buffers.items():
                first = member._initial.get(name)
                device = None if buffer is None else buffer.device
                member._buffers[name] = None if first is None else first.clone().to(device=device)

    @contextmanager
    def transaction(self, *, commit: bool) -> Iterator[None]:
        """Restores the state afterwards, if told not to commit or if something raises."""
        if not self.stateful:
            yield
            return
        members = self._members()
        buffers = [{name: None if b is None else b.clone() for name, b in m._buffers.items()} for m in members]
        generators = [m.generator.get_state() if isinstance(m, Randomized) else None for m in members]
        done = False
        try:
            yield
            done = commit
        finally:
            for member, before, position in zip(members, buffers, generators, strict=True) if not done else ():
                member._buffers.update(before)
                if isinstance(member, Randomized) and position is not None:
                    member.generator.set_state(position)

    def _members(self) -> list["Stateful"]:
        return [module for module in self.modules() if isinstance(module, Stateful)]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: Any
    ) -> None:
        """Takes buffers as they were saved, also those that this instance has not created yet or has outgrown."""
        saved_before_use = strict and not any(key.startswith(prefix) for key in state_dict)
        for name, current in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and (current is None or current.shape != saved.shape):
                device = saved.device if current is None else current.device
                self._buffers[name] = torch.empty_like(saved, device=device)
            elif saved_before_use and self._initial.get(name) is None:
                self._buffers[name] = None
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Stateful":
        """Follows moves between devices and ignores changes of dtype."""
        for child in self.children() if recurse else ():
            child._apply(fn)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer.new_empty(0)).device)
        return self


class Randomized(Stateful):
    """A method that draws random numbers, from a generator of its own.

    Args:
        generator: Source of the draws, on the CPU. ``None``: a new one, seeded with the global generator's
            seed; the global generator itself is never advanced.

    Raises:
        TypeError: ``generator`` is not a generator on the CPU.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if generator is None:
            generator = torch.Generator().manual_seed(torch.initial_seed())
        if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
            raise TypeError(
                f"{type(self).__name__}: `generator` must be a torch.Generator on the CPU, got {generator!r}."
            )
        self.generator = generator

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(state["generator"])
        super().__setstate__({**state, "generator": generator})  # type: ignore[no-untyped-call]
