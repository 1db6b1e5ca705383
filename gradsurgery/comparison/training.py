"""One training from the initial weights to the metrics."""

import math
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

from .arms import Candidate, Entry
from .fingerprint import fingerprint
from .seeding import Batches, endless, seed_everything, stream
from .steps import LossesOf, Steps, named_values, steps_of
from .trial import Trial

Evaluate: TypeAlias = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Training:
    """What all trainings of a comparison have in common: see :func:`compare`."""

    build: Callable[[], nn.Module]
    losses: LossesOf
    batches: Batches
    evaluate: Evaluate
    validate: Evaluate | None
    optimizer: Callable[[Any, float], Optimizer]
    scheduler: Callable[[Any], Any] | None
    epochs: int
    _built: WeakSet[nn.Module] = field(default_factory=WeakSet, init=False, repr=False)

    def model(self, seed: int) -> nn.Module:
        """The model with the initial weights of a seed."""
        seed_everything(seed, "model")
        torch.manual_seed(torch.initial_seed())  # also devices that `build` is the first to use
        model = self.build()
        if not isinstance(model, nn.Module):
            raise TypeError(f"compare: `build` must return a torch.nn.Module, got {type(model).__name__}.")
        self._check_new(model)
        return model

    def _check_new(self, model: nn.Module) -> None:
        for module in model.modules():
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                if module in self._built:
                    raise ValueError(
                        f"compare: `build` must make new weights each time, got the same {type(module).__name__} "
                        f"again, which other trainings change. Make it, or copy it, within `build`."
                    )
                self._built.add(module)

    def look(self, seed: int, learning_rate: float) -> "Preview":
        """What the losses and metrics are called, from the first batch and a model that has not been trained."""
        model = self.model(seed)
        start = fingerprint(model.state_dict())
        optimizer, scheduler = self._options(model, learning_rate)
        found = next(stream(self.batches, seed, 0), None)
        if found is None:
            raise ValueError("compare: `batches` must hold at least one batch, got none.")
        batch = found[0]
        values = {
            name: math.nan if loss is None else float(loss.detach())
            for name, loss in named_values(self.losses, model, batch).items()
        }
        metrics = measured(self.evaluate, model, seed, "evaluate")
        validated = metrics if self.validate is None else measured(self.validate, model, seed, "validate")
        if set(validated) != set(metrics):
            raise ValueError(
                f"compare: `validate` must return the metrics of `evaluate`, {list(metrics)}, got {list(validated)}."
            )
        length = len(self.batches) if isinstance(self.batches, Sized) else None
        return Preview(values, tuple(metrics), start, fingerprint(batch), length, optimizer, scheduler)

    def _options(self, model: nn.Module, learning_rate: float) -> tuple[str, str]:
        """Those of the optimizer and of the scheduler, to tell one comparison from another."""
        try:
            optimizer = self.optimizer(list(model.parameters()), learning_rate)
            words = _in_words(optimizer)
            scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        except Exception:  # the trainings will raise it, perhaps not with every learning rate
            return "unknown", "unknown"
        if scheduler is None:
            return words, "none"
        return words, f"{type(scheduler).__name__} #{fingerprint(scheduler.state_dict()):08x}"

    def run(self, entry: Entry, candidate: Candidate, seed: int, preview: "Preview", metrics: Sequence[str]) -> Trial:
        """Trains once.

        Args:
            entry: Who.
            candidate: With what.
            seed: Of everything random.
            preview: What the losses are called.
            metrics: Those that count.
        """
        model = self.model(seed)
        start = fingerprint(model.state_dict())
        optimizer = self.optimizer(list(model.parameters()), candidate.learning_rate)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"compare: `optimizer` must return an optimizer, got {type(optimizer).__name__}.")
        method = None if entry.arm is None else entry.arm.build(seed)
        others = endless(self.batches, seed, "further batches")
        weights = None if candidate.weights is None else dict(zip(preview.losses, candidate.weights, strict=True))
        steps = steps_of(entry, weights, model, optimizer, self.losses, method, others)
        scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        curve: list[dict[str, float]] = []
        seconds, count, order = 0.0, 0, 0
        while len(curve) < self.epochs and (not curve or _is_finite(model)):
            began = _now()
            taken, order = self._epoch(model, steps, scheduler, seed, len(curve), order)
            seconds, count = seconds + _now() - began, count + taken
            curve.append(self._measured(self.validate or self.evaluate, model, seed, metrics))
        if self.validate is None:
            final = curve[-1]
        else:
            final = self._measured(self.evaluate, model, seed, metrics)
        return Trial(
            label=entry.label,
            task=entry.task,
            seed=seed,
            learning_rate=candidate.learning_rate,
            weights=candidate.weights,
            method=entry.words,
            metrics=final,
            curve=tuple(curve),
            seconds=seconds,
            steps=count,
            start=start,
            order=order,
        )

    def _epoch(
        self, model: nn.Module, steps: Steps, scheduler: Any, seed: int, epoch: int, order: int
    ) -> tuple[int, int]:
        """One pass over the batches: how many steps it took, and the checksum with its first batch."""
        model.train()
        taken = 0
        for batch, replay in stream(self.batches, seed, epoch):
            if not taken:
                order = fingerprint(batch, order)
            steps(batch, replay)
            if scheduler is not None:
                scheduler.step()
            taken += 1
        if not taken:
            raise ValueError(
                f"compare: `batches` must hold batches in every epoch, got none in epoch {epoch}. Iterators are used "
                f"up after one: pass a list, a DataLoader, or lambda epoch: ..., which makes new ones."
            )
        steps.next_epoch()
        return taken, order

    def _measured(self, evaluate: Evaluate, model: nn.Module, seed: int, metrics: Sequence[str]) -> dict[str, float]:
        """The metrics, NaN where the training has diverged or one is missing."""
        found = measured(evaluate, model, seed, "evaluate") if _is_finite(model) else {}
        return {name: found.get(name, math.nan) for name in metrics}


