"""Training on a table: everything a run needs from the table to the best epoch."""

from __future__ import annotations

import torch

import gradsurgery as gs

from ..models.registry import ModelName
from ..tables.table import Table
from ..training.run import Run
from .training import fit_stacked


def fit(
    table: Table,
    aggregator: gs.Aggregator | None = None,
    *,
    model: ModelName = "vae",
    rescale: bool = True,
    epochs: int = 100,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    hidden_size: int | None = None,
    latent_size: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    title: str = "fit",
) -> Run:
    """Trains a model on 70% of a table and keeps the epoch with the smallest error on another 10%.

    Two calls with the same seed see the same split, initial weights, batches and noise, whatever the
    aggregator; with the same aggregator they give the same numbers on the same machine with the same
    number of threads. The global random state is neither read nor changed. A last batch of a single row
    joins the batch before it (BatchNorm needs two).

    Args:
        table: The table, missing cells and all.
        aggregator: Combines the columns' gradients. ``None``: their sum, which is ordinary training.
            Pass a new one to each run: what it has learnt (GradNorm's weights) stays in it.
        model: ``"vae"``, ``"iwae"``, ``"dreg"`` or ``"hivae"``; see :class:`VAE`, :class:`IWAE`, :class:`DReG`
            and :class:`HIVAE`.
        rescale: Whether the combined gradient gets the norm of the plain sum.
        epochs: Passes over the training rows, >= 1.
        batch_size: Rows a step, >= 2. ``None``: 128; 1000 for ``"hivae"``, as published.
        learning_rate: Of Adam, > 0.
        hidden_size: Width of the hidden layers, >= 1. ``None``: 50.
        latent_size: Length of the latent vector, >= 1. ``None``: half the number of columns, rounded up; 10 for
            ``"hivae"``.
        seed: Of everything random, >= 0.
        device: Where the steps are taken: ``"cpu"``, or ``"cuda"`` for a GPU, which draws other noise from the same
            seed. ``None``: the CPU. The run's model is on the CPU in any case.
        progress: Whether to show a progress bar on standard error (needs tqdm).
        title: What the progress bar is called.

    Raises:
        ValueError: an argument is out of range, or a column cannot be scaled by its training cells.
        RuntimeError: the loss stopped being finite; the message names the columns.

    Cost:
        One forward and backward pass a batch, and the aggregator on one gradient a column. On a GPU a step is
        captured in a CUDA graph, unless the method draws, needs more than inner products or reads numbers on the
        host (``PCGrad``, ``GradDrop``, ``CAGrad``, a ``Chain``): such steps are taken one operation after the other.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"x": [0.1, 1.3, 2.2, 3.1, 4.7] * 8, "even": [True, False] * 20})
        >>> run = fit(Table.from_frame(frame), epochs=2)
        >>> len(run.history), list(run.evaluate().errors)
        (2, ['x', 'even'])
    """
    (run,) = fit_stacked(
        "fit",
        table,
        lambda seed: gs.Sum() if aggregator is None else aggregator,
        seeds=[seed],
        model=model,
        rescale=rescale,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        hidden_size=hidden_size,
        latent_size=latent_size,
        device=device,
        progress=progress,
        title=title,
    )
    return run
