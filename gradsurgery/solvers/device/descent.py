"""Goes from face to face of the non-negative orthant, in a number of steps that is fixed in advance."""

import torch
from torch import Tensor

from ..arrays import EPSILON, TINY
from .elimination import identity
from .faces import Faces

_STEPS_OF_SEARCH, _LONGEST = 32, 1e4


def descend(hessian: Tensor, linear: Tensor, ridge: Tensor) -> Tensor:
    r"""Minimises :math:`\tfrac12 x^\top H x - q^\top x` over :math:`x \ge 0`, for any number of entries.

    It goes from the minimum over one face to that over another, never uphill, as the solver on the host does where H
    is singular, with half the ridge times the squared distance to the last minimum added. Once there, it stands
    still. Problems with a condition of up to 1e12 were seen to need fewer than the 1.5 K + 8 steps; the result is the
    one of all points passed that violates the conditions of the optimum least.

    Args:
        hessian: H, symmetric positive semidefinite, diagonal of the order of 1.
        linear: q, in the range of H, entries of the order of 1.
        ridge: What makes H definite.

    Shape:
        - hessian: ``(B, K, K)``.
        - linear: ``(B, M, K)``.
        - ridge: ``(B, 1, 1)``.
        - output: ``(B, M, K)``.

    Cost:
        ``(1.5 K + 8) (2K + 83) + 500`` launches, whatever B and M.
    """
    size = hessian.shape[-1]
    regular = hessian + ridge * identity(hessian)
    x = _search(hessian, linear)
    face, start = x > 0, x
    best, least = least_violating(x, hessian, linear, x, torch.full_like(x[..., :1], torch.inf))
    for _ in range(size + size // 2 + 8):
        x, face, settled = _step(regular, linear + ridge * start, x, face)
        start = torch.where(settled, x, start)
        best, least = least_violating(x, hessian, linear, best, least)
    return best


def violation(x: Tensor, gradient: Tensor) -> Tensor:
    """How far non-negative points are from satisfying the conditions of the optimum: ``(..., 1)``."""
    return torch.where(x > 0, gradient.abs(), -gradient).amax(-1, keepdim=True)


def least_violating(x: Tensor, hessian: Tensor, linear: Tensor, best: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """The better one of two points, and how far it is from the optimum, when ``least`` is that of ``best``.

    Where H is singular but for rounding, points go on moving in directions that hardly matter, for better or worse.
    """
    now = violation(x, x @ hessian - linear)
    better = now < least
    return torch.where(better, x, best), torch.where(better, now, least)


def _step(regular: Tensor, right: Tensor, x: Tensor, face: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From a point of a face to the next one, the face to go on with, and whether there is no better one."""
    z = Faces(regular.unsqueeze(1), face).minima(right.unsqueeze(-2)).squeeze(-2)
    downhill = right - z @ regular
    noise = 4 * z.shape[-1] * EPSILON * (1.0 + z.abs().amax(-1, keepdim=True))
    blocking, entering = face & (z < 0), ~face & (downhill > noise)
    blocked = blocking.any(-1, keepdim=True)
    clipped = z.clamp(min=0.0)
    move = clipped - x
    rise = ((x @ regular - right + 0.5 * (move @ regular)) * move).sum(-1, keepdim=True)
    uphill = (rise >= 0) & blocked  # then only as far as the first bound
    ratio = torch.where(blocking, x / (x - z), 1.0)
    reach = ratio.amin(-1, keepdim=True)
    staying = face & ~(blocking & (~uphill | (ratio <= reach)))
    bounded = (x + reach * (z - x)).clamp(min=0.0) * staying
    following = torch.where(uphill, bounded, clipped)
    settled = ~(blocked | entering.any(-1, keepdim=True))
    return following, staying | (entering & ~uphill), settled


def _search(hessian: Tensor, linear: Tensor) -> Tensor:
    """Takes projected gradient steps of Barzilai and Borwein's shorter length, which is noise once moves are."""
    x = linear.clamp(min=0.0)
    gradient = x @ hessian - linear
    move, change = gradient, gradient @ hessian
    for _ in range(_STEPS_OF_SEARCH):
        curvature = (change * change).sum(-1, keepdim=True).clamp(min=TINY)
        length = (move * change).sum(-1, keepdim=True) / curvature
        move = (x - length.clamp(0.0, _LONGEST) * gradient).clamp(min=0.0) - x
        change = move @ hessian
        x = x + move
        gradient = gradient + change
    return x.clamp(min=0.0)
