"""ExcessMTL: the further a loss is from its best value, the more it weighs."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..kernels import as_matrix, widened
from .base import Aggregator, undefined

_COLUMNS = 1 << 15  # looked at in one go: large copies cost more than the arithmetic on them


class ExcessMTL(Aggregator):
    r"""Multiplies the weight of each loss by the exponential of its estimated excess risk.

    .. math:: S_k \leftarrow S_k + g_k^2, \quad r_k = \sum_p \frac{g_{kp}^2}{\sqrt{S_{kp}}}, \quad
        w_k \propto w_k \exp(\eta \, r_k / r_k(0)), \quad d = \sum_k w_k g_k

    The weights start at the plain sum and keep the mean 1. A loss that is absent keeps its share. Not for an
    ``ImpartialityBlock``, where a row is a batch.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``.
        zero_rows_constrain_nothing: beside a zero row, the others keep their weights relative to each other.
        one_loss_is_identity: with one loss, ``w = 1``.
        state_round_trip: the sums of squares, the weights and the first risks are the state.

    Args:
        eta: Step size of the weights, > 0. The authors' code has 0.01.
        warmup: Over how many calls ``r(0)`` is averaged, >= 1; the weights stand still during these. The paper takes
            three epochs, its code the first call.

    Shape:
        - jacobian: ``(K, P)`` or a list of blocks ``(K, ...)``.
        - output: ``(P,)`` or a list of tensors ``(...)``.

    Raises:
        ValueError: An option is out of its range, or the Jacobian is a batch.

    Cost:
        Three passes over the Jacobian. The state has K x P numbers, in the gradients' dtype or float32: 4 K P bytes,
        twice that during a call.

    References:
        He et al., Robust multi-task learning with excess risks, ICML 2024 (arXiv:2402.02009).

    Example:
        >>> method = ExcessMTL(eta=1.0)
        >>> method(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # starts at the plain sum
        tensor([1., 1.])
        >>> method(torch.tensor([[1.0, 0.0], [0.0, 0.1]]))  # the second loss is nearly solved
        tensor([1.3351, 0.0665])
    """

    # Departs from He et al., their algorithm: the weights have mean 1, as in the authors' code, not sum 1; nothing
    # is added to the roots, which are kept instead of the sums so that squares neither overflow nor underflow.

    def __init__(self, eta: float = 0.01, *, warmup: int = 1) -> None:
        super().__init__()
        if not (math.isfinite(eta) and eta > 0):
            raise ValueError(f"ExcessMTL: `eta` must be a finite number > 0, got {eta!r}.")
        if not isinstance(warmup, int) or warmup < 1:
            raise ValueError(f"ExcessMTL: `warmup` must be an integer >= 1, got {warmup!r}.")
        self.eta = float(eta)
        self.warmup = warmup
        self.register_per_loss("roots", 0.0, dims=(0,), per_block=True)
        self.register_per_loss("learned", 0.0)  # (3, K): logarithms of the weights, first risks, calls they come from

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        risks = self._risks(blocks)
        if not math.isfinite(risks.sum()):
            return undefined(blocks)
        return kernels.combine(blocks, self._learned(risks).unsqueeze(0))

    def _risks(self, blocks: Sequence[Tensor]) -> Tensor:
        risks = torch.zeros(blocks[0].shape[0], dtype=torch.float64, device=blocks[0].device)
        for position, block in enumerate(blocks):
            gradients = widened(block)
            roots = torch.hypot(self.recall("roots", gradients, position), gradients)
            roots.clamp_(max=torch.finfo(roots.dtype).max)  # an infinite one would stay for good
            self.remember("roots", roots, position)
            smallest = torch.finfo(roots.dtype).tiny  # where all have been zero, zero is divided by it
            pairs = (as_matrix(rows).split(_COLUMNS, dim=1) for rows in (gradients, roots))
            for numbers, divisors in zip(*pairs, strict=True):
                products = (numbers / divisors.clamp_min(smallest)).mul_(numbers)
                risks = risks + products.sum(dim=1, dtype=torch.float64).to(risks.device)
        return risks

    def _learned(self, risks: Tensor) -> Tensor:
        """The weights after one step of exponentiated gradient ascent."""
        known = self.recall("learned", risks.new_empty(3, len(risks)))
        state, risk = known.cpu().numpy().copy(), risks.cpu().numpy()
        logarithms, first, calls = state
        before = np.logaddexp.reduce(logarithms)
        settled = calls >= self.warmup
        logarithms += self.eta * np.divide(risk, first, out=np.ones_like(risk), where=settled)
        warming = (risk > 0) & ~settled
        calls += warming
        first += warming * (risk - first) / np.maximum(calls, 1.0)
        logarithms += before - np.logaddexp.reduce(logarithms)
        self.remember("learned", torch.from_numpy(state).to(risks.device))
        weights = np.exp(logarithms - logarithms.max())
        return torch.from_numpy(weights * (len(risk) / weights.sum()))
