"""Dynamic weight average."""

import math

import torch
from torch import Tensor

from .base import Scalarizer
from .progress import ratio


class DWA(Scalarizer):
    r"""Weighs a loss by how slowly it fell from one epoch to the next.

    .. math:: s = \sum_k w_k L_k, \quad w = K \operatorname{softmax}(r / T), \quad
        r_k = \frac{\bar L_k(\text{last epoch})}{\bar L_k(\text{the epoch before})}

    The means are over an epoch's calls; :meth:`next_epoch`, or ``every``, ends it. Until two epochs are over, all
    weights are 1: without either it stays at the sum. A loss that was not seen in two epochs yet, or whose mean was
    zero, counts as unchanged: r = 1.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        monotone: no loss is weighed negatively.
        linear_under_scaling: the weights do not depend on the unit of any loss.
        scale_equivariant: the weights do not depend on the common scale of the losses.
        constant_total: the weights add up to K.
        one_loss_is_identity: one loss has weight 1.
        state_round_trip: the means and the epoch's sums are the state.

    Args:
        temperature: T, > 0: the larger, the more equal the weights. The paper's is 2.
        every: End the epoch by itself after this many calls, >= 1. ``None``: only :meth:`next_epoch` ends it.

    Shape:
        - losses: ``(K,)``, of a sign that does not change; meant for positive ones.
        - output: ``()``.

    Raises:
        ValueError: An option is out of its range.

    Cost:
        One backward pass; a state of 4K + 1 numbers.

    References:
        Liu, Johns and Davison, End-to-end multi-task learning with attention, CVPR 2019 (arXiv:1803.10704).

    Example:
        >>> method = DWA()
        >>> for losses in ([1.0, 1.0], [1.0, 0.5]):
        ...     _ = method(torch.tensor(losses))
        ...     method.next_epoch()
        >>> losses = torch.tensor([1.0, 0.5], requires_grad=True)
        >>> torch.autograd.grad(method(losses), losses)  # the first one did not fall
        (tensor([1.1244, 0.8756]),)
    """

    total: Tensor | None
    calls: Tensor

    def __init__(self, temperature: float = 2.0, *, every: int | None = None) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"DWA: `temperature` must be a finite number > 0, got {temperature!r}.")
        if every is not None and every < 1:
            raise ValueError(f"DWA: `every` must be a number of calls >= 1, got {every!r}.")
        self.temperature = float(temperature)
        self.every = every
        for name, start in (("latest", math.nan), ("earlier", math.nan), ("total", 0.0), ("count", 0.0)):
            self.register_per_loss(name, start)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def scalar(self, losses: Tensor) -> Tensor:
        values = losses.detach()
        change = ratio(self.recall("latest", values), self.recall("earlier", values))
        weights = len(values) * torch.softmax(change / self.temperature, dim=0)
        self.remember("total", self.recall("total", values) + values)
        self.remember("count", self.recall("count", values) + 1)
        self.calls = self.calls + 1
        if self.every is not None and int(self.calls) >= self.every:
            self.next_epoch()
        return (weights * losses).sum()

    def next_epoch(self) -> None:
        """Says that an epoch is over; losses that were not seen in it keep their means."""
        if self.total is None:
            return
        with self.objectives(None, len(self.total)):
            total = self.total
            latest, earlier, count = (self.recall(name, total) for name in ("latest", "earlier", "count"))
            self.remember("earlier", torch.where(count > 0, latest, earlier))
            self.remember("latest", torch.where(count > 0, total / count, latest))
            self.remember("total", torch.zeros_like(total))
            self.remember("count", torch.zeros_like(count))
        self.calls = torch.zeros_like(self.calls)
