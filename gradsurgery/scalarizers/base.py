"""What every scalarizer is: a module that turns K losses into one scalar to differentiate."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ..state import Stateful

LARGEST_EXPONENT = 80.0
"""Where learned weights stop, so that they stay within float32: ``exp(88)`` does not."""


class Scalarizer(Stateful, ABC):
    r"""Maps losses to one scalar: :math:`(L_1, \dots, L_K) \mapsto s`, for the price of one backward pass.

    It weighs all gradients of loss k, shared parameters or not, by :math:`\partial s / \partial L_k`. What it learns
    or remembers lies in buffers and changes with each call in training mode; after ``eval()`` a call computes what it
    would in training and leaves no trace.

    Guarantees:
        nonfinite_propagates: with a loss that is not finite, the scalar and its derivatives are NaN, nothing is
            raised and the state stays as it was.
        state_round_trip: saved, loaded, copied or pickled, a scalarizer continues bit-identically.
    """

    wants_second_look: bool = False
    """Whether :meth:`update` is to be called with the losses after the optimizer's step."""

    @abstractmethod
    def scalar(self, losses: Tensor) -> Tensor:
        """Computes the scalar, differentiable in the losses, and learns from their values.

        Shape:
            - losses: ``(K,)``, float64.
            - output: ``()``, float64.
        """

    def forward(self, losses: Tensor | Sequence[Tensor], *, rows: Sequence[int] | None = None) -> Tensor:
        """Combines the losses.

        Args:
            losses: A vector, or K scalars.
            rows: Which objectives the losses are, when some are missing this time; what is kept for each loss is
                kept by these numbers. ``None``: ``range(K)``.

        Shape:
            - losses: ``(K,)``.
            - output: ``()``, in the dtype of the losses, at least float32.

        Raises:
            TypeError: The losses are not floating point tensors.
            ValueError: There is none, or ``rows`` does not name one objective a loss.
        """
        vector = _as_vector(losses, type(self).__name__)
        dtype = torch.promote_types(vector.dtype, torch.float32)
        with nullcontext() if rows is None else self.objectives(rows, len(vector)):
            return self._guarded_scalar(vector.double()).to(dtype)

    def _guarded_scalar(self, losses: Tensor) -> Tensor:
        """:meth:`scalar`, NaN and without trace in the state where a loss is not finite."""
        if not (losses.is_cpu or self.stateful):
            return self.scalar(losses) * torch.where(losses.isfinite().all(), 1.0, torch.nan)
        # a sum that is finite, the fastest to look at, has only finite terms
        finite = math.isfinite(losses.detach().sum()) or bool(losses.isfinite().all())
        with self.transaction() as roll_back:
            result = self.scalar(losses)
            if not (finite and self.training):
                roll_back()
        return result if finite else result * torch.nan

    @torch.no_grad()
    def update(self, losses: Tensor | Sequence[Tensor], *, rows: Sequence[int] | None = None) -> None:
        """Takes a second look at the losses, after the step; for those that want one, in training mode."""
        vector = _as_vector(losses, type(self).__name__)
        if not (self.wants_second_look and self.training and bool(vector.isfinite().all())):
            return
        with nullcontext() if rows is None else self.objectives(rows, len(vector)), self.transaction():
            self.look_again(vector.double())

    def look_again(self, losses: Tensor) -> None:
        """Learns from the losses after the step; for a subclass that sets ``wants_second_look``."""
        raise NotImplementedError

    def next_epoch(self) -> None:
        """Says that an epoch is over, to the scalarizers that compare epochs (DWA); others do not mind."""

    def refuse(self, losses: Tensor, wrong: Tensor, rule: str) -> None:
        """Raises a ValueError that names the first loss that is ``wrong``, if all losses are finite.

        It waits for the device: where nothing else does, call it for losses on the CPU only.
        """
        if bool(wrong.any()) and bool(losses.isfinite().all()):
            index = int(wrong.nonzero()[0])
            raise ValueError(
                f"{type(self).__name__}: `losses` must be {rule}, got {float(losses[index].detach())} for loss "
                f"{self.current_rows(len(losses))[index]}."
            )


def _as_vector(losses: Tensor | Sequence[Tensor], name: str) -> Tensor:
    if isinstance(losses, Tensor):
        vector = losses
    else:
        for loss in losses:
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise TypeError(f"{name}: `losses` must be a vector or scalar tensors, got {got}.")
        device = losses[0].device if losses else None
        vector = torch.stack([loss.reshape(()).to(device) for loss in losses]) if losses else torch.empty(0)
    if not vector.is_floating_point():
        raise TypeError(f"{name}: `losses` must be floating point, got {vector.dtype}.")
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"{name}: `losses` must be (K,) with K >= 1, got shape {tuple(vector.shape)}.")
    return vector
