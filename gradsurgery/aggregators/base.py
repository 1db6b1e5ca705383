"""What every aggregator is: a module that turns per-loss gradients into one direction.

A method that needs only inner products subclasses :class:`GramianAggregator` and writes ``weights``. One that
needs the gradients themselves subclasses :class:`Aggregator` and writes ``direction``. Random ones add
:class:`Randomized`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn

from .. import kernels


class Aggregator(nn.Module, ABC):
    r"""Maps per-loss gradients to one direction: :math:`J \mapsto d`.

    State lives in buffers. They keep their dtype whatever ``aggregator.bfloat16()`` and friends ask for, may
    be created on first use, and are only changed by gradients that are finite.

    Guarantees:
        nonfinite_propagates: a Jacobian with a non-finite entry gives a non-finite direction, raises nothing
            and leaves the state as it was.
        state_round_trip: saved, loaded, copied or pickled, a method continues bit-identically.
    """

    needs_jacobian: bool = True
    """Whether the gradients themselves are needed, not only their inner products."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: tuple[int, ...] | None = None

    @abstractmethod
    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        """Computes the direction from the blocks of one Jacobian.

        Args:
            blocks: Non-empty, each ``(K, ...)``.
            losses: The K loss values.
            at: Where the rows were taken, when that is a point in the graph (see ``ImpartialityBlock``) and
                not a parameter; shaped like a row of the only block.

        Shape:
            - output: one tensor ``(...)`` a block.
        """

    @overload
    def forward(
        self,
        jacobian: Tensor,
        losses: Tensor | None = ...,
        *,
        rows: Sequence[int] | None = ...,
        at: Tensor | None = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        jacobian: Sequence[Tensor],
        losses: Tensor | None = ...,
        *,
        rows: Sequence[int] | None = ...,
        at: Tensor | None = ...,
    ) -> list[Tensor]: ...
    @torch.no_grad()
    def forward(
        self,
        jacobian: Tensor | Sequence[Tensor],
        losses: Tensor | None = None,
        *,
        rows: Sequence[int] | None = None,
        at: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        """Aggregates a Jacobian.

        Args:
            jacobian: A matrix, a batch of matrices, or the list of blocks of one Jacobian. Row ``k`` is the
                gradient of loss ``k``.
            losses: Loss values, for the methods that use them.
            rows: Which objectives the rows belong to, when some are missing this time; methods with a state
                per loss keep it by these numbers. ``None``: ``range(K)``.
            at: As in :meth:`direction`.

        Shape:
            - jacobian: ``(..., K, P)``, or blocks ``(K, ...)``.
            - losses: ``(K,)``.
            - output: ``(..., P)``, or a list of tensors ``(...)``.

        Raises:
            TypeError: The Jacobian is not floating point.
            ValueError: The blocks disagree on K, K is zero, or ``rows`` does not name one objective a row.
        """
        single = isinstance(jacobian, Tensor)
        blocks = [jacobian] if isinstance(jacobian, Tensor) else list(jacobian)
        self._check_blocks(blocks, single)
        if not single or blocks[0].ndim == 2:
            with self.objectives(rows, blocks[0].shape[0]):
                directions = self._guarded_direction(blocks, losses, at)
            return directions[0] if single else directions
        return self._batched_direction(blocks[0], losses, rows)

    def _batched_direction(self, jacobians: Tensor, losses: Tensor | None, rows: Sequence[int] | None) -> Tensor:
        directions = [self.forward(matrix, losses, rows=rows) for matrix in jacobians.flatten(0, -3)]
        return torch.stack(directions).view(jacobians.shape[:-2] + jacobians.shape[-1:])

    def _guarded_direction(self, blocks: list[Tensor], losses: Tensor | None, at: Tensor | None) -> list[Tensor]:
        """:meth:`direction`, NaN and without trace in the state where a block is not finite."""
        finite = torch.stack([block.isfinite().all().to(blocks[0].device) for block in blocks]).all()
        with self.transaction(commit=not self.stateful or bool(finite)):
            directions = self.direction(blocks, losses, at)
        return [
            torch.where(finite.to(direction.device), direction, torch.full_like(direction, torch.nan))
            for direction in directions
        ]

    def _check_blocks(self, blocks: list[Tensor], single: bool) -> None:
        name = type(self).__name__
        if not blocks:
            raise ValueError(f"{name}: `jacobian` must have at least one block, got an empty sequence.")
        for block in blocks:
            if not isinstance(block, Tensor) or not block.is_floating_point():
                kind = f"{block.dtype}" if isinstance(block, Tensor) else type(block).__name__
                raise TypeError(f"{name}: `jacobian` must be floating point tensors, got {kind}.")
            if block.ndim < (2 if single else 1):
                raise ValueError(
                    f"{name}: `jacobian` must be a (K, P) matrix or a list of (K, ...) blocks, got shape "
                    f"{tuple(block.shape)}. Row k is the gradient of loss k."
                )
        counts = {block.shape[-2 if single else 0] for block in blocks}
        if len(counts) > 1 or 0 in counts:
            shapes = [tuple(block.shape) for block in blocks]
            raise ValueError(
                f"{name}: `jacobian` must have the same number of rows K >= 1 in every block, got {shapes}."
            )

    # --- which objectives the rows belong to ---------------------------------------------------------------

    @contextmanager
    def objectives(self, rows: Sequence[int] | None, count: int) -> Iterator[None]:
        """Tells the method, for one call, which objectives its ``count`` rows belong to."""
        chosen = tuple(range(count)) if rows is None else tuple(int(row) for row in rows)
        if len(chosen) != count or len(set(chosen)) != count or min(chosen) < 0:
            raise ValueError(
                f"{type(self).__name__}: `rows` must be {count} different indices >= 0, got {list(chosen)}."
            )
        members = [module for module in self.modules() if isinstance(module, Aggregator)]
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
        """Returns the buffer ``name``, created or enlarged in its last dimension to hold ``shape``."""
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
        self._buffers[name] = buffer
        return buffer

    # --- state -----------------------------------------------------------------------------------------------

    @property
    def stateful(self) -> bool:
        """Whether a call can leave anything behind: a buffer, or the position of a random generator."""
        return any(bool(module._buffers) or isinstance(module, Randomized) for module in self.modules())

    def reset(self) -> None:
        """Forgets everything seen so far; random methods continue their sequence."""
        for module in self.modules():
            for name in module._buffers:
                module._buffers[name] = None

    @contextmanager
    def transaction(self, *, commit: bool) -> Iterator[None]:
        """Restores the state afterwards, if told not to commit or if something raises."""
        if not self.stateful:
            yield
            return
        before = {name: value.clone() for name, value in self.state_dict().items()}
        done = False
        try:
            yield
            done = commit
        finally:
            if not done:
                self.reset()
                self.load_state_dict(before)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes buffers as they were saved, also those that this instance has not created yet."""
        for name in self._buffers:
            saved = state_dict.get(prefix + name)
            current = self._buffers[name]
            if isinstance(saved, Tensor) and (current is None or current.shape != saved.shape):
                device = saved.device if current is None else current.device
                self._buffers[name] = torch.empty_like(saved, device=device)
            elif saved is None:
                self._buffers[name] = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Aggregator":
        """Follows moves between devices and ignores changes of dtype."""
        if recurse:
            for child in self.children():
                child._apply(fn)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer.new_empty(0)).device)
        return self


class GramianAggregator(Aggregator):
    r"""A method that needs only inner products: :math:`G = J J^\top \mapsto w`, :math:`d = J^\top w`.

    A subclass writes :meth:`weights`. Callers use :meth:`solve`, which adds what all methods share.
    """

    needs_jacobian = False

    @abstractmethod
    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        """Computes the weights of the rows.

        Args:
            gramian: Inner products of the rows.
            losses: Loss values, for the methods that use them.

        Shape:
            - gramian: ``(..., K, K)``.
            - losses: ``(K,)``.
            - output: ``(..., K)``, float64.
        """

    @torch.no_grad()
    def solve(self, gramian: Tensor, losses: Tensor | None = None, *, rows: Sequence[int] | None = None) -> Tensor:
        """Computes :meth:`weights` in float64, NaN where the Gramian is not finite, the state then untouched.

        Args:
            gramian: Inner products of the rows.
            losses: Loss values.
            rows: Which objectives the rows belong to. ``None``: ``range(K)``.

        Shape:
            - gramian: ``(..., K, K)``.
            - output: ``(..., K)``, float64.

        Raises:
            ValueError: ``gramian`` is not square in its last two dimensions.
        """
        gramian = as_gramian(gramian, type(self).__name__)
        finite = gramian.isfinite().all(-1).all(-1)
        identity = torch.eye(gramian.shape[-1], dtype=gramian.dtype, device=gramian.device)
        safe = torch.where(finite[..., None, None], gramian, identity)
        with self.objectives(rows, gramian.shape[-1]):
            if not self.stateful or bool(finite.all()):
                weights = self.weights(safe, losses)
            else:
                with self.transaction(commit=False):
                    weights = self.weights(safe, losses)
        return torch.where(finite[..., None], weights, torch.full_like(weights, torch.nan))

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        gramian = kernels.gramian(blocks)
        weights = self.solve(gramian[0], losses, rows=self._rows)
        return kernels.combine(blocks, weights.unsqueeze(0))

    def _guarded_direction(self, blocks: list[Tensor], losses: Tensor | None, at: Tensor | None) -> list[Tensor]:
        return self.direction(blocks, losses, at)  # solve() looks at the Gramian, which is smaller

    def _batched_direction(self, jacobians: Tensor, losses: Tensor | None, rows: Sequence[int] | None) -> Tensor:
        if self.needs_jacobian:
            return super()._batched_direction(jacobians, losses, rows)
        wide = jacobians.double()
        weights = self.solve(wide @ wide.mT, losses, rows=rows)
        return (weights.unsqueeze(-2) @ wide).squeeze(-2).to(jacobians.dtype)


class Randomized(Aggregator):
    """A method that draws random numbers, from a generator of its own.

    Args:
        generator: Source of the draws, on the CPU. ``None``: a new one, seeded with the global generator's
            seed; the global generator itself is never advanced.
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


def as_gramian(gramian: Tensor, name: str) -> Tensor:
    """Returns a Gramian as float64 after checking that it is one by kind and shape."""
    if not isinstance(gramian, Tensor) or not gramian.is_floating_point():
        kind = gramian.dtype if isinstance(gramian, Tensor) else type(gramian).__name__
        raise TypeError(f"{name}: `gramian` must be a floating point tensor, got {kind}.")
    if gramian.ndim < 2 or gramian.shape[-1] != gramian.shape[-2] or gramian.shape[-1] == 0:
        raise ValueError(
            f"{name}: `gramian` must be square in its last two dimensions, K >= 1, got shape "
            f"{tuple(gramian.shape)}. Inner products of the rows: jacobian @ jacobian.mT."
        )
    return gramian.double()
