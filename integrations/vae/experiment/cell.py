"""One cell of the experiment: a table, a model, a method, and the settings they are trained with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..models.registry import ModelName
from ..tables.table import Table
from ..training.identity import describe_method, table_digest
from ..training.methods import build_method

LEARNING_RATE = 1e-3
SMALL_TABLE = 10_000


@dataclass(frozen=True)
class Cell:
    """What is trained, and how; all seeds of it together.

    Args:
        table_name: What the table is called.
        table: The table, with all its cells.
        model: One of the models by name.
        method: One of the methods by name.
        seeds: Each with a split, weights and noise of its own.
        epochs: Passes over the training rows.
        batch_size: Rows a step.
        rescale: Whether impartiality blocks give their result the plain sum's norm.
        hidden: The share of the cells that is hidden from the model. ``None``: none, it reconstructs what it sees.
    """

    table_name: str
    table: Table
    model: ModelName
    method: str
    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    rescale: bool = True
    hidden: float | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on, but for the machine and the versions of libraries."""
        return {
            "table": self.table_name,
            "table_digest": table_digest(self.table),
            "model": self.model,
            "method": self.method,
            "method_options": describe_method(build_method(self.method)),
            "rescale": self.rescale,
            "seeds": list(self.seeds),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "learning_rate": LEARNING_RATE,
            "hidden": self.hidden,
        }

    @cached_property
    def name(self) -> str:
        """Different for different settings; names the files of the cell: ``wine-vae-sum-0f1e2d3c4b``."""
        text = json.dumps(self.settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.table_name}-{self.model}-{self.method}-{digest}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.table_name} {self.model} {self.method}"

    @property
    def baseline(self) -> Cell:
        """The same with the plain sum, to which rescaling makes no difference."""
        return dataclasses.replace(self, method="sum", rescale=True)


def published_epochs(model: str, rows: int) -> int:
    """How long to train, by a rule that gives what was published for the four tables.

    Example:
        >>> published_epochs("vae", 19_609), published_epochs("vae", 6_497), published_epochs("hivae", 19_609)
        (400, 2000, 2000)
    """
    return 2000 if model == "hivae" or rows < SMALL_TABLE else 400
