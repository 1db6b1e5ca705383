"""Conditioned one-shot multi-objective search: its objective."""

import math

from torch import Tensor

from .given import Numbers
from .preference import Preference, unit


class COSMOS(Preference):
    r"""Weighs the losses by a preference and rewards losses that are proportional to it.

    .. math:: s = \sum_k r_k L_k - \lambda \frac{\langle r, L \rangle}{\lVert r \rVert \lVert L \rVert}

    The published method draws a preference in each step, from a Dirichlet distribution, hands it to the network as
    one more input and to the objective by :meth:`prefer`.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter, if no preference is given.
        no_host_sync: nothing is copied to the host.

    Where the penalty asks for a larger loss, its weight is negative: monotone does not hold. The penalty has no unit,
    the losses have: scale_equivariant does not hold. Losses that are all zero have no cosine, and no penalty.

    Args:
        penalty: :math:`\lambda`, >= 0. The authors use 0.01 to 8, with 2 as their code's default.
        weights: The preference r, one number an objective, >= 0. ``None``: ``1 / K`` each.

    Shape:
        - losses: ``(K,)``.
        - output: ``()``.

    Raises:
        ValueError: An option is out of its range.

    Cost:
        One backward pass.

    References:
        Ruchte and Grabocka, Scalable Pareto front approximation for deep multi-objective learning, ICDM 2021
        (arXiv:2103.13392).

    Example:
        >>> method = COSMOS(penalty=1.0, weights=[3.0, 4.0])
        >>> method(torch.tensor([3.0, 4.0]))  # 25, less a cosine of 1
        tensor(24.)
    """

    def __init__(self, penalty: float = 2.0, *, weights: Numbers | None = None) -> None:
        super().__init__(weights)
        if not (math.isfinite(penalty) and penalty >= 0):
            raise ValueError(f"COSMOS: `penalty` must be a finite number >= 0, got {penalty!r}.")
        self.penalty = float(penalty)

    def scalar(self, losses: Tensor) -> Tensor:
        preference = self.preference(losses)
        return preference @ losses - self.penalty * (unit(preference) @ unit(losses))