@dataclass(frozen=True)
class Preview:
    """What is seen without training.

    Args:
        losses: On the first batch.
        metrics: Their names.
        start: A checksum of the initial weights.
        batch: A checksum of the first batch.
        length: How many batches an epoch has, where that is known.
        optimizer: Its options in words.
        scheduler: Its options, as a checksum.
    """

    losses: dict[str, float]
    metrics: tuple[str, ...]
    start: int
    batch: int
    length: int | None
    optimizer: str
    scheduler: str


def measured(evaluate: Evaluate, model: nn.Module, seed: int, argument: str) -> dict[str, float]:
    """The metrics of a model, in evaluation mode and without a graph.

    Raises:
        TypeError: They come as something else than a dict of numbers.
    """
    seed_everything(seed, "evaluation")
    model.eval()
    with torch.no_grad():
        found = evaluate(model)
    if not isinstance(found, Mapping) or not found:
        raise TypeError(
            f'compare: `{argument}` must return a dict of metrics such as {{"error": 0.1}}, got {found!r}.'
        )
    try:
        return {str(name): float(value) for name, value in found.items()}
    except (TypeError, ValueError) as error:
        raise TypeError(f"compare: `{argument}` must return a number for each metric, got {found!r}.") from error


def _in_words(optimizer: Optimizer) -> str:
    groups = [
        ", ".join(f"{name}={value!r}" for name, value in group.items() if name not in ("params", "param_names", "lr"))
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__}({'; '.join(groups)})"


def _is_finite(model: nn.Module) -> bool:
    """Whether what is trained is; what is frozen may hold infinities of its own, such as a mask."""
    return all(bool(each.detach().isfinite().all()) for each in model.parameters() if each.requires_grad)


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


__all__ = ["Evaluate", "Preview", "Training", "measured"]
