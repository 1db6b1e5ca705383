"""PCGrad: each gradient loses its components against the others."""

import torch
from torch import Tensor

from ..kernels import project
from ..state import Randomized
from .base import GramianAggregator


class PCGrad(Randomized, GramianAggregator):
    r"""Projects each gradient on the normal plane of every gradient it conflicts with, then adds them up.

    .. math:: \hat g_i \leftarrow \hat g_i - \frac{\min(0, \langle \hat g_i, g_j \rangle)}{\lVert g_j \rVert^2} g_j
        \quad\text{for } j \ne i \text{ in random order}, \qquad d = \sum_i \hat g_i

    Guarantees:
        linear_under_scaling: d is linear in the scale of each row, for the same draws.
        scale_equivariant: ``d(sJ) = s d(J)``, for the same draws.
        zero_rows_constrain_nothing: a zero row projects nothing.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems with draws of their own.
        state_round_trip: the generator's position is part of the state.

    With two losses the result conflicts with neither; with more it may still conflict with some.

    Args:
        generator: Source of the random orders, on the CPU. ``None``: a new one, seeded with the global seed.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, at least 1 each.

    Raises:
        TypeError: ``generator`` is not a generator on the CPU.

    Cost:
        K steps over a K x K matrix, whatever P.

    References:
        Yu et al., Gradient surgery for multi-task learning, NeurIPS 2020 (arXiv:2001.06782), algorithm 1.

    Example:
        >>> J = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
        >>> PCGrad()(J)
        tensor([-0.4000,  2.8000])
        >>> J @ PCGrad()(J)
        tensor([4.0000, 0.8000])
    """

    def __init__(self, *, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        draws = torch.rand(gramian.shape, generator=self.generator, dtype=torch.float64)
        order = draws.argsort(dim=-1).to(gramian.device)
        return project(gramian, order).sum(dim=-2)
