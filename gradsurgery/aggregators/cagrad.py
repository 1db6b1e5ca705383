"""CAGrad: near the mean of the gradients, the direction that helps the worst-off loss most."""

import math
from typing import Literal, get_args

from torch import Tensor

from ..solvers import conflict_averse_weights
from .base import GramianAggregator
from .host import on_host

Rescale = Literal["none", "1+c", "1+c^2"]


class CAGrad(GramianAggregator):
    r"""Maximises the progress of the loss that progresses least, within a ball around the mean of the gradients.

    .. math:: d = \arg\max_d \min_i \langle g_i, d \rangle
        \quad\text{where } \lVert d - g_0 \rVert \le c \lVert g_0 \rVert, \; g_0 = \tfrac1K \textstyle\sum_i g_i

    In the terms of the paper, :math:`d = g_0 + c \lVert g_0 \rVert g_w / \lVert g_w \rVert`, with
    :math:`g_w = J^\top w` for the weights on the simplex that minimise
    :math:`\langle g_w, g_0 \rangle + c \lVert g_0 \rVert \lVert g_w \rVert`.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``.
        zero_rows_constrain_nothing: a zero row counts in the mean and constrains nothing.
        batched: leading dimensions are separate problems.

    From c = 1 on, no loss gets worse; with less, some can, the worst-off less than by the mean. With one loss d is
    ``(1 + c) g``, unless rescaled.

    Args:
        c: Radius of the ball in units of the mean's length, >= 0; the paper proves convergence for c < 1.
            0 is the mean.
        rescale: What d is divided by. ``"none"`` is the paper's algorithm; its code has all three, and uses
            ``"1+c^2"`` unless told otherwise.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, at least ``1 / K`` each before rescaling.

    Raises:
        ValueError: ``c`` is negative or not finite, or ``rescale`` is unknown.

    Cost:
        One to five solves of size K on the host; 2 to 9 non-negative least-squares problems of that size where the
        rows are nearly dependent.

    References:
        Liu et al., Conflict-averse gradient descent for multi-task learning, NeurIPS 2021 (arXiv:2110.14048),
        algorithm 1.

    Example:
        >>> J = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
        >>> J @ J.mean(0)  # the average makes the second loss worse
        tensor([ 6., -2.])
        >>> J @ CAGrad()(J), J @ CAGrad(1.0)(J)
        (tensor([ 3.7373, -0.8686]), tensor([0.8000, 0.8000]))
    """

    def __init__(self, c: float = 0.4, *, rescale: Rescale = "none") -> None:
        super().__init__()
        if not (math.isfinite(c) and c >= 0):
            raise ValueError(f"CAGrad: `c` must be finite and >= 0, got {c}. The paper uses 0.4 and 0.5.")
        if rescale not in get_args(Rescale):
            raise ValueError(f"CAGrad: `rescale` must be one of {list(get_args(Rescale))}, got {rescale!r}.")
        self.c = float(c)
        self.rescale = rescale

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        # Departs from Liu et al., algorithm 1: where a convex combination of the gradients is zero and g_w / |g_w| is
        # undefined, d is the closest one to g0 that solves the problem from which that is derived. Zero rows are left
        # out of the simplex: they would make every step the mean.
        weights = on_host(conflict_averse_weights, gramian, self.c)
        return weights if self.rescale == "none" else weights / (1 + (self.c if self.rescale == "1+c" else self.c**2))
