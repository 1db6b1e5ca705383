"""Fast adaptive multi-task optimization."""

import math
import warnings

import torch
from torch import Tensor

from ..learning import PerLossAdam
from .given import Given, Numbers

_ROUNDING = 1e-12  # of a loss, relative: a lead this small is none, and Adam would make a full step of its sign

_PATIENCE = 100  # calls in training before a missing second look is reported


class FAMO(Given):
    r"""Lets all losses fall at the same relative rate, from their values before and after each step.

    .. math:: s = \sum_k c z_k \log D_k, \quad D = L - b, \quad z = \operatorname{softmax}(\xi), \quad
        \frac1c = \sum_k \frac{z_k}{D_k}

    c and z are held fixed, so that the weights :math:`c z_k / D_k` are positive and sum to 1. After the step,
    :meth:`Scalarizer.update` takes the losses on the same batch and

    .. math:: \xi \leftarrow \operatorname{Adam}\Bigl(\xi, \; \frac{\partial z}{\partial \xi}^{\top}
        \bigl(\log D(\text{before}) - \log D(\text{after})\bigr) + \gamma \xi\Bigr)

    Without it nothing is learned; after 100 such calls in training, a warning says so.

    A loss at its minimum, :math:`D_k = 0`, is solved: its weight is 0 and its logit stands still. One that a step
    takes below its minimum counts as solved by that step.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        monotone: no loss is weighed negatively.
        scale_equivariant: the weights do not depend on the common scale of the losses.
        invariant_to_units: in another unit, a loss keeps its share of the weighed sum, ``w_k L_k``.
        constant_total: the weights add up to 1, unless all losses are at their minimum.
        one_loss_is_identity: one loss has weight 1.
        state_round_trip: logits, Adam's moments and the logarithms since the last call are the state.

    Scales are changed with ``minimum``, if one is given.

    Args:
        lr: Adam's step on the logits, > 0. The authors' is 0.025.
        decay: :math:`\gamma`, how strongly the logits are pulled to zero, >= 0. The authors use 1e-3 and 1e-2.
        minimum: The losses' lower bounds b, one number an objective. ``None``: zero.

    Shape:
        - losses: ``(K,)``, not below ``minimum``.
        - output: ``()``.

    Raises:
        ValueError: An option is out of its range, or a loss is below ``minimum``.

    Cost:
        One backward pass and, for the second look, one forward pass; a state of 5K numbers.

    References:
        Liu, Feng, Stone and Liu, FAMO: fast adaptive multitask optimization, NeurIPS 2023 (arXiv:2306.03792).

    Example:
        >>> method = FAMO(lr=1.0)
        >>> losses = torch.tensor([1.0, 4.0], requires_grad=True)
        >>> torch.autograd.grad(method(losses), losses)  # starts by dividing by the losses
        (tensor([0.8000, 0.2000]),)
        >>> method.update(torch.tensor([0.5, 4.0]))  # the first one fell
        >>> torch.autograd.grad(method(losses), losses)  # and now counts less
        (tensor([0.3512, 0.6488]),)
    """

    # Departs from Liu et al., algorithm 1: there a plain gradient step on the logits; Adam is that of their code. It
    # also adds 1e-8 to D, which decides for small losses, and clips the gradient's norm at 1, which the user may.

    wants_second_look = True

    def __init__(self, lr: float = 0.025, *, decay: float = 1e-3, minimum: Numbers | None = None) -> None:
        super().__init__()
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"FAMO: `lr` must be a finite number > 0, got {lr!r}.")
        if not (math.isfinite(decay) and decay >= 0):
            raise ValueError(f"FAMO: `decay` must be a finite number >= 0, got {decay!r}.")
        self.decay = float(decay)
        self._patience = _PATIENCE
        self.give("minimum", minimum)
        self.adam = PerLossAdam(float(lr))
        self.register_per_loss("logits", 0.0)
        self.register_per_loss("before", math.nan)

    def scalar(self, losses: Tensor) -> Tensor:
        self._miss_second_look()
        above = self._above_minimum(losses)
        values = above.detach()
        solved = values == 0
        shares = torch.softmax(self.recall("logits", values), dim=0)
        shares = torch.where(solved, 0.0, shares)
        divisor = (shares / torch.where(solved, 1.0, values)).sum()
        factors = shares / torch.where(divisor == 0, 1.0, divisor)
        logarithms = torch.where(solved, 1.0, above).log()
        self.remember("before", torch.where(solved, torch.nan, logarithms.detach()))
        return (factors * logarithms).sum()

    def look_again(self, losses: Tensor) -> None:
        """Learns from how much the losses fell; what the last call did not see, and what is solved, is left out."""
        self._patience = 0
        above = (losses - self.given("minimum", losses, 0.0)).clamp_min(0.0)  # raising now would come after the step
        fall = self.recall("before", above) - above.log()
        present = fall.isfinite()
        logits = self.recall("logits", above)
        shares = torch.softmax(torch.where(present, logits, -torch.inf), dim=0)
        fall = torch.where(present, fall, 0.0)
        ahead = fall - (shares * fall).sum()
        gradient = shares * torch.where(ahead.abs() > _ROUNDING, ahead, 0.0) + self.decay * logits
        change = self.adam.change(torch.where(present, gradient, 0.0), present)
        self.remember("logits", logits + change)
        self.remember("before", torch.full_like(above, torch.nan))

    def _miss_second_look(self) -> None:
        if self._patience == 0 or not self.training or torch.compiler.is_compiling():
            return
        self._patience -= 1
        if self._patience == 0:
            warnings.warn(
                f"FAMO: `update` must be called after each step, with the losses on the same batch; it was not in "
                f"{_PATIENCE} calls, and the weights only divide by the losses. Call update(losses).",
                UserWarning,
                stacklevel=7,  # the caller's line, past this method, scalar, forward and torch's module
            )

    def _above_minimum(self, losses: Tensor) -> Tensor:
        above = losses - self.given("minimum", losses, 0.0)
        self.refuse(losses, above < 0, "at least `minimum`, which is zero unless given")
        return above
