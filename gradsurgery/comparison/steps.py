"""One step of a training: by the plain or weighted sum of the losses, by one loss alone, or by a method."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..looking import Look
from ..optimizer import MultiObjectiveOptimizer
from .arms import Arm, Entry, Method

LossesOf: TypeAlias = Callable[[Any, Any], Mapping[str, Any] | Sequence[Any]]
Replay: TypeAlias = Callable[[], None]


class Steps(Protocol):
    """Steps an optimizer batch by batch."""

    def __call__(self, batch: Any, replay: Replay) -> None:
        """Steps on one batch; ``replay`` brings the random state back to where it is now."""

    def next_epoch(self) -> None:
        """Says that an epoch is over."""


def named_values(losses: LossesOf, model: nn.Module, batch: Any, only: str | None = None) -> dict[str, Tensor | None]:
    """The losses of a batch by name, all of them or one; those given as functions are called if they are wanted.

    Raises:
        TypeError: They come as something else.
    """
    found: Any = losses(model, batch)
    if isinstance(found, Sequence) and not isinstance(found, str):
        found = {str(position): loss for position, loss in enumerate(found)}
    if not isinstance(found, Mapping):
        raise TypeError(
            f"compare: `losses` must return a dict of scalars, got {type(found).__name__}. Return the losses, not "
            f'their sum: {{"depth": ..., "labels": ...}}.'
        )
    wanted = {str(name): loss if only is None or name == only else None for name, loss in found.items()}
    values = {name: loss() if callable(loss) else loss for name, loss in wanted.items()}
    for name, value in values.items():
        if not (value is None or isinstance(value, Tensor)):
            raise TypeError(
                f"compare: `losses` must return tensors, got {value!r} as {name!r}. Leave out what is no loss, or "
                f"return None where it is absent."
            )
    return values


class Summed:
    """Steps along the gradient of a weighted sum.

    Args:
        model: What is trained.
        optimizer: Over its parameters.
        losses: Computes the losses of a batch.
        weights: By loss. ``None``: the plain sum.
        task: The loss that counts. ``None``: all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        losses: LossesOf,
        weights: Mapping[str, float] | None = None,
        task: str | None = None,
    ) -> None:
        self._model, self._optimizer, self._losses = model, optimizer, losses
        self._weights, self._task = weights, task

    def __call__(self, batch: Any, replay: Replay) -> None:
        self._optimizer.zero_grad()
        values = named_values(self._losses, self._model, batch, self._task)
        present = {name: loss for name, loss in values.items() if loss is not None}
        weights = self._weights
        if weights is not None and not weights.keys() >= present.keys():
            raise ValueError(
                f"compare: `losses` must be called {list(weights)} in every batch, with None for those that are "
                f"absent, got {list(present)}. There is a weight for each of the first batch."
            )
        terms = [loss if weights is None else weights[name] * loss for name, loss in present.items()]
        if terms:
            total: Any = sum(terms)
            total.backward()
            self._optimizer.step()

    def next_epoch(self) -> None:
        """Nothing to do."""


class ByMethod:
    """Steps along the direction of a method, and gives it what else it asks for.

    Args:
        model: What is trained.
        optimizer: Over its parameters.
        losses: Computes the losses of a batch.
        arm: How the method takes part.
        method: An instance of it.
        others: Further batches, for methods that look at several in a step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        losses: LossesOf,
        arm: Arm,
        method: Method,
        others: Iterator[Any],
    ) -> None:
        self._model, self._inner, self._losses = model, optimizer, losses
        self._arm, self._method, self._others = arm, method, others
        self._wrapper: MultiObjectiveOptimizer | None = None
        self._taken = 0

    def __call__(self, batch: Any, replay: Replay) -> None:
        self._inner.zero_grad()
        if hasattr(self._method, "observe"):
            self._observe()
            replay()
        values = self._turn(batch) if self._arm.one_loss_a_step else self._values(batch)
        if all(loss is None for loss in values.values()):
            return
        optimizer = self._wrapped()
        optimizer.backward(values)
        optimizer.step()
        if getattr(self._method, "wants_second_look", False):
            replay()  # the same draws of dropout as before the step
            with torch.no_grad():
                optimizer.update(self._values(batch))

    def next_epoch(self) -> None:
        """For those that compare epochs."""
        over = getattr(self._method, "next_epoch", None)
        if callable(over):
            over()

    def _values(self, batch: Any, only: str | None = None) -> dict[str, Tensor | None]:
        return named_values(self._losses, self._model, batch, only)

    def _wrapped(self, shared: list[Tensor] | None = None) -> MultiObjectiveOptimizer:
        if self._wrapper is None:
            scope = self._arm.scope
            name_parameters(self._inner, self._model)
            self._wrapper = MultiObjectiveOptimizer(self._inner, self._method, shared=shared, scope=scope)
        return self._wrapper

    def _observe(self) -> None:
        first, second = (self._values(next(self._others)) for _ in range(2))
        self._wrapped().observe(first, second)

    def _turn(self, batch: Any) -> dict[str, Tensor | None]:
        """The losses with all but the one whose turn it is set to None."""
        if self._wrapper is None:  # one loss alone does not show what is shared
            values = self._values(batch)
            present = {name: loss for name, loss in values.items() if loss is not None}
            rows = Look(self._model, caller="compare").rows(present, retain_graph=True)[1]
            if not rows:
                raise ValueError(
                    f"compare: `losses` must share parameters for steps of one loss each, got {list(present)} with "
                    f"none in common. Tag what they share with gs.tag_shared."
                )
            parameters = dict(self._model.named_parameters())
            self._wrapped([parameters[name] for name in rows])
            self._names = list(values)
            turn = self._names[0]
            return {name: loss if name == turn else None for name, loss in values.items()}
        self._taken += 1
        return self._values(batch, self._names[self._taken % len(self._names)])


def name_parameters(optimizer: Optimizer, model: nn.Module) -> None:
    """Tells an optimizer what its parameters are called, as named ones do: a scope of modules goes by the names."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        if all(id(parameter) in names for parameter in group["params"]):
            group.setdefault("param_names", [names[id(parameter)] for parameter in group["params"]])


def steps_of(
    entry: Entry,
    weights: Mapping[str, float] | None,
    model: nn.Module,
    optimizer: Optimizer,
    losses: LossesOf,
    method: Method | None,
    others: Iterator[Any],
) -> Steps:
    """How one that takes part steps."""
    if entry.arm is None or method is None:
        return Summed(model, optimizer, losses, weights, entry.task)
    return ByMethod(model, optimizer, losses, entry.arm, method, others)


__all__ = ["LossesOf", "Steps", "name_parameters", "named_values", "steps_of"]
