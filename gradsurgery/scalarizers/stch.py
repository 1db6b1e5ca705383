"""Smooth Tchebycheff scalarization."""

import math

import torch
from torch import Tensor

from .given import Numbers
from .preference import Preference


class STCH(Preference):
    r"""Follows the largest loss, smoothly.

    .. math:: s = \mu \log \sum_k \exp \frac{\lambda_k (L_k - z_k)}{\mu}, \quad
        w_k = \lambda_k \operatorname{softmax}_k \frac{\lambda (L - z)}{\mu}

    Its minimisers over all preferences :math:`\lambda` are the whole Pareto front, also where it is not convex.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter, if no preference is given.
        monotone: no loss is weighed negatively.
        constant_total: the weights add up to 1 / K, if no preference is given.
        one_loss_is_identity: one loss has weight 1, if no preference is given.
        no_host_sync: nothing is copied to the host.

    ``mu`` has the unit of the losses: scale_equivariant does not hold.

    Args:
        mu: How smooth, > 0: the smaller, the more the largest term decides. The paper tries 0.01 to 1; its code for
            multi-task learning uses 1.
        weights: The preference :math:`\lambda`, one number an objective, >= 0. ``None``: ``1 / K`` each.
            :meth:`prefer` changes it.
        ideal: The ideal point z, below which no loss gets. ``None``: zero.
        logarithmic: Take the logarithms of the losses for the losses. Then :math:`e^z` is the unit of each loss: the
            paper's code for multi-task learning is this with the losses of an early epoch, times :math:`K^2`, and
            with its ``mu`` divided by K.

    Shape:
        - losses: ``(K,)``; positive if ``logarithmic``.
        - output: ``()``.

    Raises:
        ValueError: An option is out of its range, or, with ``logarithmic``, a loss on the CPU is not positive. On
            other devices, where looking would wait for the device, its derivatives are NaN instead.

    Cost:
        One backward pass.

    References:
        Lin, Zhang, Yang, Liu, Wang and Zhang, Smooth Tchebycheff scalarization for multi-objective optimization, ICML
        2024 (arXiv:2402.19078).

    Example:
        >>> losses = torch.tensor([1.0, 3.0], requires_grad=True)
        >>> torch.autograd.grad(STCH(mu=0.5)(losses), losses)
        (tensor([0.0596, 0.4404]),)
    """

    def __init__(
        self,
        mu: float = 1.0,
        *,
        weights: Numbers | None = None,
        ideal: Numbers | None = None,
        logarithmic: bool = False,
    ) -> None:
        super().__init__(weights, ideal)
        if not (math.isfinite(mu) and mu > 0):
            raise ValueError(f"STCH: `mu` must be a finite number > 0, got {mu!r}.")
        self.mu = float(mu)
        self.logarithmic = logarithmic

    def scalar(self, losses: Tensor) -> Tensor:
        if self.logarithmic:
            if losses.is_cpu:
                self.refuse(losses, losses <= 0, "positive with logarithmic=True")
            losses = losses.log()
        terms = self.preference(losses) * self.above_ideal(losses)
        largest = terms.detach().max()
        return largest + self.mu * torch.logsumexp((terms - largest) / self.mu, dim=0)
