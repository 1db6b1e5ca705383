"""What methods remember from step to step: buffers that know which losses they belong to, and generators."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .generators import HOST, draws_there, is_captured, own_generator, restore


@dataclass(frozen=True)
class _PerLoss:
    """How a buffer with an entry a loss is laid out: along which dimensions, and what a new loss starts with."""

    fill: float
    dims: tuple[int] | tuple[int, int]
    per_block: bool


class Stateful(nn.Module):
    """A module whose buffers are the state of a method.

    They keep their dtype whatever ``bfloat16()`` and friends ask for and may be created on first use. State is
    replaced, never changed in place: that is what makes rolling back free.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: tuple[int, ...] | None = None
        self._blocks: tuple[int, ...] | None = None
        self._initial: dict[str, Tensor | None] = {}
        self._per_loss: dict[str, _PerLoss] = {}

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As in torch; what is registered first is what :meth:`reset` goes back to."""
        super().register_buffer(name, tensor, persistent)
        if name not in self._initial:  # assigning to a buffer registers it again
            self._initial[name] = None if tensor is None else tensor.clone()

    def register_per_loss(
        self, name: str, fill: float, *, dims: tuple[int] | tuple[int, int] = (-1,), per_block: bool = False
    ) -> None:
        """Declares a buffer with one entry a loss, for :meth:`recall` and :meth:`remember`.

        Args:
            name: Name of the buffer.
            fill: What a loss starts with.
            dims: The dimensions that the losses lie along: the last one for numbers beside a Gramian, ``(-2, -1)``
                for pairs of losses, ``(0,)`` for the rows of a Jacobian.
            per_block: Whether there is one for each block of a Jacobian.
        """
        self._per_loss[name] = _PerLoss(fill, dims, per_block)
        if not per_block:
            self.register_buffer(name, None)

    def recall(self, name: str, like: Tensor, block: int = 0) -> Tensor:
        """Returns what is remembered of the losses of this call.

        Args:
            name: A buffer declared by :meth:`register_per_loss`.
            like: Has the shape and device of the result, and its dtype when there is nothing to recall yet.
            block: Position of the block in this call, for a buffer per block.

        Raises:
            ValueError: What is remembered has another shape.
        """
        buffer = self._all_of(name, block, like)
        if buffer is not None:
            return buffer
        buffer = self._whole(name, block, like)
        for dim in self._per_loss[name].dims:
            rows = self.current_rows(like.shape[dim])
            if rows != list(range(buffer.shape[dim])):
                buffer = buffer.index_select(dim, torch.tensor(rows, device=buffer.device))
        return buffer

    def remember(self, name: str, values: Tensor, block: int = 0) -> None:
        """Replaces what :meth:`recall` returns of the losses of this call; that of others stays as it is.

        Numbers a loss are copied, so that nobody who holds them changes the state; blocks of a Jacobian are not.
        """
        if not self._per_loss[name].per_block:
            values = values.clone()
        whole = self._all_of(name, block, values)
        if whole is not None:
            self._buffers[self._key(name, block)] = values.to(whole.dtype)
            return
        whole = self._whole(name, block, values)
        dims = self._per_loss[name].dims
        rows = self.current_rows(values.shape[dims[0]])
        index = torch.tensor(rows, device=values.device)
        if rows == list(range(whole.shape[dims[0]])):
            whole = values.to(whole.dtype)
        elif len(dims) == 1:
            whole = whole.index_copy(dims[0], index, values.to(whole.dtype))
        else:
            whole = whole.clone()
            whole[..., index.unsqueeze(-1), index] = values.to(whole.dtype)
        key = self._key(name, block)
        if key not in self._buffers:
            self.register_buffer(key, None)
        self._buffers[key] = whole

    def _key(self, name: str, block: int) -> str:
        if not self._per_loss[name].per_block:
            return name
        return f"{name}_{block if self._blocks is None else self._blocks[block]}"

    def _all_of(self, name: str, block: int, like: Tensor) -> Tensor | None:
        """The buffer where it belongs to just the losses of this call: the common case, at little overhead."""
        buffer = self._buffers.get(self._key(name, block))
        if buffer is None or self._rows is not None or buffer.shape != like.shape:
            return None
        return buffer.to(like.device)  # a checkpoint may have been loaded on the host

    def _whole(self, name: str, block: int, like: Tensor) -> Tensor:
        """The buffer with the entries of all losses, those of new ones filled in."""
        layout = self._per_loss[name]
        shape = list(like.shape)
        for dim in layout.dims:
            shape[dim] = max(self.current_rows(shape[dim])) + 1
        buffer = self._buffers.get(self._key(name, block))
        if buffer is None:
            return like.new_full(shape, layout.fill)
        size = [max(pair) for pair in zip(shape, buffer.shape, strict=False)]
        fixed = list(buffer.shape)
        for dim in layout.dims if len(fixed) == len(shape) else ():
            fixed[dim] = shape[dim]
        if fixed != shape:
            argument = "jacobian" if layout.per_block else "gramian"
            raise ValueError(
                f"{type(self).__name__}: `{argument}` must keep the shape that the method's state has, "
                f"{tuple(buffer.shape)}, got {tuple(shape)}. Call reset() to start over."
            )
        buffer = buffer.to(like.device)
        if size == list(buffer.shape):
            return buffer
        larger = buffer.new_full(size, layout.fill)
        larger[tuple(slice(length) for length in buffer.shape)] = buffer
        return larger

    @contextmanager
    def objectives(
        self, rows: Sequence[int] | None, count: int, columns: Sequence[int] | None = None
    ) -> Iterator[None]:
        """Tells the method, for one call, which objectives its ``count`` rows and which parameters its blocks are."""
        chosen = None if rows is None else tuple(int(row) for row in rows)
        if chosen is not None and (len(chosen) != count or len(set(chosen)) != count or min(chosen) < 0):
            raise ValueError(
                f"{type(self).__name__}: `rows` must be {count} different indices >= 0, got {list(chosen)}."
            )
        if chosen == tuple(range(count)):
            chosen = None
        members = self._members()
        previous = [(member._rows, member._blocks) for member in members]
        for member in members:
            member._rows, member._blocks = chosen, None if columns is None else tuple(columns)
        try:
            yield
        finally:
            for member, (member_rows, member_blocks) in zip(members, previous, strict=True):
                member._rows, member._blocks = member_rows, member_blocks

    def current_rows(self, count: int) -> list[int]:
        """Returns the objectives that the ``count`` rows of this call belong to."""
        rows = self._rows
        if rows is None:
            return list(range(count))
        if len(rows) != count:
            raise RuntimeError(
                f"{type(self).__name__}: what is kept for each loss must be asked for with the {len(rows)} losses of "
                f"this call, got {count}."
            )
        return list(rows)

    @property
    def keeps_buffers(self) -> bool:
        """Whether a call can change a buffer."""
        if not self._modules:  # the common case, at no overhead
            return bool(self._buffers or self._per_loss)
        members = self._members()
        return any(member._buffers or member._per_loss for member in members)

    @property
    def remembers_gradients(self) -> bool:
        """Whether there is a buffer for each block of a Jacobian, which then has to keep its shape."""
        return any(layout.per_block for member in self._members() for layout in member._per_loss.values())

    @property
    def stateful(self) -> bool:
        """Whether a call can leave anything behind: in a buffer, or in the position of a random generator."""
        members = self.modules() if self._modules else (self,)
        return self.keeps_buffers or any(isinstance(module, Randomized) for module in members)

    def looks_back(self, device: torch.device) -> bool:
        """Whether numbers on ``device`` have to be read before what a call leaves behind counts.

        What a generator on a GPU has drawn there counts in any case.

        Raises:
            RuntimeError: A CUDA graph is being captured, which cannot replace what is remembered, nor draw elsewhere.
        """
        if self.keeps_buffers and is_captured(device):
            raise RuntimeError(
                f"{type(self).__name__}: gradients must not be captured in a CUDA graph by a method that remembers "
                f"from call to call, got some on {device}. Call it outside of the graph."
            )
        drawing = [member for member in self._members() if isinstance(member, Randomized)]
        return self.keeps_buffers or not all(member.draws_on(device) and device != HOST for member in drawing)

    def reset(self) -> None:
        """Forgets everything seen so far; random methods continue their sequence."""
        for member in self._members():
            for name, buffer in list(member._buffers.items()):
                first = member._initial.get(name)
                device = None if buffer is None else buffer.device
                member._buffers[name] = None if first is None else first.clone().to(device=device)

    @contextmanager
    def transaction(self) -> Iterator[Callable[[], None]]:
        """Yields a function that restores the state; if something raises, it is restored in any case.

        A generator on a GPU stays where it is: while a graph is captured, its position must not be asked for.
        """
        members = self._members()
        buffers = [dict(member._buffers) for member in members]
        generators = [
            m.generator.get_state() if isinstance(m, Randomized) and m.generator.device == HOST else None
            for m in members
        ]

        def roll_back() -> None:
            for member, before, position in zip(members, buffers, generators, strict=True):
                member._buffers.clear()
                member._buffers.update(before)
                if isinstance(member, Randomized) and position is not None:
                    member.generator.set_state(position)

        try:
            yield roll_back
        except BaseException:
            roll_back()
            raise

    def _members(self) -> list["Stateful"]:
        return [module for module in self.modules() if isinstance(module, Stateful)]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: Any
    ) -> None:
        """Takes buffers as they were saved, also those that this instance has not created yet or has outgrown."""
        for key in state_dict:
            own = key.removeprefix(prefix)
            name, _, block = own.rpartition("_")
            known = self._per_loss.get(name)
            if key.startswith(prefix) and known is not None and known.per_block and block.isdecimal():
                self._buffers.setdefault(own, None)
        for name, current in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                if current is not None and (current.shape, current.dtype) == (saved.shape, saved.dtype):
                    self._buffers[name] = current.clone()  # loading writes in place
                else:
                    self._buffers[name] = torch.empty_like(saved, device=None if current is None else current.device)
            elif strict and self._initial.get(name) is None:
                self._buffers[name] = None  # saved before its first use
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

    What a GPU draws is not waited for, not even to find out whether it was of use: gradients that are not finite
    leave a generator on the CPU where it was, and one on a GPU a call further.

    Args:
        generator: Source of the draws, on the CPU or, where ``draws_on_gpu``, on a GPU. ``None``: a new one on the
            CPU, seeded with the global generator's seed; the global generator itself is never advanced.

    Raises:
        TypeError: ``generator`` is not such a generator.
    """

    draws_on_gpu: bool = False
    """Whether the generator may be on a GPU."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = own_generator(generator, self.draws_on_gpu, type(self).__name__)

    def draws_on(self, device: torch.device) -> bool:
        """Whether draws for tensors on ``device`` are made there.

        Raises:
            RuntimeError: They are not, and a CUDA graph is being captured.
        """
        return draws_there(self.generator, device, self.draws_on_gpu, type(self).__name__)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        restore(self.generator, state, type(self).__name__)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "generator": (self.generator.device, self.generator.get_state())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        device, position = state["generator"]
        generator = torch.Generator(device)
        generator.set_state(position)
        super().__setstate__({**state, "generator": generator})  # type: ignore[no-untyped-call]
