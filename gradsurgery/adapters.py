"""Two ways for code that is not ours to run a surgery: a closure that it calls, a scalar that it differentiates."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .losses import Losses, is_several, named_losses
from .surgery import Surgery


class Surgeon(Protocol):
    """Differentiates losses, with the weights given or else the method's."""

    def __call__(self, losses: Losses, weights: Tensor | None) -> Surgery: ...


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

    def __call__(self) -> Any:
        fixed = None if self._first is None else self._first.weights
        if self._always:
            surgery = self._perform(self._closure, fixed)
        else:
            with torch.enable_grad():
                result = self._closure()
            if not is_several(result):
                return result
            self._check_names(named_losses(result).names)
            surgery = self._perform(result, fixed)
        self._check_names(surgery.names)
        self._first = self._first or surgery
        if surgery.weights is None or surgery.weights.ndim != 1:
            return surgery.losses.sum()
        return (surgery.weights.to(surgery.losses.device) * surgery.losses).sum()

    def _check_names(self, names: tuple[str, ...]) -> None:
        if self._first is not None and names != self._first.names:
            raise ValueError(
                f"MultiObjectiveOptimizer: `closure` must return the same losses in every call of a step, got "
                f"{list(names)} after {list(self._first.names)}."
            )


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
