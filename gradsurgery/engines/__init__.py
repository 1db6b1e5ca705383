"""How per-loss gradients are obtained. Numbers do not depend on the engine: what one cannot do, it refuses."""

from .base import Block, Engine, PerLossGradients, PlainSum, Request
from .choice import choose_engine
from .func import Func, functional_jacobian
from .loop import Loop

__all__ = [
    "Block",
    "Engine",
    "Func",
    "Loop",
    "PerLossGradients",
    "PlainSum",
    "Request",
    "choose_engine",
    "functional_jacobian",
]
