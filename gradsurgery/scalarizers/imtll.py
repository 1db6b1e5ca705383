"""Impartial multi-task learning, the part that balances losses."""

import math

import torch
from torch import Tensor

from ..learning import PerLossAdam
from .base import LARGEST_EXPONENT, Scalarizer


class IMTLL(Scalarizer):
    r"""Learns a scale for each loss at which all losses are equal (IMTL-L).

    .. math:: s = \sum_k e^{a_k} L_k - a_k

    For a loss of :math:`L` that stays as it is, a goes to :math:`-\log L`: every scaled loss is then 1. One Adam step
    on a follows each call. It is twice ``UncertaintyWeighting`` with :math:`a = -v`.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        monotone: no loss is weighed negatively.
        state_round_trip: the scales and Adam's moments are the state.

    What is learned depends on the scale of the losses: scale_equivariant does not hold. The weight of a loss that is
    zero or negative grows by a factor of up to ``exp(lr)`` a step, up to ``exp(80)``.

    Args:
        lr: Adam's step on the scales, > 0. The paper names none; 0.025 is that of Nash-MTL's experiments for such
            parameters.

    Shape:
        - losses: ``(K,)``.
        - output: ``()``.

    Raises:
        ValueError: ``lr`` is out of its range.

    Cost:
        One backward pass; a state of 4K numbers.

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, Towards impartial multi-task learning, ICLR 2021.

    Example:
        >>> IMTLL()(torch.tensor([1.0, 3.0]))  # starts at the sum
        tensor(4.)
    """

    # Departs from Liu et al., section 3.2: there the scales are parameters of the network's optimizer.

    def __init__(self, lr: float = 0.025) -> None:
        super().__init__()
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"IMTLL: `lr` must be a finite number > 0, got {lr!r}.")
        self.adam = PerLossAdam(float(lr))
        self.register_per_loss("log_scales", 0.0)

    def scalar(self, losses: Tensor) -> Tensor:
        values = losses.detach()
        logarithms = self.recall("log_scales", values).clamp_max(LARGEST_EXPONENT)
        weights = torch.exp(logarithms)
        self.remember("log_scales", logarithms + self.adam.change(weights * values - 1.0))
        return (weights * losses).sum() - logarithms.sum()
