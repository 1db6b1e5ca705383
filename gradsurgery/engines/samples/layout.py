"""Which part of what a layer returned belongs to which sample: found out by differentiating half of the losses."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Samples along one dimension of a layer's output: index i of it belongs to sample ``i // after % samples``.

    Args:
        dim: The dimension.
        before: How often the samples follow one another, as in ``(T * N, ...)``.
        samples: N.
        after: How many neighbours belong to one sample, as in ``(N * T, ...)``.
    """

    dim: int
    before: int
    samples: int
    after: int

    def apart(self, tensor: Tensor, lead: int = 0) -> Tensor:
        """``(*lead, *output)`` as ``(N, *lead, *own)``: what of it is each sample's."""
        at = lead + self.dim
        split: Tensor = tensor.unflatten(at, self[1:])
        return split.movedim(at + 1, 0).flatten(at + 1, at + 2)

    def part(self, tensor: Tensor, dim: int, first: int, last: int) -> Tensor:
        """What belongs to the samples from ``first`` to before ``last`` along a dimension of the same layout."""
        if (first, last) == (0, self.samples):
            return tensor
        split: Tensor = tensor.unflatten(dim, self[1:])
        return split.narrow(dim + 1, first, min(last, self.samples) - first).flatten(dim, dim + 2)

    def weighed(self, delta: Tensor, weights: Tensor) -> Tensor:
        """The sum ``(1, *output)`` of deltas ``(K, *output)`` with weights ``(N, K)`` for each sample."""
        at = 1 + self.dim
        split: Tensor = delta.unflatten(at, self[1:])
        own = weights.T.reshape(len(delta), *[1] * at, self.samples, *[1] * (split.ndim - at - 2))
        terms = (split * own).flatten(at, at + 2)
        return terms if len(terms) == 1 else terms.sum(0, keepdim=True)

    def of_samples(self, values: Tensor) -> Tensor:
        """Values ``(K, size)`` along the dimension, summed for each sample: ``(N, K)``."""
        split: Tensor = values.unflatten(1, self[1:])
        return split.sum((1, 3)).T

    def owners(self) -> Tensor:
        """The sample that each index along the dimension belongs to."""
        return torch.arange(self.samples).repeat_interleave(self.after).repeat(self.before)


def layouts(shape: Sequence[int], dims: Sequence[int], samples: int) -> list[Layout]:
    """The layouts that N samples along one of some dimensions can have, the most likely ones first."""
    found = [
        Layout(dim, before, samples, size // samples // before)
        for dim, size in ((dim, shape[dim]) for dim in dims)
        if size and size % samples == 0
        for before in range(1, size // samples + 1)
        if size // samples % before == 0
    ]
    return sorted(found, key=lambda one: (one.before * one.after > 1, one.before > 1, one.after > 1))


def halves(samples: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of complementary halves: a pseudo-random one, then such that any two samples are told apart.

    The first one is of odd size: where samples mix in pairs, it is not made up of whole pairs.
    """
    draw = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    members = torch.zeros(samples, dtype=torch.bool)
    members[draw[: samples // 2 | 1]] = True
    yield members, ~members
    for bit in range((samples - 1).bit_length()):
        members = (torch.arange(samples) >> bit) % 2 == 1
        yield members, ~members
