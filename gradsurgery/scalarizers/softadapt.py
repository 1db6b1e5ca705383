"""Weights from the slopes of the losses."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .base import Scalarizer

Variant = Literal["original", "normalized", "loss-weighted"]


class SoftAdapt(Scalarizer):
    r"""Weighs a loss by how fast it rises, or how slowly it falls.

    .. math:: s = \sum_k w_k L_k, \quad w_k \propto f_k e^{\beta c_k}, \quad c_k = L_k(t) - L_k(t - 1)

    with :math:`\sum_k w_k = 1` and f = 1. ``"normalized"`` divides the slopes c by :math:`\sum_k |c_k|`.
    ``"loss-weighted"`` takes for :math:`f_k` the mean of the two losses. The slope of a loss that is new is 0.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        monotone: no loss is weighed negatively; with ``"loss-weighted"``, if no loss is negative.
        constant_total: the weights add up to 1.
        one_loss_is_identity: one loss has weight 1.
        state_round_trip: the losses of the last call are the state.

    scale_equivariant holds for ``"normalized"`` only: the slopes have the unit of the losses.

    Args:
        beta: How strongly the slopes count; below 0, losses that fall fast are favoured. The paper's is 0.1.
        variant: ``"original"``, ``"normalized"`` or ``"loss-weighted"``.

    Shape:
        - losses: ``(K,)``.
        - output: ``()``.

    Raises:
        ValueError: An option is out of its range.

    Cost:
        One backward pass; a state of K numbers.

    References:
        Heydari, Thompson and Mehmood, SoftAdapt: techniques for adaptive loss weighting of neural networks with
        multi-part loss functions (arXiv:1912.12355).

    Example:
        >>> method = SoftAdapt(beta=1.0)
        >>> method(torch.tensor([2.0, 2.0]))  # starts at the mean
        tensor(2.)
        >>> losses = torch.tensor([2.0, 1.0], requires_grad=True)
        >>> torch.autograd.grad(method(losses), losses)  # the first one did not fall
        (tensor([0.7311, 0.2689]),)
    """

    # Departs from the authors' newer code: it normalises by the signed sum of the slopes, which favours the loss that
    # falls fastest whenever they fall together; the sum of absolute values is that of their first code. Their slopes
    # come from longer finite differences of stored losses; one call apart, they are this difference.

    def __init__(self, beta: float = 0.1, *, variant: Variant = "original") -> None:
        super().__init__()
        if not math.isfinite(beta):
            raise ValueError(f"SoftAdapt: `beta` must be a finite number, got {beta!r}.")
        if variant not in get_args(Variant):
            raise ValueError(f"SoftAdapt: `variant` must be one of {list(get_args(Variant))}, got {variant!r}.")
        self.beta = float(beta)
        self.variant = variant
        self.register_per_loss("previous", math.nan)

    def scalar(self, losses: Tensor) -> Tensor:
        values = losses.detach()
        previous = self.recall("previous", values)
        previous = torch.where(previous.isnan(), values, previous)
        self.remember("previous", values)
        slopes = values - previous
        if self.variant == "normalized":
            total = slopes.abs().sum()
            slopes = slopes / torch.where(total > 0, total, 1.0)
        weights = torch.softmax(self.beta * slopes, dim=0)
        if self.variant == "loss-weighted":
            weights = weights * (values + previous)
            total = weights.sum()
            weights = torch.where(total == 0, 1.0 / len(values), weights / total)
        return (weights * losses).sum()
