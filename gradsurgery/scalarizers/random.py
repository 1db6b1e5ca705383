"""Random loss weighting."""

import torch
from torch import Tensor

from ..state import Randomized
from .base import Scalarizer


class Random(Randomized, Scalarizer):
    r"""Draws new positive weights in every step: a baseline that methods should beat (RLW).

    .. math:: s = \sum_k w_k L_k, \quad w = \operatorname{softmax}(\varepsilon), \quad
        \varepsilon \sim \mathcal N(0, I_K)

    Of the distributions in the paper, the normal one, which its experiments default to.

    Guarantees:
        monotone: no loss is weighed negatively.
        linear_under_scaling: the weights do not depend on the unit of any loss.
        scale_equivariant: the weights do not depend on the common scale of the losses.
        constant_total: the weights add up to 1.
        one_loss_is_identity: one loss has weight 1.
        state_round_trip: the generator's position is the state.

    Args:
        generator: Source of the draws, on the CPU. ``None``: a new one with the global seed.

    Shape:
        - losses: ``(K,)``.
        - output: ``()``.

    Raises:
        TypeError: ``generator`` is not a generator on the CPU.

    Cost:
        One backward pass; K draws.

    References:
        Lin, Ye, Zhang and Tsang, Reasonable effectiveness of random weighting: a litmus test for multi-task
        learning, TMLR 2022 (arXiv:2111.10603).

    Example:
        >>> method = Random(torch.Generator().manual_seed(0))
        >>> method(torch.tensor([2.0, 2.0]))  # whatever the weights, they add up to 1
        tensor(2.)
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)

    def scalar(self, losses: Tensor) -> Tensor:
        draws = torch.randn(len(losses), generator=self.generator, dtype=torch.float64)
        return (torch.softmax(draws, dim=0).to(losses.device) * losses).sum()
