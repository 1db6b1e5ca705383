"""Nash-MTL: the losses bargain for the direction."""

import math

import numpy as np
import torch
from torch import Tensor

from ..solvers import bargaining_weights
from ..solvers.arrays import Array
from .base import GramianAggregator
from .host import on_host


class NashMTL(GramianAggregator):
    r"""Finds the direction whose gains nobody can improve by more, in proportion, than others lose.

    .. math:: d = J^\top \alpha, \quad G \alpha = 1 / \alpha, \quad \alpha > 0

    That is the paper's condition, and with it d is always as long as :math:`\sqrt K`, however small the gradients.
    The published code solves the same (it divides by :math:`\lVert G \rVert_F` for its solver only), and shortens d
    to 1: ``NashMTL(normalize=False, max_norm=1.0)``. By default the condition is solved for
    :math:`G / \lVert G \rVert_F`: the same direction, its length in proportion to the gradients, so that training
    can come to rest.

    Guarantees:
        non_conflicting: ``J @ d >= 0`` up to rounding.
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``; with ``normalize=False``, ``d(sJ) = d(J)``.
        zero_rows_constrain_nothing: a zero row gets weight zero.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.

    Where some direction helps every loss, d does: :math:`J d = 1 / \alpha`. Losses that no direction helps together,
    because a positive combination of their gradients is zero, gain nothing and lose nothing; the others bargain for
    what is left. Two opposed losses alone get d = 0. The direction does not depend on the scale of any single loss,
    only its length does.

    Args:
        normalize: Whether the condition is for G divided by its Frobenius norm: d then grows with the gradients.
            ``False`` is the form of the paper and its code, in which d is as long as the root of the number of
            losses, whatever the scale.
        max_norm: Longest d, > 0; a longer one is shortened. ``None``: d is what it is. The published code clips the
            gradient of the shared parameters to 1 in every step; that is an absolute length, like any clipping. It
            matters where gradients become huge: without it, steep walls fill the moments of an optimizer like Adam.
        update_every: Solve at every n-th call, >= 1, and keep the weights in between: they are the state then. The
            exact solution needs no start, so that with 1 there is nothing to remember.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, positive for rows that are not zero and do not cancel.

    Raises:
        ValueError: An option is out of its range.

    Cost:
        As a rule under ten solves of size K on the host; nothing that depends on P.

    References:
        Navon et al., Multi-task learning as a bargaining game, ICML 2022 (arXiv:2202.01017), section 3.

    Example:
        >>> J = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> NashMTL(normalize=False)(J)  # one unit along each of two orthogonal gradients, whatever their norms
        tensor([1., 1.])
    """

    calls: Tensor

    def __init__(self, *, normalize: bool = True, max_norm: float | None = None, update_every: int = 1) -> None:
        super().__init__()
        if max_norm is not None and not (math.isfinite(max_norm) and max_norm > 0):
            raise ValueError(f"NashMTL: `max_norm` must be None or a finite number > 0, got {max_norm!r}.")
        if not isinstance(update_every, int) or update_every < 1:
            raise ValueError(f"NashMTL: `update_every` must be an integer >= 1, got {update_every!r}.")
        self.normalize = bool(normalize)
        self.max_norm = None if max_norm is None else float(max_norm)
        self.update_every = update_every
        if update_every > 1:
            self.register_per_loss("kept", math.nan)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    # Departs from Navon et al., section 3: as it comes, the length of d follows that of the gradients, see above.
    # Departs from section 3.2: they solve a sequence of convex problems from the last weights on; the
    # condition is that of a strictly convex problem itself, which Newton's method solves exactly.

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        weights = self._solution(gramian) if self.update_every == 1 else self._kept(gramian)
        if self.max_norm is None:
            return weights
        squared = ((gramian @ weights.unsqueeze(-1)).squeeze(-1) * weights).sum(-1, keepdim=True)
        norm = squared.clamp_min(0.0).sqrt()
        return torch.where(norm > self.max_norm, weights * (self.max_norm / norm), weights)

    def _solution(self, gramian: Tensor) -> Tensor:
        return on_host(_normalized_weights if self.normalize else _weights, gramian)

    def _kept(self, gramian: Tensor) -> Tensor:
        kept = self.recall("kept", gramian[..., 0])
        if int(self.calls) % self.update_every == 0 or bool(kept.isnan().any()):
            kept = self._solution(gramian)
            self.remember("kept", kept)
        self.calls = self.calls + 1
        return kept.clone()


def _weights(gramian: Array) -> Array:
    return bargaining_weights(gramian, 1.0)


def _normalized_weights(gramian: Array) -> Array:
    largest = gramian.diagonal(0, 1, 2).max(axis=1)[:, None, None]  # first, so that no square overflows
    relative = gramian / np.where(largest > 0, largest, 1.0)
    norm = np.sqrt(np.einsum("bij,bij->b", relative, relative))[:, None, None]
    return bargaining_weights(relative / np.where(norm > 0, norm, 1.0), 1.0)
