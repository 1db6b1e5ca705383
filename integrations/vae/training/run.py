"""A trained model with all that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from ..models.latent_model import LatentModel
from ..tables.encoding import Encoding
from ..tables.table import Split, Table
from .best_epoch import Epoch
from .evaluation import Evaluation, evaluate_rows, reconstruct

Part: TypeAlias = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Run:
    """A trained model with all that belongs to it.

    Args:
        model: With the weights of the best epoch; on the CPU, wherever it was trained.
        table: The whole table.
        encoding: Scaling and likelihoods, from the training rows.
        split: Which rows are which.
        history: One record an epoch.
        best_epoch: Index into ``history`` of the smallest validation error.
    """

    model: LatentModel
    table: Table
    encoding: Encoding
    split: Split
    history: tuple[Epoch, ...]
    best_epoch: int

    def evaluate(self, part: Part = "test") -> Evaluation:
        """Errors and log-likelihoods column by column on one part of the table."""
        rows = self._rows(part)
        return evaluate_rows(self.model, self.table, rows, self.encoding.encode(self.table).select(rows))

    def reconstruct(self, part: Part = "test") -> Tensor:
        """The most likely cells of one part, ``(M, D)``; ``run.table.to_frame(...)`` decodes them."""
        batch = self.encoding.encode(self.table).select(self._rows(part))
        return reconstruct(self.model, batch.features)

    def _rows(self, part: Part) -> Tensor:
        if part not in ("train", "validation", "test"):
            raise ValueError(f"Run: `part` must be train, validation or test, got {part!r}. Pick one of them.")
        rows: Tensor = getattr(self.split, part)
        return rows
