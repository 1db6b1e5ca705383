"""The loss balancer: rows divided by their usual lengths, which follow the training slowly."""

import torch
from torch import Tensor

from .base import GramianAggregator

_SOLVED = 2.0**-40  # a gradient whose usual norm is a smaller share of the longest is what rounding has left of one


class LossBalancer(GramianAggregator):
    r"""Divides each gradient by the root of an exponential average of its squared norms.

    .. math:: w_k = \frac{s}{\sqrt{v_k}}, \quad
        v_k = \frac{\sum_t \beta^t n_k(t)^2}{\sum_t \beta^t}, \quad
        s = \frac{\sum_j n_j(0)}{\sum_j n_j(0) / \sqrt{v_j}}, \quad n_k(t) = \lVert g_k \rVert \text{ t calls ago}

    So all losses pull equally over time, while a batch in which one of them pulls more than usual says so. The
    lengths add up to those of the gradients as they came, in every call: :math:`\sum_k w_k n_k = \sum_k n_k`, so
    that a learning rate for the plain sum stays of use. The average waits while a loss is absent or its gradient
    zero. Put it first in a ``Chain`` to remove conflicts between what it has balanced.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)`` for a factor of all calls; bit for bit for powers of two.
        zero_rows_constrain_nothing: a zero row has weight 0 and no share in the length.
        one_loss_is_identity: a gradient that comes alone has ``w = 1``, whatever was seen before.
        batched: leading dimensions are separate problems with averages of their own.
        state_round_trip: the averages, and what they have added up, are the state.

    No row gets longer than all gradients together, nor than :math:`s / \sqrt{1 - \beta}`: about thirty times what is
    usual as it comes, ten times with ``beta=0.99``. So a gradient that explodes counts for that many others in its
    call, and for little in calls after it until the average has forgotten, while the others go on as before. In its
    call they share the length that it brings: for a clipping of norms to cut, as with the plain sum. The weight of a
    loss that is solved grows while its norm falls, at most by the factor :math:`\beta^{-1/2}` a call once the average
    has filled, and up to :math:`2^{40}` times that of the loss with the longest gradients: its noise then counts as
    much as the gradients of the others, which go on as before. Where each call brings one loss only, nothing is
    balanced.

    Args:
        beta: How much of the average stays from call to call, in [0, 1]. 0.999, the last thousand calls, was better
            than 0.99 on three tables of five and level on two; 0.99 follows faster where training is short. 0 gives
            all gradients the same length at once and takes the noise of each batch as it comes; 1 averages over all
            calls.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, non-negative; zero for zero rows.

    Raises:
        TypeError: ``beta`` is not a number.
        ValueError: it is out of its range.

    Cost:
        A few operations on K numbers; a state of 2K numbers.

    References:
        Défossez et al., High fidelity neural audio compression, TMLR 2023 (arXiv:2210.13438), for the loss
        balancer of EnCodec. Related: GradNorm (arXiv:1711.02257), which learns such weights; RMSprop, which divides
        each parameter's gradient by such an average.

    Example:
        >>> method = LossBalancer(beta=0.5)
        >>> method(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))  # equal lengths, 4 together
        tensor([2., 2.])
        >>> method(torch.tensor([[3.0, 0.0], [0.0, 7.0]]))  # now the second pulls more than usual
        tensor([4.5075, 5.4925])
    """

    # Departs from Défossez et al., balancer: they average norms, which rare long gradients of a loss that is
    # otherwise solved hardly raise, so that its weight grows until these dominate; and their rows have fixed lengths,
    # which ties the learning rate to them.

    def __init__(self, beta: float = 0.999) -> None:
        super().__init__()
        if isinstance(beta, bool) or not isinstance(beta, int | float):
            raise TypeError(f"LossBalancer: `beta` must be a number, got {beta!r}.")
        if not 0 <= beta <= 1:
            raise ValueError(f"LossBalancer: `beta` must be in [0, 1], got {beta!r}.")
        self.beta = float(beta)
        self.register_per_loss("average", 0.0)
        self.register_per_loss("calls", 0.0)  # discounted by beta, as the squared norms are

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        squares = gramian.diagonal(dim1=-2, dim2=-1)
        present = squares > 0
        average, calls = self.recall("average", squares), self.recall("calls", squares)
        calls = torch.where(present, self.beta * calls + 1, calls)
        average = torch.where(present, average.lerp(squares, 1 / calls.clamp_min(1)), average)
        self.remember("calls", calls)
        self.remember("average", average)
        usual = torch.where(present, average.sqrt(), 0.0)
        longest = usual.amax(-1, keepdim=True)
        relative = torch.where(present, (usual / longest).clamp_min(_SOLVED), 1.0)  # exactly 1 for one loss
        norms = squares.sqrt()
        balanced = (norms / relative).sum(-1, keepdim=True)
        length = norms.sum(-1, keepdim=True) / torch.where(balanced > 0, balanced, 1.0)
        return torch.where(present, length / relative, 0.0)
