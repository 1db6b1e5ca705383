"""PCGrad: each gradient loses its components against the others."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels import project, sum_of_projections
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
        no_host_sync: on a GPU nothing is read on the host, with a generator there.
        state_round_trip: the generator's position is part of the state.

    With two losses the result conflicts with neither; with more it may still conflict with some.

    Args:
        generator: Source of the random orders, on the CPU or a GPU. ``None``: a new one on the CPU, seeded with the
            global seed. For a CUDA graph, one on the GPU that is registered with the graph.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, at least 1 each.

    Raises:
        TypeError: ``generator`` is not a generator on the CPU or a GPU.
        RuntimeError: A CUDA graph is being captured with a generator on the CPU.

    Cost:
        K - 1 steps over a K x K matrix, whatever P.

    References:
        Yu et al., Gradient surgery for multi-task learning, NeurIPS 2020 (arXiv:2001.06782), algorithm 1.

    Example:
        >>> J = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
        >>> PCGrad()(J)
        tensor([-0.4000,  2.8000])
        >>> J @ PCGrad()(J)
        tensor([4.0000, 0.8000])
    """

    draws_on_gpu = True

    def __init__(self, *, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        if gramian.is_cpu:
            return torch.from_numpy(sum_of_projections(gramian.numpy(), random_order(gramian.shape, self.generator)))
        return project(gramian, order_on_device(gramian, self)).sum(dim=-2)


def random_order(shape: torch.Size, generator: torch.Generator) -> NDArray[np.intp]:
    """Draws the order in which each row of ``(..., K, K)`` Gramians meets the others: that of K uniform draws a row.

    Shape:
        - output: ``(K - 1, ..., K)``.
    """
    size = shape[-1]
    drawn = torch.rand(shape.numel(), generator=generator, dtype=torch.float64, device=generator.device)
    draws = drawn.numpy() if drawn.is_cpu else drawn.cpu().numpy()
    draws.reshape(-1, size * size)[:, :: size + 1] = 2.0  # the row itself would come last
    order = np.ascontiguousarray(draws.reshape(-1, size).argsort(1).T[:-1])
    return order if len(shape) == 2 else order.reshape(size - 1, *shape[:-1])


def order_on_device(gramian: Tensor, method: Randomized) -> Tensor:
    """The same where the Gramians are, without the host if the method's generator is there too."""
    if not method.draws_on(gramian.device):
        return torch.from_numpy(random_order(gramian.shape, method.generator)).to(gramian.device)
    generator = None if gramian.is_meta else method.generator
    draws = torch.rand(gramian.shape, generator=generator, dtype=torch.float64, device=gramian.device)
    draws.diagonal(dim1=-2, dim2=-1).fill_(2.0)
    return draws.argsort(-1)[..., :-1].movedim(-1, 0).contiguous()
