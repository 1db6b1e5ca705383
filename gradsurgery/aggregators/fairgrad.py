"""FairGrad: the gains of the losses are shared with a chosen degree of fairness."""

import math

from torch import Tensor

from ..solvers import bargaining_weights
from .base import GramianAggregator
from .host import on_host


class FairGrad(GramianAggregator):
    r"""Finds the direction that is best under alpha-fairness.

    .. math:: d = J^\top w, \quad G w = w^{-1/\alpha}, \quad w > 0

    With ``alpha=1`` this is Nash-MTL as its paper has it; the larger alpha, the more the loss that gains least
    counts. Scaling all gradients by s scales d by s to the power of :math:`(1 - \alpha) / (1 + \alpha)`: -1/3 for the
    default.

    Guarantees:
        non_conflicting: ``J @ d >= 0`` up to rounding.
        permutation_equivariant: the order of the losses does not matter.
        zero_rows_constrain_nothing: a zero row gets weight zero.
        batched: leading dimensions are separate problems.

    Where some direction helps every loss, d does: :math:`J d = w^{-1/\alpha}`. Losses that no direction helps
    together, because a positive combination of their gradients is zero, gain nothing and lose nothing; the others
    share what is left. Two opposed losses alone get d = 0.

    Args:
        alpha: Degree of fairness, > 0. 2 in the scripts of the published code, 1 in the code itself.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, positive for rows that are not zero and do not cancel.

    Raises:
        ValueError: ``alpha`` is not a finite positive number.

    Cost:
        As a rule under ten solves of size K on the host, more with norms far apart and alpha far from 1; nothing
        that depends on P.

    References:
        Ban and Ji, Fair resource allocation in multi-task learning, ICML 2024 (arXiv:2402.15638), section 4.

    Example:
        >>> J = torch.tensor([[8.0, 0.0], [0.0, 1.0]])
        >>> J @ FairGrad(alpha=2.0)(J)  # the gains; those of Nash-MTL are 8 and 1
        tensor([4., 1.])
    """

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"FairGrad: `alpha` must be a finite number > 0, got {alpha!r}. Use Sum for 0.")
        self.alpha = float(alpha)

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return on_host(bargaining_weights, gramian, 1.0 / self.alpha)
