"""Weights from learned uncertainties."""

import math
from collections.abc import Collection

import torch
from torch import Tensor

from ..learning import PerLossAdam
from .base import LARGEST_EXPONENT, Scalarizer


class UncertaintyWeighting(Scalarizer):
    r"""Learns the noise of each objective and divides its loss by it.

    .. math:: s = \sum_k \tfrac12 e^{-v_k} L_k + \tfrac12 v_k, \quad v_k = \log \sigma_k^2

    For a loss of :math:`L` that stays as it is, v goes to :math:`\log L`, or :math:`\log 2L` for a cross-entropy: all
    weighed losses are then 1/2. One Adam step on v follows each call.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        monotone: no loss is weighed negatively.
        state_round_trip: the log-variances and Adam's moments are the state.

    What is learned depends on the scale of the losses: scale_equivariant does not hold. The weight of a loss that is
    zero or negative grows by a factor of up to ``exp(lr)`` a step, up to ``exp(80)``.

    Args:
        lr: Adam's step on the log-variances, > 0. The paper names none; 0.025 is that of Nash-MTL's experiments.
        initial: Where the log-variances start. The paper finds that it hardly matters; implementations use 0 or -0.5.
        classification: Numbers of the losses that are cross-entropies, whose factor is :math:`e^{-v}`.

    Shape:
        - losses: ``(K,)``.
        - output: ``()``.

    Raises:
        ValueError: An option is out of its range.

    Cost:
        One backward pass; a state of 4K numbers.

    References:
        Kendall, Gal and Cipolla, Multi-task learning using uncertainty to weigh losses for scene geometry and
        semantics, CVPR 2018 (arXiv:1705.07115).

    Example:
        >>> method = UncertaintyWeighting()
        >>> method(torch.tensor([1.0, 3.0]))  # starts at half the sum
        tensor(2.)
    """

    # Departs from Kendall et al., section 3.2: there the log-variances are parameters of the network's optimizer.

    def __init__(self, lr: float = 0.025, *, initial: float = 0.0, classification: Collection[int] = ()) -> None:
        super().__init__()
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"UncertaintyWeighting: `lr` must be a finite number > 0, got {lr!r}.")
        if not math.isfinite(initial):
            raise ValueError(f"UncertaintyWeighting: `initial` must be a finite number, got {initial!r}.")
        if not all(isinstance(number, int) and number >= 0 for number in classification):
            raise ValueError(
                f"UncertaintyWeighting: `classification` must be numbers of losses >= 0, got {classification!r}."
            )
        self.classification = frozenset(classification)
        self.adam = PerLossAdam(float(lr))
        self.register_per_loss("log_variances", float(initial))

    def scalar(self, losses: Tensor) -> Tensor:
        values = losses.detach()
        logarithms = self.recall("log_variances", values).clamp_min(-LARGEST_EXPONENT)
        weights = self._factors(values) * torch.exp(-logarithms)
        self.remember("log_variances", logarithms + self.adam.change(0.5 - weights * values))
        return (weights * losses).sum() + 0.5 * logarithms.sum()

    def _factors(self, values: Tensor) -> Tensor | float:
        if not self.classification:
            return 0.5
        rows = self.current_rows(len(values))
        return values.new_tensor([1.0 if row in self.classification else 0.5 for row in rows])
