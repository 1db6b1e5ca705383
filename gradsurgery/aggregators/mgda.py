"""Multiple-gradient descent: the shortest convex combination of the gradients."""

from typing import Literal, get_args

import torch
from torch import Tensor

from ..solvers import device, min_norm_weights
from .base import GramianAggregator
from .host import on_host_or_device

Normalization = Literal["none", "l2", "loss", "loss+"]


class MGDA(GramianAggregator):
    r"""Steps along the shortest convex combination of the gradients.

    .. math:: d = J^\top w, \quad w = \arg\min_{w \in \Delta_K} \lVert J^\top w \rVert^2

    With ``normalization`` the minimiser is taken for the rows divided by :math:`s_k` and the direction is the
    combination of those rows: :math:`s_k = \lVert g_k \rVert` (``"l2"``), :math:`L_k` (``"loss"``) or
    :math:`L_k \lVert g_k \rVert` (``"loss+"``). At an ``ImpartialityBlock`` this is MGDA-UB; it has no losses, so
    there ``"none"`` and ``"l2"`` are left.

    Guarantees:
        non_conflicting: ``J @ d >= 0`` up to rounding; without normalisation ``J @ d >= ||d||^2``.
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``; with ``"l2"`` and ``"loss+"``, ``d(sJ) = d(J)``.
        stationary: on the non-zero rows, ``d = 0`` exactly when no direction helps every loss.
        zero_rows_constrain_nothing: a zero row gets weight zero.
        one_loss_is_identity: with one loss and no normalisation, ``w = 1``.
        batched: leading dimensions are separate problems.
        no_host_sync: on a GPU nothing is read on the host for up to 8 losses, nor for more in a CUDA graph.

    A loss with a small gradient receives a large weight: linear_under_scaling does not hold.

    Args:
        normalization: What the rows are divided by first: ``"none"``, ``"l2"``, ``"loss"`` or ``"loss+"``.

    Shape:
        - gramian: ``(..., K, K)``.
        - losses: ``(K,)``, positive; needed by ``"loss"`` and ``"loss+"``.
        - output: ``(..., K)``, non-negative; sums to 1 without normalisation.

    Raises:
        ValueError: ``normalization`` is unknown, or it needs losses and there are none or a non-positive one. On a
            GPU nobody looks: a non-positive loss makes the weights NaN there.

    Cost:
        As a rule one or two solves of size K, some more where gradients depend on each other; nothing that depends on
        P. ``solvers.optimality_gap`` tells how far from the optimum rounding has left the weights.

    References:
        Désidéri, Multiple-gradient descent algorithm (MGDA) for multiobjective optimization, C. R. Math. 350
        (2012). Sener and Koltun, Multi-task learning as multi-objective optimization, NeurIPS 2018
        (arXiv:1810.04650).

    Example:
        >>> J = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
        >>> J @ J.mean(0)  # the average makes the second loss worse
        tensor([ 6., -2.])
        >>> J @ MGDA()(J)  # both improve
        tensor([0.4000, 0.4000])
    """

    def __init__(self, normalization: Normalization = "none") -> None:
        super().__init__()
        if normalization not in get_args(Normalization):
            raise ValueError(
                f"MGDA: `normalization` must be one of {list(get_args(Normalization))}, got {normalization!r}."
            )
        self.normalization = normalization

    @property
    def uses_losses(self) -> bool:
        return self.normalization in ("loss", "loss+")

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        if self.normalization == "none":
            return on_host_or_device(min_norm_weights, device.min_norm_weights, gramian)
        scale = self._scale(gramian, losses)
        inverse = torch.where(scale > 0, 1.0 / scale, 0.0)
        normalized = gramian * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
        weights = on_host_or_device(min_norm_weights, device.min_norm_weights, normalized) * inverse
        return torch.where(scale.isnan().any(-1, keepdim=True), torch.nan, weights) if self.uses_losses else weights

    def _scale(self, gramian: Tensor, losses: Tensor | None) -> Tensor:
        norms = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
        if self.normalization == "l2":
            return norms
        if losses is None or (losses.is_cpu and bool((losses <= 0).any())):
            got = "none" if losses is None else losses.tolist()
            raise ValueError(
                f"MGDA: `losses` must be positive for normalization={self.normalization!r}, got {got}. Hand "
                f"over the loss values, or use normalization='l2'."
            )
        values = losses if losses.is_cpu else torch.where(losses > 0, losses, torch.nan)
        values = values.to(norms).expand_as(norms)
        return values if self.normalization == "loss" else values * norms
