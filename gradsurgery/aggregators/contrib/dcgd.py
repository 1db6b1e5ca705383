"""Dual cone gradient descent: two groups of losses, and a direction between their gradients."""

from typing import Literal, get_args

import torch
from torch import Tensor

from ...solvers.scaling import RIDGE
from ..base import GramianAggregator

Variant = Literal["center", "average", "projection"]


class DCGD(GramianAggregator):
    r"""Moves the sum of two gradients into the cone of the directions that harm neither.

    The losses form two groups, as the residuals and the boundary conditions of a differential equation do. With
    the sums :math:`r, b` of their gradients and :math:`g = r + b`:

    .. math::
        d_\text{center} &= \frac{\langle g, c \rangle}{\lVert c \rVert^2} c, \quad
            c = \frac{r}{\lVert r \rVert} + \frac{b}{\lVert b \rVert} \\
        d_\text{average} &= \tfrac12 (r_{\perp b} + b_{\perp r}) \text{ if g harms a group, else } g \\
        d_\text{projection} &= r_{\perp b} \text{ if g harms b}, \quad b_{\perp r} \text{ if g harms r},
            \quad \text{else } g

    where :math:`r_{\perp b}` is r without its component along b.

    Guarantees:
        scale_equivariant: ``d(sJ) = s d(J)``.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.
        no_host_sync: nothing is read on the host.

    d harms neither group, ``<d, r> >= 0`` and ``<d, b> >= 0`` up to rounding; the losses within a group it may.
    A group whose gradients are absent, zero or cancel constrains nothing: then d is their sum.

    Args:
        variant: ``"center"``, ``"average"`` or ``"projection"``.
        split: The first group are the losses with a number below it, >= 1.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, the same for all losses of a group.

    Raises:
        ValueError: An option is out of its range.

    Cost:
        A few operations on K x K numbers.

    References:
        Hwang and Lim, Dual cone gradient descent for training physics-informed neural networks, NeurIPS 2024
        (arXiv:2409.18426), algorithms 1 to 3.

    Example:
        >>> J = torch.tensor([[10.0, 0.0], [-3.0, 4.0]])
        >>> J @ J.sum(0)  # the sum makes the second loss worse
        tensor([70., -5.])
        >>> DCGD()(J)
        tensor([3., 6.])
        >>> DCGD("average")(J)
        tensor([3.2000, 4.4000])
        >>> DCGD("projection")(J)
        tensor([6.4000, 4.8000])
    """

    def __init__(self, variant: Variant = "center", *, split: int = 1) -> None:
        super().__init__()
        if variant not in get_args(Variant):
            raise ValueError(f"DCGD: `variant` must be one of {list(get_args(Variant))}, got {variant!r}.")
        if isinstance(split, bool) or not isinstance(split, int) or split < 1:
            raise ValueError(f"DCGD: `split` must be an integer >= 1, got {split!r}.")
        self.variant = variant
        self.split = split

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        groups = self._groups(gramian)
        inner = groups.mT @ gramian @ groups
        squared = inner.diagonal(dim1=-2, dim2=-1)
        longest = gramian.diagonal(dim1=-2, dim2=-1).sqrt() @ groups
        both = (squared > RIDGE * longest.square()).all(dim=-1, keepdim=True)  # more than rounding
        squared = torch.where(both, squared, 1.0)
        if self.variant == "center":
            # In closed form, which stays finite where r and b are opposed: <g, c> / ||c||^2 = (||r|| + ||b||) / 2.
            norms = squared.sqrt()
            of_groups = norms.mean(dim=-1, keepdim=True) / norms
        else:
            between = inner[..., :1, 1]
            harmed = between < -squared
            without = -between / squared  # the weight of a group in the other one's part orthogonal to it
            if self.variant == "average":
                of_groups = torch.where(harmed.any(dim=-1, keepdim=True), (1 + without) / 2, 1.0)
            else:
                of_groups = torch.where(harmed, without, 1.0)
        return torch.where(both, of_groups, 1.0) @ groups.mT

    def _groups(self, gramian: Tensor) -> Tensor:
        """Which losses are in the first group and which in the second, ``(K, 2)``."""
        rows = self.current_rows(gramian.shape[-1])
        if rows == list(range(len(rows))):
            first = torch.arange(len(rows), device=gramian.device) < self.split
        else:
            first = torch.tensor([row < self.split for row in rows], device=gramian.device)
        return torch.stack([first, ~first], dim=-1).to(gramian.dtype)
