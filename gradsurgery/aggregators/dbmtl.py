"""DB-MTL: logarithms of the losses, and tracked gradients of one length."""

import math
from collections.abc import Sequence

from torch import Tensor

from .. import kernels
from .tracking import Tracking, inverse, row_norms


class DBMTL(Tracking):
    r"""Averages the gradients of the logarithms of the losses and brings the averages to the length of the longest.

    .. math:: V \leftarrow \frac{\beta}{t^{b}} V + \Bigl(1 - \frac{\beta}{t^{b}}\Bigr) \nabla \log L, \quad
        \nabla \log L_k = \frac{g_k}{L_k}, \quad
        d = \sum_k \frac{\max_i \lVert v_i \rVert}{\lVert v_k \rVert} v_k

    V starts at zero and is not corrected for it, as published; t counts the calls that a loss was present in. Not for
    an ``ImpartialityBlock``, which has no losses.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)`` at the same losses; scaled with J, they take the scale out.
        zero_rows_constrain_nothing: a zero row adds nothing to the sum.
        state_round_trip: V and the numbers of calls are the state.

    Args:
        beta: Share of V that is kept, in [0, 1).
        beta_decay: b, >= 0.

    Shape:
        - jacobian: ``(K, P)`` or a list of blocks ``(K, ...)``.
        - losses: ``(K,)``, > 0.
        - output: ``(P,)`` or a list of tensors ``(...)``.

    Raises:
        ValueError: An option is out of its range, there are no losses or one is not positive, or the Jacobian is a
            batch.

    Cost:
        Three passes over the Jacobian. The state has K x P numbers, in the gradients' dtype or float32: 4 K P bytes,
        twice that during a call.

    References:
        Lin et al., Dual-balancing for multi-task learning (arXiv:2308.12029).

    Example:
        >>> DBMTL(beta=0.0)(torch.tensor([[4.0, 0.0], [0.0, 3.0]]), torch.tensor([2.0, 0.5]))
        tensor([6., 6.])
    """

    # Departs from Lin et al., their code: nothing is added to the losses or the lengths; a zero row stays zero.

    def __init__(self, beta: float = 0.9, *, beta_decay: float = 0.0) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ValueError(f"DBMTL: `beta` must be in [0, 1), got {beta!r}.")
        if not (math.isfinite(beta_decay) and beta_decay >= 0):
            raise ValueError(f"DBMTL: `beta_decay` must be a finite number >= 0, got {beta_decay!r}.")
        self.beta = float(beta)
        self.beta_decay = float(beta_decay)

    @property
    def uses_losses(self) -> bool:
        return True

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        if losses is None or bool(((losses <= 0) & losses.isfinite()).any()):
            got = "none" if losses is None else f"{losses.tolist()}"
            raise ValueError(
                f"DBMTL: `losses` must be positive, got {got}. Hand over the loss values; for losses that may be "
                f"negative, use another method."
            )
        rates = 1 - self.beta / self.count(blocks) ** self.beta_decay
        rows = self.follow(blocks, 1 / losses, rates)
        lengths = row_norms(rows)
        directions = kernels.combine(rows, (lengths.max() * inverse(lengths)).unsqueeze(0))
        return [direction.to(block.dtype) for direction, block in zip(directions, blocks, strict=True)]
