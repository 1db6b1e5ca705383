"""Non-negative least squares in normal form: see ``solvers/nnls.py``."""

import math

import torch
from torch import Tensor

from .descent import descend, least_violating, violation
from .elimination import identity, is_definite
from .faces import Faces

_MOST_FOR_FACES = 8
"""Up to this size the orthant has at most 256 faces."""

_WELL_CONDITIONED = 1e-8  # as on the host
_PROXIMAL_STEPS = 4
_LARGEST_BLOCK = 2**23  # entries of the systems solved at once: 64 MiB


def nonnegative_quadratic(hessian: Tensor, linear: Tensor, ridge: float) -> Tensor:
    r"""Minimises convex quadratics over the non-negative orthant, several for each matrix.

    .. math:: x = \arg\min_{x \ge 0} \tfrac12 x^\top H x - q^\top x

    A matrix that is close to singular gets a ridge, which proximal steps take out of the result. Up to 8 entries, the
    minimum over each face of the orthant is computed, and the one returned that violates the conditions of the
    optimum least. More entries are left to ``descend``.

    Laws:
        Those of ``solvers.nonnegative_quadratic``.

    Args:
        hessian: H, symmetric positive semidefinite, diagonal of the order of 1.
        linear: q, in the range of H, entries of the order of 1.
        ridge: As on the host.

    Shape:
        - hessian: ``(B, K, K)``.
        - linear: ``(B, M, K)``.
        - output: ``(B, M, K)``.

    Cost:
        ``4K + 190`` launches up to K = 8, whatever B and M; beyond, those of ``descend`` and ``2K + 30``.
    """
    count, size = linear.shape[1:]
    few = size <= _MOST_FOR_FACES
    entries = 2**size * size * (2 * size + count) if few else 2 * count * size * size
    at_once = max(1, _LARGEST_BLOCK // entries)
    parts = [part.split(at_once) for part in (hessian, linear, _ridges(hessian, ridge))]
    return torch.cat([(_by_faces if few else descend)(*part) for part in zip(*parts, strict=True)])


def _ridges(hessian: Tensor, ridge: float) -> Tensor:
    """Zero for well-conditioned matrices; for others the ridge, times a power of ten where they need more."""
    if ridge == 0.0:
        return hessian.new_zeros(len(hessian), 1, 1)
    powers = torch.arange(1 - math.floor(math.log10(ridge)), dtype=hessian.dtype, device=hessian.device)
    rising = ridge * (math.log(10.0) * powers).exp()
    ridges = torch.cat([torch.zeros_like(rising[:1]), rising])
    shifts = torch.cat([torch.full_like(rising[:1], -_WELL_CONDITIONED), rising])
    definite = is_definite(hessian.unsqueeze(1) + shifts[:, None, None] * identity(hessian))
    return ridges.index_select(0, definite.to(hessian.dtype).argmax(1))[:, None, None]


def _by_faces(hessian: Tensor, linear: Tensor, ridge: Tensor) -> Tensor:
    size = hessian.shape[-1]
    regular = (hessian + ridge * identity(hessian)).unsqueeze(1)
    faces = Faces(regular, _all_faces(size, hessian.device))
    x = result = torch.zeros_like(linear)
    least = torch.full_like(linear[..., :1], torch.inf)
    for _ in range(_PROXIMAL_STEPS):
        right = (linear + ridge * x).unsqueeze(1)
        z = faces.minima(right).clamp(min=0.0)  # (B, F, M, K)
        best = violation(z, z @ regular - right).argmin(1, keepdim=True)
        x = z.gather(1, best.expand(-1, -1, -1, size)).squeeze(1)
        result, least = least_violating(x, hessian, linear, result, least)
    return result


def _all_faces(size: int, device: torch.device) -> Tensor:
    """Which entries may be positive on each face of the orthant: ``(2^K, K)``."""
    numbers, positions = torch.arange(2**size, device=device), torch.arange(size, device=device)
    return (numbers.unsqueeze(1) >> positions) % 2 == 1
