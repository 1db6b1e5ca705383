"""The mean of the losses."""

from torch import Tensor

from .base import Scalarizer


class Mean(Scalarizer):
    r"""Averages the losses that are present.

    .. math:: s = \frac1K \sum_k L_k

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        monotone: no loss is weighed negatively.
        linear_under_scaling: the weights do not depend on the unit of any loss.
        scale_equivariant: the weights do not depend on the common scale of the losses.
        constant_total: the weights add up to 1.
        one_loss_is_identity: one loss has weight 1.
        no_host_sync: nothing is copied to the host.

    Shape:
        - losses: ``(K,)``.
        - output: ``()``.

    Cost:
        One backward pass.

    Example:
        >>> Mean()(torch.tensor([1.0, 3.0]))
        tensor(2.)
    """

    def scalar(self, losses: Tensor) -> Tensor:
        return losses.mean()
