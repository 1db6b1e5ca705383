"""How per-loss gradients are obtained. The numbers never depend on which engine ran."""

from .base import Block, Engine, PerLossGradients, Request
from .func import Func, functional_jacobian
from .loop import Loop

__all__ = ["Block", "Engine", "Func", "Loop", "PerLossGradients", "Request", "functional_jacobian"]
