"""Penalty-based boundary intersection."""

import math

import torch
from torch import Tensor

from .given import Numbers
from .preference import Preference, unit

_ROUNDING = 1e-14  # a distance from the line this small, relative to the losses, is rounding and has no direction


class PBI(Preference):
    r"""Shortens the losses along a preferred direction and keeps them close to it.

    .. math:: s = d_1 + \theta d_2, \quad d_1 = \langle L - z, u \rangle, \quad
        d_2 = \lVert L - z - d_1 u \rVert, \quad u = \lambda / \lVert \lambda \rVert

    On the line itself, where :math:`d_2` has no derivative, the weights are u.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter, if no preference is given.
        scale_equivariant: the weights do not depend on the common scale of the losses, if no ideal point is given.
        constant_total: the weights add up to the square root of K, if no preference is given.
        one_loss_is_identity: one loss has weight 1.
        no_host_sync: nothing is copied to the host.

    Where the losses are off the line, the weights of those below it are negative for a large :math:`\theta`: monotone
    does not hold.

    Args:
        theta: How strongly the distance from the line counts, >= 0. The paper's is 5.
        weights: The preference :math:`\lambda`, one number an objective, >= 0. ``None``: ``1 / K`` each.
            :meth:`prefer` changes it.
        ideal: The ideal point z, below which no loss gets. ``None``: zero.

    Shape:
        - losses: ``(K,)``.
        - output: ``()``; infinite where ``s`` exceeds the dtype of the losses, by whose range they should stay a few
          times smaller. The weights are computed in float64 and right all the same.

    Raises:
        ValueError: An option is out of its range.

    Cost:
        One backward pass.

    References:
        Zhang and Li, MOEA/D: a multiobjective evolutionary algorithm based on decomposition, IEEE Trans. Evol.
        Comput. 11 (2007).

    Example:
        >>> PBI(theta=5.0, weights=[3.0, 4.0])(torch.tensor([7.0, 1.0]))  # 5 along the line, 5 off it
        tensor(30.)
    """

    # Departs from Zhang and Li, section II-C: they write d2 with the preference where d1 takes its unit vector, which
    # is no decomposition unless its norm is 1, and take the absolute value of d1.

    def __init__(self, theta: float = 5.0, *, weights: Numbers | None = None, ideal: Numbers | None = None) -> None:
        super().__init__(weights, ideal)
        if not (math.isfinite(theta) and theta >= 0):
            raise ValueError(f"PBI: `theta` must be a finite number >= 0, got {theta!r}.")
        self.theta = float(theta)

    def scalar(self, losses: Tensor) -> Tensor:
        above = self.above_ideal(losses)
        direction = unit(self.preference(losses))
        along: Tensor = (above * direction).sum()
        off = above - along * direction
        on_the_line = torch.linalg.vector_norm(off) <= _ROUNDING * torch.linalg.vector_norm(above)
        distance: Tensor = torch.linalg.vector_norm(torch.where(on_the_line, 0.0, off))
        return along + self.theta * distance
