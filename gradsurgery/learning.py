"""Learned numbers, one a loss: steps of Adam on buffers instead of parameters."""

import torch
from torch import Tensor

from .state import Stateful

_EPSILON = 1e-8


class PerLossAdam(Stateful):
    r"""Adam for one number a loss; losses that are absent, or say so, stand still and count no step.

    .. math:: x \leftarrow x - \gamma \, \hat m / (\sqrt{\hat v} + 10^{-8})

    Args:
        lr: Step size, > 0.
        betas: Decay of the two moments, in [0, 1).
    """

    def __init__(self, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__()
        self.lr = lr
        self.betas = betas
        for name in ("first_moment", "second_moment", "steps"):
            self.register_per_loss(name, 0.0)

    def change(self, gradient: Tensor, present: Tensor | None = None) -> Tensor:
        """Takes the gradient into account and returns what to add, zero where ``present`` is False.

        Shape:
            - gradient: ``(..., K)``.
            - present: ``(..., K)``, or None: all of them.
            - output: ``(..., K)``.
        """
        moving = torch.ones_like(gradient, dtype=torch.bool) if present is None else present
        first = self.recall("first_moment", gradient)
        second = self.recall("second_moment", gradient)
        steps = self.recall("steps", gradient)
        taken = steps + 1
        new_first = torch.lerp(first, gradient, 1 - self.betas[0])
        new_second = torch.lerp(second, gradient.square(), 1 - self.betas[1])
        denominator = (new_second / (1 - self.betas[1] ** taken)).sqrt() + _EPSILON
        change = -self.lr * new_first / (1 - self.betas[0] ** taken) / denominator
        self.remember("first_moment", torch.where(moving, new_first, first))
        self.remember("second_moment", torch.where(moving, new_second, second))
        self.remember("steps", torch.where(moving, taken, steps))
        return torch.where(moving, change, 0.0)
