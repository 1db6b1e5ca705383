"""GradVac: the gradients of each pair of losses are turned towards their usual cosine."""

import numpy as np
import torch
from torch import Tensor

from ..kernels import can_project, encounters, vaccinate
from ..solvers.arrays import Array, Indices
from ..solvers.scaling import unit_gramian
from ..state import Randomized
from .base import GramianAggregator
from .pcgrad import order_on_device, random_order

_ONE = np.ones(())  # Python numbers would be converted at every use
_ROUNDING = np.array(64 * np.finfo(np.float64).eps)  # of a squared length relative to that of the gradient
_LONGEST = np.array(2.0**26)  # where squares still leave room for those of any number of further steps


class GradVac(Randomized, GramianAggregator):
    r"""Adds to each gradient what brings its cosine with every other one up to a moving target.

    .. math:: \hat g_i \leftarrow \hat g_i + \lVert \hat g_i \rVert \,
        \frac{\phi_{ij} \sqrt{1 - c^2} - c \sqrt{1 - \phi_{ij}^2}}{\lVert g_j \rVert \sqrt{1 - \phi_{ij}^2}} \, g_j
        \quad\text{if } c = \cos(\hat g_i, g_j) < \phi_{ij}, \qquad
        \phi_{ij} \leftarrow (1 - \beta) \phi_{ij} + \beta c

    for all :math:`j \ne i` in random order, and :math:`d = \sum_i \hat g_i`. Targets start at 0, where this is
    PCGrad. As in the paper's algorithm, c is the cosine that the pair meets with, before it is corrected, and the
    target follows it at every call (LibMTL's follows only where it corrects, so that it can never rise). The
    paper's targets per layer are those of a surgery per module or tensor.

    Guarantees:
        linear_under_scaling: d is linear in the scale of each row, for the same draws and targets.
        scale_equivariant: ``d(sJ) = s d(J)``, for the same draws.
        zero_rows_constrain_nothing: a zero row corrects nothing, and its targets stand still.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems with draws and targets of their own.
        state_round_trip: the targets and the generator's position are the state.

    A gradient that is opposed to another one vanishes, as in PCGrad: nothing turns it. The closer a target is to 1,
    the more is added, without bound in the paper; here about :math:`2^{26}` times the gradient at most.

    Args:
        beta: How fast the targets follow, in [0, 1]. The paper's is 1e-2; 0.5 in LibMTL.
        generator: Source of the random orders, on the CPU or a GPU. ``None``: a new one on the CPU, seeded with the
            global seed.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``.

    Raises:
        ValueError: ``beta`` is out of its range.
        TypeError: ``generator`` is not a generator on the CPU or a GPU.

    Cost:
        K - 1 steps over a K x K matrix, whatever P, on the host or in one launch; a state of K x K numbers.

    References:
        Wang et al., Gradient vaccine: investigating and improving multi-task optimization in massively multilingual
        models, ICLR 2021 (arXiv:2010.05874), algorithm 1.

    Example:
        >>> method = GradVac(beta=0.5)
        >>> method(torch.eye(2))
        tensor([1., 1.])
        >>> method(torch.tensor([[4.0, 3.0], [4.0, -3.0]]))  # a cosine of 0.28, the targets are 0
        tensor([8., 0.])
        >>> method(torch.eye(2))  # the targets are 0.14
        tensor([1.1414, 1.1414])
    """

    # Departs from Wang et al., algorithm 1: the bound, without which a target of 1 would ask for infinitely much.

    draws_on_gpu = True

    def __init__(self, beta: float = 1e-2, *, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        if not 0 <= beta <= 1:
            raise ValueError(f"GradVac: `beta` must be in [0, 1], got {beta!r}.")
        self.beta = float(beta)
        self.register_per_loss("targets", 0.0, dims=(-2, -1))

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        if can_project(gramian):
            aims = self.recall("targets", gramian)
            corrected, reached = vaccinate(gramian, aims, order_on_device(gramian, self), self.beta)
            self.remember("targets", reached)
            return corrected
        on_host = gramian.cpu()
        targets = self.recall("targets", on_host)
        order = random_order(gramian.shape, self.generator)
        weights, moved = _vaccinate(on_host.numpy(), targets.numpy(), order, self.beta)
        self.remember("targets", torch.from_numpy(moved))
        return torch.from_numpy(weights).to(gramian.device)


def _vaccinate(gramian: Array, targets: Array, order: Indices, beta: float) -> tuple[Array, Array]:
    """The weights, and the targets for the next call."""
    size = gramian.shape[-1]
    cosines, norms, nonzero = unit_gramian(gramian.reshape(-1, size, size))
    lengths, present = norms.reshape(-1), nonzero.reshape(-1)
    others, pairs = encounters(order)
    target = targets.reshape(-1)[pairs]
    both = None if np.count_nonzero(present) == present.size else present & present[others]
    added, seen = _corrections(cosines.reshape(-1, size), target if both is None else target * both, others, pairs)
    change = beta * (seen - target)
    if both is not None:
        change = change * both
    moved = targets.copy()
    moved.reshape(-1)[pairs] += change
    total = np.bincount(others.reshape(-1), (added * lengths).reshape(-1), len(lengths))
    weights: Array = _ONE + total / lengths
    return weights.reshape(gramian.shape[:-1]), moved


def _corrections(cosines: Array, target: Array, others: Indices, pairs: Indices) -> tuple[Array, Array]:
    """How much of each unit row is added to the rows that meet it, and the cosines that these meet with.

    Lengths are relative to that of the row at the start. A row has a part along the unit row that it meets, and the
    rest; the target asks for a part that is at least its cotangent times the rest.
    """
    cotangent = target / np.sqrt(np.maximum(_ONE - target * target, _ROUNDING))
    current = cosines.copy()
    flat = current.reshape(-1)
    squares = np.ones(pairs.shape)  # of the lengths
    parts, added = np.empty(pairs.shape), np.empty(pairs.shape)
    last = len(pairs) - 1
    for step in range(len(pairs)):
        part = parts[step] = flat[pairs[step]]
        rest = squares[step] - part * part  # squared
        rest *= rest > _ROUNDING
        wanted = np.maximum(np.minimum(np.sqrt(rest) * cotangent[step], _LONGEST), part)
        np.subtract(wanted, part, out=added[step])
        if step < last:
            current += added[step][:, None] * cosines.take(others[step], 0)
            squares[step + 1] = wanted * wanted + rest
    return added, parts / np.sqrt(np.maximum(squares, _ROUNDING))
