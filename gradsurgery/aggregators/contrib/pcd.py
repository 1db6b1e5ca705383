"""Priority-constrained descent: one loss leads, the others are owed a share."""

import math

import numpy as np
import torch
from torch import Tensor

from ...solvers.arrays import Array
from ...solvers.nnls import nonnegative_quadratic
from ...solvers.scaling import RIDGE, unit_gramian
from ..base import GramianAggregator
from ..host import on_host


class PCD(GramianAggregator):
    r"""Follows the first loss as closely as a guaranteed share of progress for every other loss allows.

    .. math:: \tilde d = \arg\min_x \lVert x - \tilde g_0 \rVert \quad\text{subject to}\quad
        \langle \tilde g_k, x \rangle \ge \tau \lVert \tilde g_k \rVert^2 \text{ for } k > 0, \qquad
        d = \frac{\lVert g_0 \rVert}{\lVert \tilde d \rVert} \tilde d

    :math:`\tilde g_k` is the gradient over a running root mean square of its norm, bias-corrected as Adam's.

    Guarantees:
        scale_equivariant: ``d(sJ) = s d(J)``; scaling a row other than the first, the same in every step, changes
            nothing.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems with a state of their own.
        state_round_trip: the running means of the squared norms are the state.

    The order of the losses matters: the first is the primary one. Where it is absent or its gradient zero, d is zero.
    Where no direction gives every other loss its share (two of them are opposed, say), d is the first row.

    Args:
        tau: The share, in [0, 1]: of the progress that a step along the loss's own gradient would make. With 0 the
            other losses are only kept from getting worse.
        beta: Decay of the running means, in [0, 1).

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, non-negative.

    Raises:
        ValueError: An option is out of its range.

    Cost:
        One non-negative least-squares problem of size K on the host; a state of 2K numbers.

    References:
        Varam and AlHajri, Not all objectives are born equal: priority-constrained descent for hierarchical
        multi-objective optimization, TMLR 2026 (arXiv:2606.29521), algorithm 1.

    Example:
        >>> J = torch.tensor([[3.0, 0.0], [-0.6, 0.8]])
        >>> PCD(0.0)(J)  # kept from harming the second loss
        tensor([2.4000, 1.8000])
        >>> PCD(0.6)(J)  # helping it with a part of the step
        tensor([0.8400, 2.8800])
    """

    # Departs from Varam and AlHajri, definition 4.5: no 1e-8 is added to the running means, which would tie the
    # share to the scale of the losses; a loss whose gradients were all zero is owed nothing. A loss that is absent
    # from a step keeps its running mean.

    def __init__(self, tau: float = 0.02, *, beta: float = 0.999) -> None:
        super().__init__()
        if not (math.isfinite(tau) and 0 <= tau <= 1):
            raise ValueError(f"PCD: `tau` must be in [0, 1], got {tau!r}.")
        if not 0 <= beta < 1:
            raise ValueError(f"PCD: `beta` must be in [0, 1), got {beta!r}.")
        self.tau = float(tau)
        self.beta = float(beta)
        self.register_per_loss("means", 0.0)

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        usual = self._usual_norms(gramian.diagonal(dim1=-2, dim2=-1))
        rows = self.current_rows(gramian.shape[-1])
        if 0 not in rows:
            return torch.zeros_like(usual)
        flat = usual.reshape(-1, len(rows)).cpu().numpy()
        return on_host(_constrained, gramian, flat, self.tau, rows.index(0))

    def _usual_norms(self, squared: Tensor) -> Tensor:
        """The mean of ones beside that of the squares is what corrects its bias."""
        seen = torch.stack([squared, torch.ones_like(squared)])
        means = torch.lerp(self.recall("means", seen), seen, 1 - self.beta)
        self.remember("means", means)
        return (means[0] / means[1]).sqrt_()


def _constrained(gramian: Array, usual: Array, tau: float, primary: int) -> Array:
    r"""Weights of the rows, such that the direction has the length of the primary row.

    In terms of :math:`x = \tilde d - \tilde g_0` this is the shortest x with inner products of at least h with the
    unit rows U. Where y is the minimiser of :math:`\lVert U^\top y \rVert^2 + (h^\top y - 1)^2` over :math:`y \ge
    0`, that is :math:`x = U^\top y / \phi` with :math:`\phi = 1 - h^\top y`; where :math:`\phi = 0` there is no such
    x (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23).
    """
    cosines, norms, nonzero = unit_gramian(gramian)
    relative = norms / np.where(nonzero, usual, 1.0)  # lengths of the normalised rows
    own = relative[:, primary, None]
    secondary = nonzero.copy()
    secondary[:, primary] = False
    h = np.where(secondary, tau * relative - own * cosines[:, primary], 0.0)
    combined = np.zeros_like(h)  # in unit rows
    if (h > 0).any():
        largest = np.abs(h).max(axis=1, keepdims=True)
        h /= np.where(largest > 0, largest, 1.0)
        between = np.where(secondary[:, :, None] & secondary[:, None, :], cosines, np.eye(h.shape[1]))
        y = nonnegative_quadratic(between + h[:, :, None] * h[:, None], h[:, None], RIDGE)[:, 0]
        phi = 1.0 - (h * y).sum(axis=1, keepdims=True)
        exists = phi > RIDGE * y.sum(axis=1, keepdims=True) ** 2  # more than the ridge may have added
        combined = np.where(exists, y * largest / np.where(exists, phi, 1.0), 0.0)
    combined[:, primary] = relative[:, primary]
    squared = (combined * (cosines @ combined[..., None])[..., 0]).sum(axis=1, keepdims=True)
    moves = nonzero[:, primary, None] & (squared > RIDGE * combined.sum(axis=1, keepdims=True) ** 2)
    length = np.sqrt(np.where(moves, squared, 1.0))
    return np.where(moves, combined / length * (norms[:, primary, None] / norms), 0.0)
