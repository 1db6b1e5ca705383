"""Fixed weights."""

from torch import Tensor

from .given import Given, Numbers


class Constant(Given):
    r"""Weighs each loss by a number of its own: what a well-tuned baseline does.

    .. math:: s = \sum_k w_k L_k

    Guarantees:
        linear_under_scaling: the weights do not depend on the unit of any loss.
        scale_equivariant: the weights do not depend on the common scale of the losses.
        constant_total: the weights stay what they are; those of missing losses are left out.
        no_host_sync: nothing is copied to the host.

    Args:
        weights: One number an objective, of any sign.

    Shape:
        - losses: ``(K,)``.
        - output: ``()``.

    Raises:
        ValueError: ``weights`` are not finite, or there is none for an objective.

    Cost:
        One backward pass.

    Example:
        >>> Constant([1.0, 0.5])(torch.tensor([1.0, 3.0]))
        tensor(2.5000)
    """

    def __init__(self, weights: Numbers) -> None:
        super().__init__()
        self.give("weights", weights)

    def scalar(self, losses: Tensor) -> Tensor:
        return (self.given("weights", losses, 1.0) * losses).sum()
