"""The same training under several methods and the baselines that any method has to beat."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .arms import Arm, MethodLike, arms_of, entries_of
from .checks import check_training, higher_of, rates_of, seeds_of, tasks_of, weights_of, whole_number
from .comparison import Comparison
from .record import Record
from .runner import Runner
from .seeding import Batches, random_state_kept
from .steps import LossesOf
from .training import Evaluate, Training
from .trial import written


def compare(
    build: Callable[[], nn.Module],
    losses: LossesOf,
    batches: Batches,
    evaluate: Evaluate,
    *,
    methods: Sequence[MethodLike | Arm] | Mapping[str, MethodLike | Arm],
    epochs: int = 10,
    optimizer: Callable[[Any, float], Optimizer] | None = None,
    learning_rates: Sequence[float] = (1e-3,),
    static_weights: Sequence[Sequence[float]] | None = None,
    validate: Evaluate | None = None,
    scheduler: Callable[[Any], Any] | None = None,
    seeds: int | Sequence[int] = 3,
    single_task: bool = True,
    tasks: Mapping[str, str | None] | None = None,
    higher_is_better: Sequence[str] = (),
    out: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    r"""Runs the same training under several methods and under the baselines, and puts them into one table.

    The baselines are the plain sum; the best of several static weightings, ``"tuned weights"``; and one network of
    the same build for each loss, ``"single task"``. All have the same grid of learning rates. Each is tuned on the
    first seed, and what is chosen there is trained on all seeds.

    Guarantees:
        the same conditions: in each seed all start from the same weights, see the same batches in the same order and
            draw the same dropout, as long as these come from the random numbers of torch, NumPy or Python, or from a
            generator of a DataLoader or its sampler. The table says so where weights or batches did differ.
        the caller's random state is left alone.
        nothing is lost: a training that raises is recorded, and the others go on; with ``out``, a second call trains
            only what is missing.

    Args:
        build: Makes the model, on its device; called once a training.
        losses: ``losses(model, batch)`` returns a dict of scalars, or a sequence. None stands for a loss that is
            absent; a loss may also be a function that returns it, called only where that loss is wanted: with one
            loss a step and in single-task networks the others then cost nothing.
        batches: The batches of an epoch, anything that can be iterated again and again, such as a DataLoader; or a
            function of the epoch's number that returns them.
        evaluate: ``evaluate(model)`` returns a dict of metrics, called in evaluation mode without gradients.
        methods: Names, classes or instances; or a dict of these, or functions that build a method, or :class:`Arm`,
            under labels of your own.
        epochs: How many, >= 1.
        optimizer: ``optimizer(parameters, learning_rate)``. ``None``: Adam.
        learning_rates: The grid, > 0.
        static_weights: The weightings to choose from, one number a loss. ``None``: equal ones, one over the losses
            at the start, and each loss times 3 and 10, or times 5 where there are more than three. Empty: none.
        validate: Like ``evaluate``, on other data: candidates are chosen by it. ``None``: by ``evaluate``, which
            flatters what is tuned.
        scheduler: ``scheduler(optimizer)``, a learning rate scheduler that is stepped after each step.
        seeds: Their number, or the seeds.
        single_task: Whether there are single-task networks.
        tasks: The loss that each metric belongs to, or None where it belongs to no single one. ``None``: metrics are
            called as their losses.
        higher_is_better: The metrics of which that is true; all others are better when lower.
        out: A JSON file that is written after each training. Where it exists, what is in it is not trained again.
        progress: Whether each training is reported on standard error.

    Returns:
        The comparison, which prints as a table.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of its range, or ``out`` holds another comparison.
        RuntimeError: There are several ranks.
        Exception: Every training failed; it is what the first one raised.

    Cost:
        For L learning rates, W weightings, M methods, K losses and S seeds, ``L (M + 1 + W + K)`` trainings on the
        first seed and ``M + 2 + K`` on each other one.

    References:
        The change against single-task networks: Maninis, Radosavovic and Kokkinos, Attentive single-tasking of
        multiple tasks, CVPR 2019 (arXiv:1904.08918). With mean ranks: Navon et al., Multi-task learning as a
        bargaining game, ICML 2022 (arXiv:2202.01017).

    Example:
        >>> def build():
        ...     model = nn.Linear(1, 1, bias=False)
        ...     nn.init.zeros_(model.weight)
        ...     return model
        >>> def losses(model, batch):
        ...     x = model.weight[0, 0]
        ...     return {"low": 1 + (x + 1) ** 2, "high": 1 + 3 * (x - 1) ** 2}
        >>> def evaluate(model):
        ...     return {name: float(loss) for name, loss in losses(model, None).items()}
        >>> comparison = compare(
        ...     build, losses, [None] * 50, evaluate, methods=["mgda"], epochs=2, seeds=1, progress=False,
        ...     optimizer=torch.optim.SGD, learning_rates=[0.1], static_weights=[[0.5, 1.5]],
        ... )
        >>> for row in comparison.rows:
        ...     print(f"{row.label:14s} {row.means['low']:.2f} {row.means['high']:.2f} {row.delta:+.0f}%")
        single task    1.00 1.00 +0%
        sum            3.25 1.75 +150%
        tuned weights  4.24 1.12 +168%
        mgda           2.00 4.00 +200%
    """
    training = Training(
        build, losses, batches, evaluate, validate, torch.optim.Adam if optimizer is None else optimizer,
        scheduler, whole_number(epochs, "epochs"),
    )  # fmt: skip
    arms, numbers, rates = arms_of(methods), seeds_of(seeds), rates_of(learning_rates)
    check_training(training)
    with random_state_kept():
        preview = training.look(numbers[0], rates[0])
        weights = weights_of(static_weights, preview)
        settings = {
            "epochs": training.epochs,
            "learning_rates": rates,
            "static_weights": [list(one) for one in weights],
            "losses": list(preview.losses),
            "metrics": list(preview.metrics),
            "tasks": tasks_of(tasks, preview, single_task),
            "higher_is_better": higher_of(higher_is_better, preview),
            "validated": validate is not None,
            "seeds": numbers,
            "optimizer": preview.optimizer,
            "scheduler": preview.scheduler,
            "batches": preview.length,
            "first_batch": preview.batch,
            "first_losses": {name: written(value) for name, value in preview.losses.items()},
        }
        entries = entries_of(arms, rates, weights, list(preview.losses) if single_task else [])
        trials = Runner(training, preview, Record(out, settings), progress).run(entries, numbers)
    comparison = Comparison(settings, trials)
    _warn_unless_fair(comparison)
    return comparison


def _warn_unless_fair(comparison: Comparison) -> None:
    if not comparison.fair:
        warnings.warn(
            "compare: `build` and `batches` must draw from torch's, NumPy's or Python's random numbers for all "
            "methods to start from the same weights and see the same batches, which they did not.",
            UserWarning,
            stacklevel=3,
        )


__all__ = ["compare"]
