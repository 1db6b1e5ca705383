"""How per-loss gradients are obtained. Numbers do not depend on the engine: what one cannot do, it refuses."""

from .base import Engine, Request
from .batched import Batched
from .choice import choose_engine
from .data_parallel import all_items, sums_of_all_items
from .func import Func, functional_jacobian
from .ghost import Ghost
from .instances import Instances
from .loop import Loop
from .per_loss import Block, Jacobian, PerLossGradients, PlainSum, SharedGradients
from .sharded import Sharded

__all__ = [
    "Batched",
    "Block",
    "Engine",
    "Func",
    "Ghost",
    "Instances",
    "Jacobian",
    "Loop",
    "PerLossGradients",
    "PlainSum",
    "Request",
    "Sharded",
    "SharedGradients",
    "all_items",
    "choose_engine",
    "functional_jacobian",
    "sums_of_all_items",
]
