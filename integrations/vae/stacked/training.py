"""Several seeds of one training, run together: small matrices cost hardly more by the handful."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import gradsurgery as gs

from ..models.registry import ModelName
from ..tables.table import FEWEST_ROWS, Table
from ..training.best_epoch import BestEpoch, Epoch
from ..training.evaluation import column_errors, reconstruct
from ..training.identity import describe_method
from ..training.preparation import Prepared, Settings, check_integer, prepare
from ..training.progress import progress_bar
from ..training.run import Run
from .checkpoint import Checkpoint, training_identity
from .loop import StackedLoop
from .state import StackedState


def fit_seeds(
    table: Table | Sequence[Table],
    build_method: Callable[[int], gs.Aggregator] | None = None,
    *,
    seeds: Sequence[int],
    model: ModelName = "vae",
    rescale: bool = True,
    epochs: int = 100,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    hidden_size: int | None = None,
    latent_size: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
    title: str = "fit",
    checkpoint: str | Path | None = None,
) -> list[Run]:
    """Trains one model a seed, all of them together.

    Guarantees:
        as_alone: each run is that of ``fit(table, build_method(seed), seed=seed, ...)`` up to rounding: its split,
            scaling, initial weights, batches, noise, best epoch and the state of its method. Rounding grows over
            the epochs, as between two machines.

    Args:
        table: The table, missing cells and all; or one a seed, of the same schema and length, for example with
            other cells hidden.
        build_method: Called with each seed, makes a new aggregator, of the same kind and options for all; the seed
            is for random ones. ``None``: the plain sum.
        seeds: Of everything random, each >= 0, all different; at least one.
        model: As in :func:`fit`, and so are the others.
        checkpoint: A file to go on from if it is there, which is written about every half a minute, after the last
            epoch, and when an exception (Ctrl-C) ends the training. On the same machine the runs are bit for bit
            those of a training that nothing stopped. A finished one goes on with more ``epochs``.

    Raises:
        ValueError: an argument is out of range, a column cannot be scaled by its training cells, or ``checkpoint``
            is of a training with other arguments.
        TypeError: an argument is of the wrong kind.
        RuntimeError: the loss of a seed stopped being finite; the message names it and the columns.

    Cost:
        A step of five seeds costs 1.8 steps of one with the VAE, 2.4 with HI-VAE, 3.3 with IWAE and 3.7 with DReG, on
        one thread of a CPU. A method that is random, or needs more than inner products, is called once a seed.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"x": [0.1, 1.3, 2.2, 3.1, 4.7] * 8, "even": [True, False] * 20})
        >>> runs = fit_seeds(Table.from_frame(frame), lambda seed: gs.UPGrad(), seeds=range(3), epochs=2)
        >>> len(runs), list(runs[0].evaluate().errors)
        (3, ['x', 'even'])
    """
    return fit_stacked(
        "fit_seeds",
        table,
        build_method,
        seeds=seeds,
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
        checkpoint=checkpoint,
    )


def fit_stacked(
    caller: str,
    table: Table | Sequence[Table],
    build_method: Callable[[int], gs.Aggregator] | None,
    *,
    seeds: Sequence[int],
    progress: bool,
    title: str,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> list[Run]:
    """What :func:`fit` and :func:`fit_seeds` have in common; error messages name ``caller``."""
    settings = Settings(**options)
    settings.check(caller)
    _check_seeds(caller, seeds)
    tables = _one_a_seed(caller, table, len(seeds))
    methods = _methods(caller, build_method, seeds)
    built = _prepared(caller, tables, methods, settings, seeds)
    bests = [BestEpoch() for _ in built]
    loop = StackedLoop(caller, built, seeds, settings)
    state = StackedState(loop, [own.model for own in built], bests)
    identity = training_identity(settings, seeds, tables, methods)
    keeper = Checkpoint(caller, checkpoint, state, identity, settings.epochs)
    with keeper, progress_bar(settings.epochs, title, progress, loop.epoch) as bar:
        for _ in range(loop.epoch, settings.epochs):
            losses = loop.train_epoch()
            for own, best, loss in zip(built, bests, losses, strict=True):
                best.record(own.model, Epoch(loss, _validation_error(own)))
            keeper.update()
            bar.set_postfix_str(_medians(bests))
            bar.update()
    for own, best in zip(built, bests, strict=True):
        best.restore(own.model)
        own.model.eval().cpu()
    return [
        Run(own.model, own.table, own.encoding, own.split, tuple(best.history), best.index)
        for own, best in zip(built, bests, strict=True)
    ]


def _validation_error(own: Prepared) -> float:
    found = reconstruct(own.model, own.validation.features)
    if found.isnan().any():  # of broken weights: the mean would leave those columns out
        return math.nan
    return float(column_errors(own.table, own.split.validation, found).nanmean())


def _medians(bests: Sequence[BestEpoch]) -> str:
    which = "median " if len(bests) > 1 else ""
    last = median(best.history[-1].validation_error for best in bests)
    lowest = median(best.history[best.index].validation_error for best in bests)
    return f"{which}validation error {last:.4f}, best {lowest:.4f}"


def _one_a_seed(caller: str, table: Table | Sequence[Table], seeds: int) -> list[Table]:
    tables = [table] * seeds if isinstance(table, Table) else list(table) if isinstance(table, Sequence) else [table]
    for own in tables:
        if not isinstance(own, Table):
            raise TypeError(
                f"{caller}: `table` must be a Table, got {type(own).__name__}. Use Table.from_frame(frame)."
            )
    if len(tables[0]) < FEWEST_ROWS:
        raise ValueError(
            f"{caller}: `table` must have at least {FEWEST_ROWS} rows, got {len(tables[0])}. "
            "Fewer cannot be split into training, validation and test rows."
        )
    if len(tables) != seeds:
        raise ValueError(f"{caller}: `table` must be one table, or one a seed ({seeds}), got {len(tables)}.")
    if any(own.schema != tables[0].schema or len(own) != len(tables[0]) for own in tables):
        raise ValueError(f"{caller}: `table` must have the same schema and length for every seed, got others.")
    return tables


def _check_seeds(caller: str, seeds: Sequence[int]) -> None:
    if not isinstance(seeds, Sequence):
        raise TypeError(f"{caller}: `seeds` must be a sequence of integers, got {seeds!r}. Try range(5).")
    for seed in seeds:
        check_integer(caller, "seed", seed, 0)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"{caller}: `seeds` must be different and at least one, got {list(seeds)}. Try range(5).")


def _prepared(
    caller: str, tables: Sequence[Table], methods: Sequence[gs.Aggregator], settings: Settings, seeds: Sequence[int]
) -> list[Prepared]:
    built = []
    for own, method, seed in zip(tables, methods, seeds, strict=True):
        try:
            built.append(prepare(own, method, settings, seed))
        except ValueError as error:
            if len(seeds) == 1:
                raise
            raise ValueError(f"{caller}: with seed {seed}, {error}") from error
    return built


def _methods(
    caller: str, build_method: Callable[[int], gs.Aggregator] | None, seeds: Sequence[int]
) -> list[gs.Aggregator]:
    if build_method is None:
        return [gs.Sum() for _ in seeds]
    # An aggregator is callable too, with a Jacobian.
    if isinstance(build_method, gs.Aggregator) or not callable(build_method):
        raise TypeError(
            f"{caller}: `build_method` must be a function of the seed, got {build_method!r}. "
            "Try lambda seed: gs.UPGrad()."
        )
    methods = [build_method(seed) for seed in seeds]
    if all(isinstance(method, gs.Aggregator) for method in methods):  # else the impartiality block tells
        _check_methods(caller, methods)
    return methods


def _check_methods(caller: str, methods: Sequence[gs.Aggregator]) -> None:
    kinds = sorted({type(method).__name__ for method in methods})
    if len(kinds) > 1:
        raise ValueError(f"{caller}: `build_method` must make one kind of method, got {', '.join(kinds)}.")
    parts = [id(part) for method in methods for part in method.modules()]
    if len(set(parts)) < len(parts):
        raise ValueError(
            f"{caller}: `build_method` must make a new method for each seed, got the same one again. "
            "What it learns belongs to one run."
        )
    options = sorted(set(map(describe_method, methods)))
    if len(options) > 1:
        raise ValueError(
            f"{caller}: `build_method` must make methods with the same options, got {' and '.join(options[:2])}. "
            "Use the seed for random ones alone."
        )
