r"""How gradients stand to each other, read off their Gramians.

Everything here takes inner products ``(..., K, K)`` in float64, with leading dimensions for steps or groups, and
costs a few operations on that many numbers. The length of gradient i is :math:`n_i = \sqrt{G_{ii}}`.
"""

import torch
from torch import Tensor


def norms(gramian: Tensor) -> Tensor:
    """The lengths of the gradients, ``(..., K)``.

    Example:
        >>> norms(torch.tensor([[25.0, -3.0], [-3.0, 1.0]]))
        tensor([5., 1.])
    """
    return gramian.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()


def cosines(gramian: Tensor) -> Tensor:
    r"""The cosines :math:`G_{ij} / (n_i n_j)` between gradients, ``(..., K, K)``; NaN where either is zero.

    Example:
        >>> cosines(torch.tensor([[25.0, -3.0], [-3.0, 1.0]]))
        tensor([[ 1.0000, -0.6000],
                [-0.6000,  1.0000]])
    """
    lengths = norms(gramian)
    lengths = torch.where(lengths > 0, lengths, torch.nan)
    # Divided one after the other: the product of two short lengths may underflow.
    return (gramian / lengths.unsqueeze(-1) / lengths.unsqueeze(-2)).clamp(-1.0, 1.0)


def magnitude_ratios(gramian: Tensor) -> Tensor:
    r"""How many times as long as gradient j gradient i is, :math:`n_i / n_j`, ``(..., K, K)``; NaN if either is zero.

    Example:
        >>> magnitude_ratios(torch.tensor([[25.0, -3.0], [-3.0, 1.0]]))
        tensor([[1.0000, 5.0000],
                [0.2000, 1.0000]])
    """
    lengths = norms(gramian)
    lengths = torch.where(lengths > 0, lengths, torch.nan)
    return lengths.unsqueeze(-1) / lengths.unsqueeze(-2)


def magnitude_similarities(gramian: Tensor) -> Tensor:
    r"""Magnitude similarity :math:`2 n_i n_j / (n_i^2 + n_j^2)`, ``(..., K, K)``: 1 for equal lengths, down to 0.

    It is 0 where one is zero and NaN where both are. The definition is that of Yu et al., Gradient surgery for
    multi-task learning, NeurIPS 2020.

    Example:
        >>> magnitude_similarities(torch.tensor([[25.0, -3.0], [-3.0, 1.0]]))
        tensor([[1.0000, 0.3846],
                [0.3846, 1.0000]])
    """
    lengths = norms(gramian)
    longer = torch.maximum(lengths.unsqueeze(-1), lengths.unsqueeze(-2))
    shorter = torch.minimum(lengths.unsqueeze(-1), lengths.unsqueeze(-2))
    ratio = shorter / torch.where(longer > 0, longer, torch.nan)  # at most 1: its square cannot overflow
    return 2 * ratio / (1 + ratio.square())


def conflicting(gramian: Tensor) -> Tensor:
    """Which gradients point against each other, :math:`G_{ij} < 0`, ``(..., K, K)``, False on the diagonal.

    Example:
        >>> conflicting(torch.tensor([[25.0, -3.0], [-3.0, 1.0]]))
        tensor([[False,  True],
                [ True, False]])
    """
    itself = torch.eye(gramian.shape[-1], dtype=torch.bool, device=gramian.device)
    return (gramian < 0) & ~itself


def conflicting_share(gramian: Tensor) -> Tensor:
    """The share of conflicting pairs, ``(...)``, in 0 to 1, among pairs of gradients that are not zero.

    NaN where there is no such pair, or a gradient is not finite.

    Example:
        >>> conflicting_share(torch.tensor([[25.0, -3.0], [-3.0, 1.0]]))
        tensor(1.)
    """
    count = gramian.shape[-1]
    first, second = torch.triu_indices(count, count, offset=1, device=gramian.device)
    there = norms(gramian) > 0
    both = there[..., first] & there[..., second]
    against = (gramian[..., first, second] < 0) & both
    share = against.sum(-1).to(gramian.dtype) / both.sum(-1).to(gramian.dtype)
    return torch.where(gramian.isfinite().all(-1).all(-1), share, torch.nan)


def step_change(gramian: Tensor, weights: Tensor) -> Tensor:
    """How much each loss falls to first order along the direction with weights ``(..., K)``: ``G w``, ``(..., K)``.

    Times the learning rate, for plain gradient descent; a negative one rises.

    Example:
        >>> step_change(torch.tensor([[25.0, -3.0], [-3.0, 1.0]]), torch.ones(2))
        tensor([22., -2.])
    """
    return (gramian @ weights.to(gramian).unsqueeze(-1)).squeeze(-1)


def pairs(count: int) -> list[tuple[int, int]]:
    """All pairs (i, j) with i < j of so many losses, in the order of everything that lists pairs.

    Example:
        >>> pairs(3)
        [(0, 1), (0, 2), (1, 2)]
    """
    return [(first, second) for first in range(count) for second in range(first + 1, count)]


__all__ = [
    "conflicting",
    "conflicting_share",
    "cosines",
    "magnitude_ratios",
    "magnitude_similarities",
    "norms",
    "pairs",
    "step_change",
]
