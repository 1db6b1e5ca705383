"""DualProj: the mean of the gradients, made harmless to all losses."""

from torch import Tensor

from ..solvers import device, project_on_dual_cone
from ..solvers.arrays import Array
from .host import on_host_or_device
from .preference import Preferring


class DualProj(Preferring):
    r"""Projects the mean of the gradients on the cone of directions that make no loss worse.

    .. math:: d = \arg\min_{x : J x \ge 0} \lVert x - \textstyle\sum_k p_k g_k \rVert

    Guarantees:
        non_conflicting: ``J @ d >= 0`` up to rounding.
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``.
        equals_mean_without_conflict: the mean of the rows where that makes no loss worse, as when no two conflict.
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
        One non-negative least-squares problem of size K; nothing that depends on P.

    References:
        Quinton and Rey, Jacobian descent for multi-objective optimization (arXiv:2406.16232), section 2.3. The
        projection is that of Lopez-Paz and Ranzato, Gradient episodic memory for continual learning, NeurIPS 2017
        (arXiv:1706.08840), equation 11.

    Example:
        >>> J = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
        >>> DualProj()(J)  # the mean is [1, 1]
        tensor([0., 1.])
        >>> J @ DualProj()(J)
        tensor([2., 0.])
    """

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return on_host_or_device(_projected, _projected_on_device, gramian, self.preferences(gramian.shape[-1]))


def _projected(gramian: Array, preference: Array) -> Array:
    return project_on_dual_cone(gramian, preference[None, None])[:, 0]


def _projected_on_device(gramian: Tensor, preference: Tensor) -> Tensor:
    return device.project_on_dual_cone(gramian, preference[None, None])[:, 0]
