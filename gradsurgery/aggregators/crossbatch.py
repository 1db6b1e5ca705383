"""What methods share that learn their weights from two independent batches."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from .. import kernels
from ..solvers import start_on_simplex
from ..solvers.arrays import Array
from .base import GramianAggregator
from .host import on_host

_ROUNDING = 4 * torch.finfo(torch.float64).eps


class CrossBatch(GramianAggregator):
    """Has weights on the simplex that :meth:`observe` steps and a call only applies."""

    observes_whole_jacobians = True
    """Whether the state is learned from whole Jacobians, so that a part of the parameters cannot have its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_per_loss("simplex", math.nan)

    @abstractmethod
    def step(self, cross: Array, weights: Array) -> Array:
        """Computes new weights on the simplex.

        Args:
            cross: Inner products of the rows of the first batch with those of the second.
            weights: The present ones.

        Shape:
            - cross: ``(B, K, K)``.
            - weights: ``(B, K)``.
            - output: ``(B, K)``.
        """

    @torch.no_grad()
    def observe(
        self,
        first: Tensor | Sequence[Tensor],
        second: Tensor | Sequence[Tensor],
        *,
        rows: Sequence[int] | None = None,
    ) -> None:
        """Steps the weights; gradients that are not finite leave them as they are.

        Args:
            first: The Jacobian on one batch: a matrix, a batch of matrices, or a list of blocks, such as the
                wrapper's ``jacobian(losses)`` returns.
            second: The Jacobian on another batch, drawn independently, at the same parameters.
            rows: Which objectives the rows belong to, when some are missing. ``None``: ``range(K)``.

        Shape:
            - first: ``(..., K, P)``, or blocks ``(K, ...)``.
            - second: as the first.

        Raises:
            TypeError: A Jacobian is not floating point.
            ValueError: The two differ in shape.
        """
        cross = self._cross(first, second)
        if not kernels.is_finite(cross):
            return
        with nullcontext() if rows is None else self.objectives(rows, cross.shape[-1]):
            weights = self._current(cross[..., 0])
            self.remember("simplex", on_host(self.step, cross, weights.reshape(-1, cross.shape[-1]).cpu().numpy()))

    def _cross(self, first: Tensor | Sequence[Tensor], second: Tensor | Sequence[Tensor]) -> Tensor:
        single = isinstance(first, Tensor)
        pair = [[one] if isinstance(one, Tensor) else list(one) for one in (first, second)]
        shapes = [[tuple(block.shape) for block in blocks] for blocks in pair]
        for blocks in pair:
            self._check_blocks(blocks, single)
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{type(self).__name__}: `second` must have the shapes of `first`, {shapes[0]}, got {shapes[1]}. "
                f"Both are Jacobians of the same losses with respect to the same parameters."
            )
        if single and pair[0][0].ndim > 2:
            return pair[0][0].double() @ pair[1][0].double().mT
        return kernels.cross_gramian(*pair)

    def _current(self, like: Tensor) -> Tensor:
        """The present weights of the losses of this call, ``(..., K)``."""
        known = self.recall("simplex", like)
        if bool(((known.sum(-1) - 1.0).abs() <= _ROUNDING * known.shape[-1]).all()):
            return known.clone()  # as the last step left them
        count = like.shape[-1]
        weights = start_on_simplex(known.reshape(-1, count).cpu().numpy())
        return torch.from_numpy(weights).reshape(known.shape).to(known.device)
