"""Two ways for code that is not ours to run a surgery: a closure that it calls, a scalar that it differentiates."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .losses import Losses, is_several
from .surgery import Surgery


class Surgeon(Protocol):
    """Differentiates losses, with the weights of the first surgery of the step if this is a later one."""

    def __call__(self, losses: Losses, first: Surgery | None) -> Surgery: ...


class SurgeryClosure:
    """A closure for the wrapped optimizer that differentiates several losses itself.

    Args:
        perform: Does one surgery.
        closure: The user's.
        always: Whether the closure always returns losses, and is handed on without being called here.
    """

    def __init__(self, perform: Surgeon, closure: Callable[[], Any], *, always: bool) -> None:
        self._perform = perform
        self._closure = closure
        self._always = always
        self._first: Surgery | None = None
        self.several = False
        """Whether the losses were handed over, and not a backward pass done already."""

    def __call__(self) -> Any:
        result: Any = self._closure
        if not self._always:
            with torch.enable_grad():
                result = self._closure()
            if not is_several(result):
                return result
        self.several = True
        surgery = self._perform(result, self._first)
        self._first = self._first or surgery
        if surgery.weights is None or surgery.weights.ndim != 1:
            return surgery.losses.sum()
        return (surgery.weights.to(surgery.losses.device) * surgery.losses).sum()


class SurgeryOnBackward(torch.autograd.Function):
    """A scalar that depends on nothing, and performs the surgery when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, handle: Tensor, value: Tensor, perform: Callable[[Tensor], object]) -> Tensor:
        ctx.perform = perform
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.perform(gradient)
        return None, None, None
