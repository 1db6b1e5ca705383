"""The geometric mean of the losses."""

from torch import Tensor

from .base import Scalarizer


class GeometricMean(Scalarizer):
    r"""Multiplies the losses, so that each counts by its relative change (geometric loss strategy, GLS).

    .. math:: s = \Bigl(\prod_k L_k\Bigr)^{1/K}, \quad \frac{\partial s}{\partial L_k} = \frac{s}{K L_k}

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        monotone: no loss is weighed negatively.
        scale_equivariant: the weights do not depend on the common scale of the losses.
        invariant_to_units: in another unit, a loss keeps its share of the weighed sum, ``w_k L_k``.
        one_loss_is_identity: one loss has weight 1.
        no_host_sync: nothing is copied to the host.

    The closer a loss is to zero, the larger its weight: constant_total does not hold.

    Shape:
        - losses: ``(K,)``, positive.
        - output: ``()``.

    Raises:
        ValueError: A loss on the CPU is not positive. On other devices, where looking would wait for the device, its
            derivatives are NaN instead.

    Cost:
        One backward pass.

    References:
        Chennupati, Sistu, Yogamani and Rawashdeh, MultiNet++: multi-stream feature aggregation and geometric loss
        strategy for multi-task learning, CVPR workshops 2019 (arXiv:1904.08492).

    Example:
        >>> GeometricMean()(torch.tensor([1.0, 4.0]))
        tensor(2.)
    """

    def scalar(self, losses: Tensor) -> Tensor:
        if losses.is_cpu:
            self.refuse(losses, losses <= 0, "positive")
        return losses.log().mean().exp()
