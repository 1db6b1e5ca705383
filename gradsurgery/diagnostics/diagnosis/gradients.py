"""Per-loss gradients batch by batch, handed out as often as asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...looking import Look
from ...losses import named_losses
from .untouched import Untouched, seed_everything

LossesOf: TypeAlias = "Callable[[nn.Module, Any], Mapping[str, Tensor | None] | Sequence[Tensor | None]]"
"""A model and a batch in, the losses out."""

KEPT = 1 << 30
"""Up to so many bytes, the gradients of all batches are kept; else they are computed twice."""


@dataclass
class BatchRows:
    """The gradients of one batch.

    Args:
        names: The losses that it has.
        values: ``(k,)``, float64.
        finite: ``(k,)``; the rows of the others are zero.
        rows: ``(k, *shape)`` by parameter.
    """

    names: tuple[str, ...]
    values: Tensor
    finite: Tensor
    rows: dict[str, Tensor]


class RowsByBatch:
    """Hands out the gradients of each batch: kept where they fit, else computed again with the same draws.

    Args:
        model: The model.
        losses: Gives its losses on a batch.
        batches: The batches.
        look: Differentiates.
        before: The model as it was, to which it goes back before each batch.
        seed: Of the random numbers that a forward pass draws; each batch has its own.
        kept: How many bytes may be kept.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: LossesOf,
        batches: Sequence[Any],
        look: Look,
        before: Untouched,
        *,
        seed: int,
        kept: int = KEPT,
    ) -> None:
        self.model, self.losses, self.batches, self.look, self.before = model, losses, batches, look, before
        self.seed = seed
        self.differentiable: set[str] = set()
        """The losses that have required a gradient in any batch."""
        self.seen: set[str] = set()
        self._left = kept
        self._kept: dict[int, BatchRows] | None = {}

    def rewind(self, number: int) -> None:
        """Brings the model and the random state to where a forward pass on a batch starts."""
        self.before.restore()
        seed_everything(self.seed + number, self.before.devices)

    def evaluate(self, number: int) -> dict[str, Tensor]:
        """The losses that are present on a batch, checked, with their graph."""
        with torch.enable_grad(), _explained(self.batches[number], number):
            returned = self.losses(self.model, self.batches[number])
        return checked(returned)

    def __getitem__(self, number: int) -> BatchRows | None:
        """The gradients of a batch; None where all losses are absent."""
        if self._kept is not None and number in self._kept:
            return self._kept[number]
        self.rewind(number)
        losses = self.evaluate(number)
        if not losses:
            return None
        self.seen |= losses.keys()
        self.differentiable |= {name for name, loss in losses.items() if loss.requires_grad}
        if not any(loss.requires_grad for loss in losses.values()):
            self._refuse_detached(list(losses))
        surgery, rows = self.look.rows(losses)
        found = self._cleaned(surgery.names, surgery.losses.cpu(), rows)
        self._keep(number, found)
        return found

    def forget(self, number: int) -> None:
        """Has the gradients of a batch computed again when they are next asked for."""
        if self._kept is not None:
            self._kept.pop(number, None)

    def check(self) -> None:
        """Raises for a loss that required no gradient in any batch."""
        detached = [name for name in sorted(self.seen) if name not in self.differentiable]
        if detached:
            self._refuse_detached(detached)

    def _refuse_detached(self, names: list[str]) -> None:
        raise ValueError(
            f"diagnose: `losses` must return losses that depend on the model's parameters, got {names} without a "
            f"graph in every batch. Leave out .item(), .detach() and torch.no_grad(), and see what is frozen."
        )

    def _cleaned(self, names: tuple[str, ...], values: Tensor, rows: dict[str, Tensor]) -> BatchRows:
        finite = values.isfinite()
        for own in rows.values():
            finite &= own.flatten(1).isfinite().all(1).cpu()
        if not bool(finite.all()):
            for own in rows.values():
                own[~finite.to(own.device)] = 0.0
        return BatchRows(names, values, finite, rows)

    def _keep(self, number: int, found: BatchRows) -> None:
        if self._kept is None:
            return
        self._left -= sum(own.numel() * own.element_size() for own in found.rows.values())
        if self._left < 0:
            self._kept = None
        else:
            self._kept[number] = found


def checked(result: object) -> dict[str, Tensor]:
    """The losses that are present, by name.

    Raises:
        TypeError: They are no dict or sequence, or one is not a tensor.
        ValueError: One is not a scalar, or there is none at all.
    """
    if isinstance(result, str) or not isinstance(result, Mapping | Sequence):
        kind = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise TypeError(
            f"diagnose: `losses` must return a dict or sequence of scalar tensors, got {kind}. Return a dict of the "
            f"losses one by one, not their sum."
        )
    try:
        found = named_losses(result, differentiable=False, may_be_absent=True)
    except (TypeError, ValueError) as error:
        raise type(error)(f"diagnose: {str(error).partition(': ')[2]}") from None
    return dict(zip(found.names, found.scalars, strict=True))


@contextmanager
def _explained(batch: object, number: int) -> Iterator[None]:
    """Says what the function was called with where it fails at once: one batch is easily taken for several."""
    try:
        yield
    except Exception as error:
        if number == 0 and hasattr(error, "add_note"):  # from Python 3.11 on
            what = f"a tensor {tuple(batch.shape)}" if isinstance(batch, Tensor) else f"a {type(batch).__name__}"
            error.add_note(
                f"diagnose: `losses` was called with the first of `batches`, {what}. If that is not a whole batch, "
                f"pass a DataLoader or a list of batches."
            )
        raise
