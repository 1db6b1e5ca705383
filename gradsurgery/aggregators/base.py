"""What every aggregator is: a module that turns per-loss gradients into one direction.

A method that needs only inner products subclasses :class:`GramianAggregator` and writes ``weights``. One that
needs the gradients themselves subclasses :class:`Aggregator` and writes ``direction``. Random ones put
:class:`Randomized` before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import overload

import torch
from torch import Tensor

from .. import kernels
from .columnwise import Columnwise


class Aggregator(Columnwise, ABC):
    r"""Maps per-loss gradients to one direction: :math:`J \mapsto d`.

    State lives in buffers and is only changed by gradients that are finite.

    Guarantees:
        nonfinite_propagates: a Jacobian with a non-finite entry gives a non-finite direction, raises nothing
            and leaves the state as it was, but for the position of a generator on a GPU.
        state_round_trip: saved, loaded, copied or pickled, a method continues bit-identically.
    """

    needs_jacobian: bool = True
    """Whether the gradients themselves are needed, not only their inner products."""

    @property
    def uses_losses(self) -> bool:
        """Whether the loss values matter; a subclass to whose formula they do says so."""
        return False

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
        columns: Sequence[int] | None = ...,
        at: Tensor | None = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        jacobian: Sequence[Tensor],
        losses: Tensor | None = ...,
        *,
        rows: Sequence[int] | None = ...,
        columns: Sequence[int] | None = ...,
        at: Tensor | None = ...,
    ) -> list[Tensor]: ...
    @torch.no_grad()
    def forward(
        self,
        jacobian: Tensor | Sequence[Tensor],
        losses: Tensor | None = None,
        *,
        rows: Sequence[int] | None = None,
        columns: Sequence[int] | None = None,
        at: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        """Aggregates a Jacobian.

        Args:
            jacobian: A matrix, a batch of matrices, or the list of blocks of one Jacobian. Row ``k`` is the
                gradient of loss ``k``.
            losses: Loss values, for the methods that use them.
            rows: Which objectives the rows belong to, when some are missing this time; methods with a state
                per loss keep it by these numbers. ``None``: ``range(K)``.
            columns: Which parameters the blocks belong to, when some are missing this time; methods that remember
                gradients keep them by these numbers. ``None``: by position.
            at: As in :meth:`direction`.

        Shape:
            - jacobian: ``(..., K, P)``, or blocks ``(K, ...)``.
            - losses: ``(K,)``, or ``(..., K)`` for a batch.
            - output: ``(..., P)``, or a list of tensors ``(...)``.

        Raises:
            TypeError: The Jacobian is not floating point, or the losses are not a tensor.
            ValueError: The blocks disagree on K, K is zero, there are not K losses, ``rows`` does not name one
                objective a row, or a batch is given to a method that remembers gradients.
        """
        single = isinstance(jacobian, Tensor)
        blocks = [jacobian] if isinstance(jacobian, Tensor) else list(jacobian)
        self._check_blocks(blocks, single)
        losses = self._checked_losses(losses, blocks[0].shape[-2 if single else 0])
        if not single or blocks[0].ndim == 2:
            known = rows is None and columns is None
            with nullcontext() if known else self.objectives(rows, blocks[0].shape[0], columns):
                directions = self._guarded_direction(blocks, losses, at)
            return directions[0] if single else directions
        return self._batched_direction(blocks[0], losses, rows)

    def _batched_direction(self, jacobians: Tensor, losses: Tensor | None, rows: Sequence[int] | None) -> Tensor:
        if self.keeps_buffers:
            raise ValueError(
                f"{type(self).__name__}: `jacobian` must be one (K, P) matrix or its blocks for a method that "
                f"remembers gradients, got shape {tuple(jacobians.shape)}. Use one instance a problem."
            )
        matrices = jacobians.flatten(0, -3)
        values = [losses] * len(matrices) if losses is None or losses.ndim < 2 else list(losses.flatten(0, -2))
        result = jacobians.new_empty(jacobians.shape[:-2] + jacobians.shape[-1:])
        problems = zip(result.view(-1, jacobians.shape[-1]), matrices, values, strict=True)
        for direction, matrix, own in problems:
            direction.copy_(self.forward(matrix, own, rows=rows))
        return result

    def _guarded_direction(self, blocks: list[Tensor], losses: Tensor | None, at: Tensor | None) -> list[Tensor]:
        """:meth:`direction`, NaN and without trace in the state where a block is not finite."""
        given = [*blocks, losses] if losses is not None and self.uses_losses else blocks
        on_host = all(tensor.is_cpu for tensor in given)
        if on_host and not self._all_finite(given):
            return undefined(blocks)
        looks_back = not on_host and self.looks_back(blocks[0].device)
        with self.transaction() as roll_back:
            directions = self.direction(blocks, losses, at)
            if self.keeps_buffers and not self._all_finite(directions):
                roll_back()  # numbers that overflow on the way must not stay in the state
            if on_host:
                return directions
            wrong = torch.stack([(~tensor.isfinite()).any().to(blocks[0].device) for tensor in given]).any()
            finite = self.total(wrong.double()) == 0
            if looks_back and not bool(finite):
                roll_back()
        return [
            torch.where(finite.to(direction.device), direction, torch.full_like(direction, torch.nan))
            for direction in directions
        ]

    def _all_finite(self, tensors: Sequence[Tensor]) -> bool:
        """Whether all entries are finite, here and where the other columns are."""
        finite = all(kernels.is_finite(tensor) for tensor in tensors)
        return finite if self._share is None else self._share.ranks.everywhere(finite)

    def _checked_losses(self, losses: Tensor | None, count: int) -> Tensor | None:
        """The losses as float64."""
        if losses is None:
            return None
        name = type(self).__name__
        if not isinstance(losses, Tensor):
            raise TypeError(f"{name}: `losses` must be a tensor, got {type(losses).__name__}. Stack the loss values.")
        if losses.ndim == 0 or losses.shape[-1] != count:
            raise ValueError(
                f"{name}: `losses` must be ({count},), one value a row, got shape {tuple(losses.shape)}."
            )
        return losses.detach().double()

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


class GramianAggregator(Aggregator):
    r"""A method that needs only inner products: :math:`G = J J^\top \mapsto w`, :math:`d = J^\top w`.

    A subclass writes :meth:`weights`. Callers use :meth:`solve`, which adds what all methods share.
    """

    needs_jacobian = False

    @property
    def works_on_parts(self) -> bool:
        return True

    @abstractmethod
    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        """Computes the weights of the rows.

        Args:
            gramian: Inner products of the rows, finite, float64.
            losses: Loss values, for the methods that use them.

        Shape:
            - gramian: ``(..., K, K)``.
            - losses: ``(K,)``, or ``(..., K)`` for a batch.
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
        losses = self._checked_losses(losses, gramian.shape[-1])
        with nullcontext() if rows is None else self.objectives(rows, gramian.shape[-1]):
            values = losses if self.uses_losses else None
            if gramian.is_cpu and kernels.is_finite(gramian) and (values is None or kernels.is_finite(values)):
                if not self.stateful:
                    return self.weights(gramian, losses)
                with self.transaction() as roll_back:
                    weights = self.weights(gramian, losses)
                    if self.keeps_buffers and not kernels.is_finite(weights):
                        roll_back()  # numbers that overflow on the way must not stay in the state
                return weights
            return self._masked_weights(gramian, losses, values)

    def _masked_weights(self, gramian: Tensor, losses: Tensor | None, values: Tensor | None) -> Tensor:
        """:meth:`weights`, NaN and without trace in the state where the Gramian or a loss is not finite."""
        finite = gramian.isfinite().all(-1).all(-1)
        if values is not None:
            known = values.isfinite().all(-1)
            losses = torch.where(known.unsqueeze(-1), values, torch.ones_like(values))
            finite = finite & known.to(finite.device)
        identity = torch.eye(gramian.shape[-1], dtype=gramian.dtype, device=gramian.device)
        looks_back = self.looks_back(gramian.device)
        with self.transaction() as roll_back:
            weights = self.weights(torch.where(finite[..., None, None], gramian, identity), losses)
            if looks_back and not (bool(finite.all()) and kernels.is_finite(weights)):
                roll_back()
        return torch.where(finite[..., None], weights, torch.full_like(weights, torch.nan))

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        gramian = self.gramian_of_all(blocks)
        weights = self.solve(gramian[0], losses, rows=self._rows)
        return kernels.combine(blocks, weights.unsqueeze(0))

    def _guarded_direction(self, blocks: list[Tensor], losses: Tensor | None, at: Tensor | None) -> list[Tensor]:
        if self.needs_jacobian:
            return super()._guarded_direction(blocks, losses, at)
        return self.direction(blocks, losses, at)  # solve() looks at the Gramian, which is smaller

    def _batched_direction(self, jacobians: Tensor, losses: Tensor | None, rows: Sequence[int] | None) -> Tensor:
        if self.needs_jacobian:
            return super()._batched_direction(jacobians, losses, rows)
        wide = jacobians.double()
        weights = self.solve(wide @ wide.mT, losses, rows=rows)
        return (weights.unsqueeze(-2) @ wide).squeeze(-2).to(jacobians.dtype)


def undefined(blocks: Sequence[Tensor]) -> list[Tensor]:
    """The direction where gradients are not finite, or overflow before a solver: then the state is rolled back."""
    return [torch.full_like(block[0], torch.nan) for block in blocks]


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
    return gramian.detach().double()
