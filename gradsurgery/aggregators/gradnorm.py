"""GradNorm: learned weights that pull the gradient norms together."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ..learning import PerLossAdam
from .base import GramianAggregator

Progress = Literal["loss", "gradient"]

_ROUNDING = 1e-12  # a norm this close to its target is there: Adam would make a full step of rounding's sign


class GradNorm(GramianAggregator):
    r"""Learns positive weights with mean 1 that bring the weighted gradient norms to a common target.

    .. math:: L(w) = \frac1m \sum_k \lvert w_k n_k - m \, r_k^\alpha \rvert, \quad m = \overline{w n}, \quad
        r_k = \frac{v_k / v_k(0)}{\overline{v / v(0)}}

    One Adam step on :math:`\log w` follows each call, with m and r held fixed. The progress v of a loss is its
    value, or, as proposed for VAEs, the norm of its gradient; with ``alpha=0`` it does not matter and all
    norms are pulled to their mean. At an ``ImpartialityBlock``, which has no losses, take ``progress="gradient"`` or
    ``alpha=0``.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``.
        zero_rows_constrain_nothing: the weight of a zero row stands still and it is left out of the mean.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems with a state of their own.
        state_round_trip: weights, initial values and Adam's moments are the state.

    Args:
        alpha: How strongly losses that lag behind are favoured, >= 0. The paper's is 1.5; 0 for VAEs.
        progress: ``"loss"`` or ``"gradient"``.
        lr: Adam's step on the logarithms of the weights, > 0: a weight changes by at most about this share in
            one step. With ``alpha=0`` a loss that is solved sends back little gradient and gets an ever larger
            weight; a small step (1e-3 for VAEs) keeps that slow.

    Shape:
        - gramian: ``(..., K, K)``.
        - losses: ``(K,)``; needed by ``progress="loss"`` unless ``alpha=0``, non-zero.
        - output: ``(..., K)``, positive, mean 1.

    Raises:
        ValueError: An option is out of its range, or ``progress="loss"`` is used without losses.

    Cost:
        A few operations on K numbers; a state of 4K + 1 numbers.

    References:
        Chen et al., GradNorm: gradient normalization for adaptive loss balancing in deep multitask networks,
        ICML 2018 (arXiv:1711.02257). Javaloy, Meghdadi and Valera, Boosting heterogeneous VAEs via
        multi-objective optimization (2021), for the progress of gradient norms.

    Example:
        >>> method = GradNorm(alpha=0.0, progress="gradient", lr=0.5)
        >>> J = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> method(J)  # starts at the plain sum
        tensor([3., 1.])
        >>> method(J)  # and has learnt to favour the smaller gradient
        tensor([1.6136, 1.4621])
    """

    # Departs from Chen et al., section 3.2: their loss is not divided by m, which ties the learning of the
    # weights to the scale of the losses, and their weights are renormalised after the step, not through the
    # softmax that keeps their mean at 1.

    def __init__(self, alpha: float = 1.5, *, progress: Progress = "loss", lr: float = 0.025) -> None:
        super().__init__()
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"GradNorm: `alpha` must be a finite number >= 0, got {alpha!r}.")
        if progress not in get_args(Progress):
            raise ValueError(f"GradNorm: `progress` must be one of {list(get_args(Progress))}, got {progress!r}.")
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"GradNorm: `lr` must be a finite number > 0, got {lr!r}.")
        self.alpha = float(alpha)
        self.progress = progress
        self.adam = PerLossAdam(float(lr))
        self.register_per_loss("log_weights", 0.0)
        self.register_per_loss("initial", math.nan)

    @property
    def uses_losses(self) -> bool:
        return self.alpha > 0 and self.progress == "loss"

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        norms = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
        logarithms = self.recall("log_weights", norms)
        current = torch.softmax(logarithms, dim=-1) * norms.shape[-1]
        present = norms > 0
        rate = self._relative_rate(norms, losses, present)
        self.remember("log_weights", logarithms + self._change(norms, current, rate, present))
        return current

    def _relative_rate(self, norms: Tensor, losses: Tensor | None, present: Tensor) -> Tensor:
        """r to the power of alpha; 1 for rows that are zero."""
        if self.alpha == 0:
            return torch.ones_like(norms)
        if self.progress == "gradient":
            values = norms
        elif losses is None:
            raise ValueError(
                "GradNorm: `losses` must be given for progress='loss', got none. Hand over the loss values, "
                "or use progress='gradient'."
            )
        else:
            values = losses.to(norms).expand_as(norms)
        known = self.recall("initial", norms)
        known = torch.where(known.isnan() & present & (values != 0), values, known)
        self.remember("initial", known)
        usable = present & ~known.isnan()
        ratios = torch.where(usable, (values / known).clamp_min(0.0), 0.0)
        mean = ratios.sum(-1, keepdim=True) / usable.sum(-1, keepdim=True).clamp_min(1)
        relative = ratios / torch.where(mean > 0, mean, 1.0)
        return torch.where(usable & (mean > 0), relative**self.alpha, 1.0)

    def _change(self, norms: Tensor, current: Tensor, rate: Tensor, present: Tensor) -> Tensor:
        """One Adam step on the logarithms of the weights of the rows that are not zero."""
        weighted = torch.where(present, current * norms, 0.0)
        mean = weighted.sum(-1, keepdim=True) / present.sum(-1, keepdim=True).clamp_min(1)
        relative = weighted / torch.where(mean > 0, mean, 1.0)
        gap = relative - rate
        off_target = present & (gap.abs() > _ROUNDING * (relative + rate))
        pull = torch.where(off_target, torch.sign(gap) * relative, 0.0)
        gradient = pull - current / current.shape[-1] * pull.sum(-1, keepdim=True)
        return self.adam.change(gradient, present)
