"""Leaves the first reduction of DistributedDataParallel with a static graph to the trainer's own backward pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributed import is_available, is_initialized

from ..losses import Losses
from .graph import PASSAGE, reach

_ARRANGED = "_static_graph_delay_allreduce_enqueued"


@contextmanager
def first_reduction_left(losses: Losses) -> Iterator[None]:
    """Differentiates within it without being taken for the first backward pass of a training.

    In the first pass that comes, whatever it is for, such a model counts how often each parameter got a gradient, and
    goes by that for ever: after one of ``torch.autograd.grad``, it would never average any.

    Args:
        losses: As :meth:`gradsurgery.MultiObjectiveOptimizer.backward` takes them; a callable's graph is not known.
    """
    waiting = _waiting(losses) if is_available() and is_initialized() else []
    for model in waiting:
        setattr(model, _ARRANGED, True)
    try:
        yield
    finally:
        for model in waiting:
            setattr(model, _ARRANGED, False)


def _waiting(losses: Losses) -> list[Any]:
    """The models with a static graph that the losses passed through, before their first backward pass."""
    if callable(losses):
        return []
    given = losses.values() if isinstance(losses, Mapping) else [losses] if isinstance(losses, Tensor) else losses
    names = reach([loss for loss in given if isinstance(loss, Tensor)]).names
    passed = [node.ddp_weakref() for node, name in names.items() if name == PASSAGE]
    return [model for model in passed if model.static_graph and not getattr(model, _ARRANGED)]
