"""CR-MOGM: any method's weights, averaged over the calls."""

import torch
from torch import Tensor

from .base import Aggregator, GramianAggregator


class CRMOGM(GramianAggregator):
    r"""Replaces the weights of a method by their moving average, which takes the noise of small batches out of them.

    .. math:: w_t = \alpha \, w_{t-1} + (1 - \alpha) \, \tilde w_t, \qquad w_1 = \tilde w_1, \qquad
        \tilde w_t = \mathrm{method}(G_t)

    Guarantees:
        permutation_equivariant: the order of the losses does not matter, if the method guarantees it and where its
            weights are unique.
        scale_equivariant: ``d(sJ) = s d(J)``, if the method guarantees it and where its weights are unique.
        zero_rows_constrain_nothing: if the method guarantees it.
        one_loss_is_identity: with one loss, ``w = 1``, if the method guarantees it.
        batched: leading dimensions are separate problems with averages of their own.
        state_round_trip: the averages, and the method's state.

    What a method promises about its direction at each call, not to harm any loss above all, an average of weights
    does not keep. Where rows depend on each other, weights that differ may give one direction, as with MGDA and more
    losses than parameters; rounding then chooses between them, and their average over calls with other gradients
    shows which.

    Args:
        method: An aggregator that needs only the Gramian.
        alpha: How much of the average stays, in [0, 1); 0 is the method itself. The paper lets it grow towards 1 as
            the learning rate falls.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``; a loss that is seen for the first time starts at the method's weight.

    Raises:
        TypeError: ``method`` is not an aggregator, or needs the Jacobian.
        ValueError: ``alpha`` is out of its range.

    Cost:
        The method's; a state of K numbers.

    References:
        Zhou et al., On the convergence of stochastic multi-objective gradient manipulation and beyond, NeurIPS 2022.

    Example:
        >>> method = CRMOGM(MGDA(), alpha=0.5)
        >>> method(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([0.5000, 0.5000])
        >>> method(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))  # MGDA's weights are 0.9 and 0.1
        tensor([0.7000, 0.9000])
    """

    def __init__(self, method: Aggregator, alpha: float = 0.9) -> None:
        super().__init__()
        if not isinstance(method, GramianAggregator) or method.needs_jacobian:
            raise TypeError(
                f"CRMOGM: `method` must be an aggregator that needs only the Gramian, got {type(method).__name__}."
            )
        if not 0 <= alpha < 1:
            raise ValueError(f"CRMOGM: `alpha` must be in [0, 1), got {alpha!r}.")
        self.method: GramianAggregator = method
        self.alpha = float(alpha)
        self.register_per_loss("average", torch.nan)

    @property
    def uses_losses(self) -> bool:
        return self.method.uses_losses

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        current = self.method.weights(gramian, losses)
        average = self.recall("average", current)
        average = torch.where(average.isnan(), current, average.lerp(current, 1 - self.alpha))
        self.remember("average", average)
        return average
