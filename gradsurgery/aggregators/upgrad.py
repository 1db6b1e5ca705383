"""UPGrad: the mean of the gradients, each first made harmless to all losses."""

from torch import Tensor

from ..solvers import device, mean_of_projected_rows
from .host import on_host_or_device
from .preference import Preferring


class UPGrad(Preferring):
    r"""Projects each gradient on the cone of directions that make no loss worse, then averages.

    .. math:: d = \sum_k p_k \arg\min_{x : J x \ge 0} \lVert x - g_k \rVert

    Guarantees:
        non_conflicting: ``J @ d >= 0`` up to rounding.
        permutation_equivariant: the order of the losses does not matter.
        linear_under_scaling: d is linear in the scale of each row.
        scale_equivariant: ``d(sJ) = s d(J)``.
        equals_mean_without_conflict: the mean of the rows when no two conflict.
        zero_rows_constrain_nothing: a zero row counts in the average and constrains nothing.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.
        no_host_sync: on a GPU nothing is read on the host for up to 8 losses, nor for more in a CUDA graph.

    Args:
        preference: p, an importance >= 0 for each loss, not all zero; of losses that are absent, it is not used.
            ``None``: ``1 / K`` each, for which all this holds.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, at least p.

    Raises:
        ValueError: ``preference`` is empty, negative, not finite, all zero or shorter than the losses.

    Cost:
        K non-negative least-squares problems of size K, solved together; nothing that depends on P.

    References:
        Quinton and Rey, Jacobian descent for multi-objective optimization (arXiv:2406.16232), section 2.2.

    Example:
        >>> J = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
        >>> J @ UPGrad()(J)
        tensor([2.0000, 0.4000])
    """

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        preference = self.preferences(gramian.shape[-1])
        return on_host_or_device(mean_of_projected_rows, device.mean_of_projected_rows, gramian, preference)
