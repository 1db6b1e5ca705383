"""M-ConFIG: ConFIG of the gradients' averages, so that one loss a step is enough."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import kernels
from .base import undefined
from .conflict_free import conflict_free_weights
from .host import on_host
from .tracking import Tracking


class MConFIG(Tracking):
    r"""Keeps an average of each loss's gradients and makes a step as if ConFIG had combined the averages.

    .. math:: m_k \leftarrow \beta m_k + (1 - \beta) g_k \text{ for the losses of this call}, \quad
        \hat m = \mathrm{ConFIG}\Bigl(\frac{m_1}{1 - \beta^{t_1}}, \dots, \frac{m_K}{1 - \beta^{t_K}}\Bigr), \quad
        d = \frac{\hat m (1 - \beta^t) - \beta \hat m' (1 - \beta^{t-1})}{1 - \beta}

    :math:`t_k` counts the calls with loss k, t all calls, and :math:`\hat m'` is the :math:`\hat m` of the last call.
    A call needs the gradient of a single loss: the others keep their averages. d is the gradient whose Adam average
    is :math:`\hat m`: with ``torch.optim.Adam(betas=(beta, ...))`` as the wrapped optimizer the step is that of the
    paper. With one loss alone d is its gradient. Not for an ``ImpartialityBlock``, where a row is a batch.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``.
        zero_rows_constrain_nothing: an average that is zero gets weight zero.
        state_round_trip: averages, numbers of calls and the last weights are the state.

    Args:
        beta: Share of an average that stays, in [0, 1); Adam's first beta.

    Shape:
        - jacobian: ``(K, P)`` or a list of blocks ``(K, ...)``, the losses of this call.
        - output: ``(P,)`` or a list of tensors ``(...)``.

    Raises:
        ValueError: ``beta`` is out of its range, or the Jacobian is a batch.

    Cost:
        Three passes over the averages of all losses, ``K^2 P`` multiplications. The state has K x P numbers, in the
        gradients' dtype or float32: 4 K P bytes, twice that during a call.

    References:
        Liu, Chu and Thuerey, ConFIG: towards conflict-free training of physics informed neural networks, ICLR
        2025 (arXiv:2408.11104), section 3.3 and algorithm 1.

    Example:
        >>> method = MConFIG(beta=0.5)
        >>> method(torch.tensor([[1.0, 0.0]]), rows=[0])
        tensor([1., 0.])
        >>> method(torch.tensor([[0.0, 1.0]]), rows=[1])  # the first loss is remembered
        tensor([1.0000, 1.5000])
    """

    # Departs from Liu et al., the published code: it returns zeros, and does not count, until every loss has been
    # seen. A loss that has not been seen has a zero average, which ConFIG leaves out: here every call is a step, and
    # the number of calls is that of Adam's steps.

    steps: Tensor

    def __init__(self, beta: float = 0.9) -> None:
        super().__init__()
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"MConFIG: `beta` must be in [0, 1), got {beta!r}.")
        self.beta = float(beta)
        self.register_per_loss("kept", 0.0)
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        known = self._buffers["calls"]
        every = max(max(self.current_rows(len(blocks[0]))) + 1, 0 if known is None else len(known))
        before, weights_before = self._averages(blocks, every)
        calls = self.count(blocks)
        self.follow(blocks, torch.ones_like(calls), (1 - self.beta) / (1 - self.beta**calls))
        averages, _ = self._averages(blocks, every)
        gramian = kernels.gramian(averages)[0]
        if not kernels.is_finite(gramian):
            return undefined(blocks)
        weights = on_host(conflict_free_weights, gramian)
        with self.objectives(None, every):
            self.remember("kept", weights)
        self.steps = self.steps + 1
        stretch = (1 - self.beta ** float(self.steps)) / (1 - self.beta)
        pairs = zip(
            kernels.combine(before, weights_before.unsqueeze(0)),
            kernels.combine(averages, weights.unsqueeze(0)),
            strict=True,
        )
        return [
            torch.lerp(old, new, stretch).to(block.dtype) for (old, new), block in zip(pairs, blocks, strict=True)
        ]

    def _averages(self, blocks: Sequence[Tensor], every: int) -> tuple[list[Tensor], Tensor]:
        """The averages of all losses, zero for those not seen yet, and the weights they had last."""
        first = blocks[0]
        with self.objectives(None, every, self._blocks):
            rows = [
                self.recall("tracked", kernels.widened(block[:1]).expand(every, *block.shape[1:]), position)
                for position, block in enumerate(blocks)
            ]
            return rows, self.recall("kept", first.new_empty(every, dtype=torch.float64))
