"""Minima over the linear hulls of faces of the non-negative orthant."""

import torch
from torch import Tensor

from .elimination import factorize, identity

_REFINEMENTS = 2


class Faces:
    r"""Minimises :math:`\tfrac12 z^\top H z - q^\top z` with the entries outside a face held at zero.

    Args:
        hessian: H, symmetric positive definite, ``(B, 1, K, K)``.
        inside: Which entries are inside, ``(F, K)`` or ``(B, F, K)``.

    Cost:
        2K launches, and 22 for each call of :meth:`minima`.
    """

    def __init__(self, hessian: Tensor, inside: Tensor) -> None:
        self.hessian = hessian
        system = torch.where(inside.unsqueeze(-1) & inside.unsqueeze(-2), hessian, identity(hessian))
        self.factors = factorize(system)
        self.inside = (inside & self.factors.definite.unsqueeze(-1)).unsqueeze(-2)

    def minima(self, linear: Tensor) -> Tensor:
        """For q of the shape ``(B, F or 1, M, K)`` the minima ``(B, F, M, K)``; zero where H is not definite."""
        z = self.factors.solve(linear * self.inside)
        for _ in range(_REFINEMENTS):
            z = z + self.factors.solve((linear - z @ self.hessian) * self.inside)
        return torch.where(self.inside, z, 0.0)
