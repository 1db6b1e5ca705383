"""What a comparison may be asked for, checked before anything is trained."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import distributed

from .arms import weightings
from .training import Preview, Training


def check_training(training: Training) -> None:
    """Raises where what is to be trained, or where, is of the wrong kind."""
    named = {name: getattr(training, name) for name in ("build", "losses", "evaluate", "optimizer")}
    optional = {name: getattr(training, name) for name in ("validate", "scheduler")}
    for name, value in {**named, **{key: own for key, own in optional.items() if own is not None}}.items():
        if not callable(value):
            raise TypeError(f"compare: `{name}` must be a function, got {type(value).__name__}.")
    batches: Any = training.batches
    if not callable(batches):
        if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
            raise TypeError(
                f"compare: `batches` must be a DataLoader, a list or a function of the epoch, got "
                f"{type(batches).__name__}."
            )
        if isinstance(batches, Iterator):
            raise TypeError(
                f"compare: `batches` must be something to iterate again and again, got {type(batches).__name__}, "
                f"which is used up after one epoch. Pass a list, a DataLoader, or lambda epoch: ..."
            )
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise RuntimeError(
            f"compare: `build` must be trained by one process, got a group of {distributed.get_world_size()}. "
            f"Compare on one rank, before torch.distributed is set up."
        )


def whole_number(value: object, name: str) -> int:
    """The number, if it is a whole one >= 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"compare: `{name}` must be a whole number, got {value!r}.")
    if value < 1:
        raise ValueError(f"compare: `{name}` must be at least 1, got {value}.")
    return int(value)


def seeds_of(seeds: int | Sequence[int]) -> list[int]:
    """The seeds, for their number 0, 1, ..."""
    if isinstance(seeds, int | np.integer):
        return list(range(whole_number(seeds, "seeds")))
    given = list(seeds)
    if not given or len(set(given)) < len(given) or not all(isinstance(seed, int | np.integer) for seed in given):
        raise ValueError(f"compare: `seeds` must be a number of seeds or different whole numbers, got {seeds!r}.")
    return [int(seed) for seed in given]


def rates_of(learning_rates: Sequence[float]) -> list[float]:
    """The learning rates."""
    given = [learning_rates] if isinstance(learning_rates, int | float) else list(learning_rates)
    rates = [float(rate) for rate in given]
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates) or len(set(rates)) < len(rates):
        raise ValueError(f"compare: `learning_rates` must be different numbers > 0, got {learning_rates!r}.")
    return rates


def weights_of(static_weights: Sequence[Sequence[float]] | None, preview: Preview) -> list[tuple[float, ...]]:
    """The static weightings, each once."""
    names = list(preview.losses)
    if static_weights is None:
        return list(dict.fromkeys(weightings(names, preview.losses))) if len(names) > 1 else []
    weights = list(dict.fromkeys(tuple(float(weight) for weight in own) for own in static_weights))
    for own in weights:
        if len(own) != len(names) or not all(map(math.isfinite, own)):
            raise ValueError(
                f"compare: `static_weights` must hold a finite number for each of the losses {names}, got "
                f"{list(own)}."
            )
    return weights


def tasks_of(tasks: Mapping[str, str | None] | None, preview: Preview, wanted: bool) -> dict[str, str | None]:
    """The loss of each metric."""
    known = {metric: metric if metric in preview.losses else None for metric in preview.metrics}
    for metric, task in (tasks or {}).items():
        if metric not in known or (task is not None and task not in preview.losses):
            raise ValueError(
                f"compare: `tasks` must lead from the metrics {list(known)} to the losses {list(preview.losses)} or "
                f"None, got {metric!r}: {task!r}."
            )
        known[metric] = task
    lost = [metric for metric, task in known.items() if task is None and metric not in (tasks or {})]
    if wanted and lost:
        raise ValueError(
            f"compare: `tasks` must say which of the losses {list(preview.losses)} each metric belongs to, got "
            f"nothing for {lost}. Name metrics like their losses, pass tasks={{{lost[0]!r}: ...}}, where None stands "
            f"for no single loss, or single_task=False."
        )
    return known


def higher_of(higher_is_better: Sequence[str], preview: Preview) -> list[str]:
    """The metrics that are better when higher."""
    given = [higher_is_better] if isinstance(higher_is_better, str) else list(higher_is_better)
    unknown = [metric for metric in given if metric not in preview.metrics]
    if unknown:
        raise ValueError(
            f"compare: `higher_is_better` must name metrics out of {list(preview.metrics)}, got {unknown}."
        )
    return given


__all__ = ["check_training", "higher_of", "rates_of", "seeds_of", "tasks_of", "weights_of", "whole_number"]
