"""Leaves the first reduction of DistributedDataParallel with a static graph to the trainer's own backward pass.

In the first pass that comes, whatever it is for, such a model counts how often each parameter got a gradient, and
goes by that for ever: after one of ``torch.autograd.grad``, it would never average any.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import is_available, is_initialized

from .graph import PASSAGE, Reach

_ARRANGED = "_static_graph_delay_allreduce_enqueued"


def leave_first_reduction(graph: Reach) -> list[Any]:
    """Lets the models with a static graph that wait for their first backward pass overlook those to come; these."""
    if not (is_available() and is_initialized()):
        return []
    passed = [node.ddp_weakref() for node, name in graph.names.items() if name == PASSAGE]
    waiting = [model for model in passed if model.static_graph and not getattr(model, _ARRANGED)]
    for model in waiting:
        setattr(model, _ARRANGED, True)
    return waiting


@contextmanager
def first_reduction_restored(waiting: list[Any]) -> Iterator[None]:
    """Has them wait again afterwards.

    Args:
        waiting: What :func:`leave_first_reduction` returned within it is added here.
    """
    try:
        yield
    finally:
        for model in waiting:
            setattr(model, _ARRANGED, False)
        waiting.clear()
