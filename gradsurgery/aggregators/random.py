"""Random weights: a baseline that any method has to beat."""

import torch
from torch import Tensor

from ..state import Randomized
from .base import GramianAggregator

_AT_ONCE = 16
"""In multiples of this, torch's normal draws are the same whether they are drawn together or one after another."""


class Random(Randomized, GramianAggregator):
    r"""Averages the gradients with weights that are drawn anew at every call (random loss weighting).

    .. math:: d = \sum_k w_k g_k, \quad w = \operatorname{softmax}(z), \quad z_k \sim \mathcal N(0, 1)

    In expectation it is the mean.

    Guarantees:
        linear_under_scaling: d is linear in the scale of each row, for the same draws.
        scale_equivariant: ``d(sJ) = s d(J)``, for the same draws.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems with draws of their own.
        no_host_sync: on a GPU nothing is copied to the host, with a generator there.
        state_round_trip: the generator's position is the state.

    Args:
        generator: Source of the draws, on the CPU or a GPU. ``None``: a new one on the CPU, seeded with the global
            seed. For a CUDA graph, one on the GPU that is registered with the graph.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, positive, sums to 1.

    Raises:
        TypeError: ``generator`` is not a generator on the CPU or a GPU.
        RuntimeError: A CUDA graph is being captured with a generator on the CPU.

    Cost:
        K draws, rounded up to a multiple of 16.

    References:
        Lin, Ye, Zhang and Tsang, Reasonable effectiveness of random weighting: a litmus test for multi-task
        learning, TMLR 2022 (arXiv:2111.10603).

    Example:
        >>> method = Random()
        >>> bool(method.weights(torch.eye(3)).sum().isclose(torch.ones((), dtype=torch.float64)))
        True
        >>> torch.equal(method.weights(torch.eye(3)), method.weights(torch.eye(3)))
        False
    """

    draws_on_gpu = True

    def __init__(self, *, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        if not gramian.is_cpu and self.draws_on(gramian.device):
            source = None if gramian.is_meta else self.generator
            there = torch.randn(gramian.shape[:-1], generator=source, dtype=torch.float64, device=gramian.device)
            return there.softmax(-1)
        count = gramian.shape[-1]
        padded = -(-count // _AT_ONCE) * _AT_ONCE
        if gramian.ndim == 2:
            draws = torch.randn(padded, generator=self.generator, dtype=torch.float64, device=self.generator.device)
            if count < padded:
                draws.resize_(count)
        else:
            shape = (*gramian.shape[:-2], padded)
            draws = torch.randn(shape, generator=self.generator, dtype=torch.float64, device=self.generator.device)
            draws = draws[..., :count]
        weights = draws.softmax(-1)
        return weights if gramian.is_cpu and weights.is_cpu else weights.to(gramian.device)
