"""Relative loss balancing with random look-back."""

import math

import torch
from torch import Tensor

from ..state import Randomized
from .base import Scalarizer
from .progress import ratio


class ReLoBRaLo(Randomized, Scalarizer):
    r"""Weighs a loss by how little it fell since the last call and, now and then, since the first.

    .. math:: s = \sum_k w_k L_k, \quad
        w(t) = \alpha \bigl[\rho \, w(t - 1) + (1 - \rho) \, b(t, 0)\bigr] + (1 - \alpha) \, b(t, t - 1), \quad
        b(t, u) = K \operatorname{softmax}_k \frac{L_k(t)}{T L_k(u)}

    :math:`\rho` is 1 with the probability ``saudade``, else 0. As in the authors' code, the weights are 1 in a loss's
    first call and :math:`b(t, t - 1)` in its second. A loss that was zero counts as unchanged, and its first value
    that is not zero is its start.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        monotone: no loss is weighed negatively.
        linear_under_scaling: the weights do not depend on the unit of any loss.
        scale_equivariant: the weights do not depend on the common scale of the losses.
        constant_total: the weights add up to K, if no loss is missing.
        one_loss_is_identity: one loss has weight 1.
        state_round_trip: weights, the first and the last losses and the generator's position are the state.

    Args:
        alpha: How much of the past is kept, in [0, 1].
        temperature: T, > 0: the larger, the more equal the weights.
        saudade: Probability not to look back, in [0, 1].
        generator: Source of the draws, on the CPU. ``None``: a new one with the global seed.

    Shape:
        - losses: ``(K,)``, of a sign that does not change; meant for positive ones.
        - output: ``()``.

    Raises:
        TypeError: ``generator`` is not a generator on the CPU.
        ValueError: An option is out of its range.

    Cost:
        One backward pass; one draw; a state of 3K numbers.

    References:
        Bischof and Kraus, Multi-objective loss balancing for physics-informed deep learning, CMAME 439 (2025)
        (arXiv:2110.09813); the defaults are those of the authors' notebooks.

    Example:
        >>> method = ReLoBRaLo(temperature=1.0)
        >>> method(torch.tensor([2.0, 2.0]))  # starts at the sum
        tensor(4.)
        >>> losses = torch.tensor([2.0, 1.0], requires_grad=True)
        >>> torch.autograd.grad(method(losses), losses)  # the first one did not fall
        (tensor([1.2449, 0.7551]),)
    """

    def __init__(
        self,
        alpha: float = 0.999,
        *,
        temperature: float = 0.1,
        saudade: float = 0.99,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        for name, share in (("alpha", alpha), ("saudade", saudade)):
            if not 0 <= share <= 1:
                raise ValueError(f"ReLoBRaLo: `{name}` must be in [0, 1], got {share!r}.")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"ReLoBRaLo: `temperature` must be a finite number > 0, got {temperature!r}.")
        self.alpha = float(alpha)
        self.temperature = float(temperature)
        self.saudade = float(saudade)
        for name in ("initial", "previous", "weights"):
            self.register_per_loss(name, math.nan)

    def scalar(self, losses: Tensor) -> Tensor:
        values = losses.detach()
        initial, previous = self.recall("initial", values), self.recall("previous", values)
        recent = self._balance(values, previous)
        past = self.recall("weights", values)
        history = past if self._keeps() else self._balance(values, initial)
        weights = torch.where(past.isnan(), recent, self.alpha * history + (1 - self.alpha) * recent)
        weights = torch.where(previous.isnan(), 1.0, weights)
        self.remember("weights", torch.where(previous.isnan(), torch.nan, weights))
        self.remember("initial", torch.where(initial.abs() > 0, initial, values))
        self.remember("previous", values)
        return (weights * losses).sum()

    def _keeps(self) -> bool:
        return float(torch.rand((), generator=self.generator, dtype=torch.float64)) < self.saudade

    def _balance(self, values: Tensor, reference: Tensor) -> Tensor:
        return len(values) * torch.softmax(ratio(values, reference) / self.temperature, dim=0)
