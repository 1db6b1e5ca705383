"""Training on a table: everything a run needs from the table to the best epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

import gradsurgery as gs

from .best_epoch import BestEpoch, Epoch
from .encoding import Batch, Encoding
from .evaluation import Evaluation, column_errors, evaluate_rows, reconstruct
from .model import VAE
from .objective import negative_elbo
from .preparation import batches, check_arguments, prepare
from .progress import progress_bar
from .table import Split, Table

Part: TypeAlias = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Run:
    """A trained model with all that belongs to it.

    Args:
        vae: The model, with the weights of the best epoch.
        table: The whole table.
        encoding: Scaling and likelihoods, from the training rows.
        split: Which rows are which.
        history: One record an epoch.
        best_epoch: Index into ``history`` of the smallest validation error.
    """

    vae: VAE
    table: Table
    encoding: Encoding
    split: Split
    history: tuple[Epoch, ...]
    best_epoch: int

    def evaluate(self, part: Part = "test") -> Evaluation:
        """Errors and log-likelihoods column by column on one part of the table."""
        rows = self._rows(part)
        return evaluate_rows(self.vae, self.table, rows, self.encoding.encode(self.table).select(rows))

    def reconstruct(self, part: Part = "test") -> Tensor:
        """The most likely cells of one part, ``(M, D)``; ``run.table.to_frame(...)`` decodes them."""
        batch = self.encoding.encode(self.table).select(self._rows(part))
        return reconstruct(self.vae, batch.features)

    def _rows(self, part: Part) -> Tensor:
        if part not in ("train", "validation", "test"):
            raise ValueError(f"Run: `part` must be train, validation or test, got {part!r}. Pick one of them.")
        rows: Tensor = getattr(self.split, part)
        return rows


def fit(
    table: Table,
    aggregator: gs.Aggregator | None = None,
    *,
    epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    hidden_size: int = 50,
    latent_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
    title: str = "fit",
) -> Run:
    """Trains a VAE on 70% of a table and keeps the epoch with the smallest error on another 10%.

    Two calls with the same seed see the same split, initial weights, batches and noise, whatever the
    aggregator; with the same aggregator they give the same numbers on the same machine with the same
    number of threads. The global random state is neither read nor changed. A last batch of a single row
    joins the batch before it (BatchNorm needs two).

    Args:
        table: The table, missing cells and all.
        aggregator: Combines the columns' gradients. ``None``: their sum, which is ordinary training.
            Pass a new one to each run: what it has learnt (GradNorm's weights) stays in it.
        epochs: Passes over the training rows, >= 1.
        batch_size: Rows a step, >= 2.
        learning_rate: Of Adam, > 0.
        hidden_size: Width of the hidden layers, >= 1.
        latent_size: Length of the latent vector, >= 1. ``None``: half the number of columns, rounded up.
        seed: Of everything random, >= 0.
        progress: Whether to show a progress bar on standard error (needs tqdm).
        title: What the progress bar is called.

    Raises:
        ValueError: an argument is out of range, or a column cannot be scaled by its training cells.
        RuntimeError: the loss stopped being finite; the message names the columns.

    Cost:
        One forward and backward pass a batch, and the aggregator on one gradient a column.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"x": [0.1, 1.3, 2.2, 3.1, 4.7] * 8, "even": [True, False] * 20})
        >>> run = fit(Table.from_frame(frame), epochs=2)
        >>> len(run.history), list(run.evaluate().errors)
        (2, ['x', 'even'])
    """
    check_arguments("fit", table, learning_rate, epochs=(epochs, 1), batch_size=(batch_size, 2), seed=(seed, 0))
    split, encoding, training, validation, vae, noise = prepare(table, aggregator, hidden_size, latent_size, seed)
    # Fused: the layers are so small that Adam's many calls would take a third of the time.
    optimizer = torch.optim.Adam(vae.parameters(), lr=learning_rate, fused=True)
    best = BestEpoch()
    with progress_bar(epochs, title, progress) as bar:
        for _ in range(epochs):
            loss = _train_epoch(vae, optimizer, training, batch_size, noise, table.schema.names)
            error = column_errors(table, split.validation, reconstruct(vae, validation.features)).nanmean()
            best.record(vae, Epoch(loss, float(error)))
            bar.set_postfix_str(str(best))
            bar.update()
    best.restore(vae)
    vae.eval()
    return Run(vae, table, encoding, split, tuple(best.history), best.index)


def _train_epoch(
    vae: VAE,
    optimizer: torch.optim.Optimizer,
    training: Batch,
    batch_size: int,
    generator: torch.Generator,
    names: tuple[str, ...],
) -> float:
    """Takes one step a batch and returns the mean loss of a row."""
    vae.train()
    total, losses = torch.zeros(()), torch.zeros(len(names))
    for rows in batches(len(training), batch_size, generator):
        optimizer.zero_grad()
        objective = negative_elbo(vae, training.select(rows), generator)
        objective.total.backward()
        optimizer.step()
        total += objective.total.detach() * len(rows)
        losses += objective.losses.detach()
    if not torch.isfinite(total):
        broken = [name for name, loss in zip(names, losses.tolist(), strict=True) if not np.isfinite(loss)]
        raise RuntimeError(
            f"fit: the loss must stay finite, got {float(total)} (columns {', '.join(broken) or 'none'}; else "
            "the KL divergence). Lower `learning_rate`, or look for extreme cells there."
        )
    return float(total) / len(training)
