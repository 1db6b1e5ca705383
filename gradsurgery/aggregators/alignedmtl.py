"""Aligned-MTL: gradients made orthogonal and equally long, then averaged."""

from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from ..solvers import aligned_weights, device
from ..solvers.alignment import Scale
from .host import on_host_or_device
from .preference import Preferring


class AlignedMTL(Preferring):
    r"""Replaces the gradients by the closest orthogonal ones of equal length, then averages.

    .. math:: d = J^\top w, \quad w = \sigma \, V \Lambda^{-1/2} V^\top p, \quad G = V \Lambda V^\top

    over the eigenvalues that are not zero. With :math:`\sigma = \sqrt{\lambda_{\min}}` no aligned gradient is longer
    than its component in the direction of least agreement.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter, nor that of preferences with them.
        scale_equivariant: ``d(sJ) = s d(J)``.
        zero_rows_constrain_nothing: a zero row gets weight zero.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.
        no_host_sync: on a GPU nothing is read on the host for up to 8 losses, nor for more in a CUDA graph.

    Weights can be negative, and a loss whose gradient is long and opposed to others can get worse. The rank of the
    rows is that of the unit rows, so that no gradient is too small to count; where it changes, so does d.

    Args:
        scale: ``"min"``; ``"median"``, the median singular value of the rows (the lower of two); or ``"rmse"``, the
            root mean square of all that are not zero.
        preference: p, an importance >= 0 for each loss, not all zero; of losses that are absent, it is not used.
            ``None``: ``1 / K`` each, where the published code has 1.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``.

    Raises:
        ValueError: ``scale`` is unknown, or ``preference`` is negative, not finite, all zero or shorter than
            the losses.

    Cost:
        An eigendecomposition of size K; on the host about a dozen inversions where the norms are very far apart.

    References:
        Senushkin et al., Independent component alignment for multi-task learning, CVPR 2023 (arXiv:2305.19000),
        algorithm 1.

    Example:
        >>> J = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> AlignedMTL()(J)  # as if both were as long as the shorter one
        tensor([0.5000, 0.5000])
        >>> AlignedMTL("rmse")(J)
        tensor([1.4577, 1.4577])
    """

    def __init__(self, scale: Scale = "min", *, preference: Sequence[float] | Tensor | None = None) -> None:
        super().__init__(preference)
        if scale not in get_args(Scale):
            raise ValueError(f"AlignedMTL: `scale` must be one of {list(get_args(Scale))}, got {scale!r}.")
        self.scale = scale

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        preference = self.preferences(gramian.shape[-1])
        return on_host_or_device(aligned_weights, device.aligned_weights, gramian, preference, self.scale)
