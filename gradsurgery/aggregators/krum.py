"""Krum: the gradient that has the others around it."""

import numpy as np
from torch import Tensor

from ..solvers.arrays import Array
from .base import GramianAggregator
from .host import on_host

_TIE = 1e-9  # scores that differ by less, relatively, are equal


class Krum(GramianAggregator):
    r"""Keeps the gradients that are closest to their neighbours, so that few corrupt ones cannot lead astray.

    .. math:: s_i = \sum_{j \in N_i} \lVert g_i - g_j \rVert^2, \qquad d = \frac1m \sum_{i \in S} g_i

    :math:`N_i` are the K - f - 2 rows closest to row i, S the m rows with the smallest scores; rows with equal scores
    share what is left of the m places.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.

    Made for workers that differentiate the same loss; between different losses, the ones that are unlike the others
    are ignored. A zero row is a gradient like any other, and may be the one that is kept.

    Args:
        n_byzantine: f, how many gradients may be corrupt, >= 0. ``None``: as many as the paper allows for K,
            ``(K - 3) // 2``; with one or two losses nobody has neighbours, and d is the mean.
        n_selected: m, how many gradients are averaged, >= 1; more than 1 is Multi-Krum.

    Shape:
        - gramian: ``(..., K, K)``; K >= f + 3, and 2f + 3 for the paper's proof.
        - output: ``(..., K)``, non-negative, sums to 1.

    Raises:
        ValueError: An option is out of its range, or there are too few losses for it.

    Cost:
        Sorting K x K numbers on the host, whatever P.

    References:
        Blanchard, El Mhamdi, Guerraoui and Stainer, Machine learning with adversaries: Byzantine tolerant gradient
        descent, NeurIPS 2017, section 4.

    Example:
        >>> J = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [50.0, -80.0]])
        >>> Krum(n_byzantine=1)(J)
        tensor([0.5000, 0.5000])
    """

    # Departs from Blanchard et al., section 4: of rows with equal scores they take the one with the smallest number.
    # Equal scores are common, the two closest rows of four with f = 1 have them, and rounding would decide.

    def __init__(self, n_byzantine: int | None = None, *, n_selected: int = 1) -> None:
        super().__init__()
        if n_byzantine is not None and not (isinstance(n_byzantine, int) and n_byzantine >= 0):
            raise ValueError(f"Krum: `n_byzantine` must be None or an integer >= 0, got {n_byzantine!r}.")
        if not (isinstance(n_selected, int) and n_selected >= 1):
            raise ValueError(f"Krum: `n_selected` must be an integer >= 1, got {n_selected!r}.")
        self.n_byzantine = n_byzantine
        self.n_selected = n_selected

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        count = gramian.shape[-1]
        corrupt = max(0, (count - 3) // 2) if self.n_byzantine is None else self.n_byzantine
        if self.n_byzantine is not None and count < corrupt + 3:
            raise ValueError(
                f"Krum: `n_byzantine` must be at most K - 3 = {count - 3} for {count} losses, got {corrupt}. "
                f"Use None for as many as there can be."
            )
        if count < self.n_selected:
            raise ValueError(
                f"Krum: `n_selected` must be at most the number of losses, {count}, got {self.n_selected}."
            )
        return on_host(_selection, gramian, max(0, count - corrupt - 2), self.n_selected)


def _selection(gramian: Array, neighbours: int, selected: int) -> Array:
    squared = gramian.diagonal(0, 1, 2)
    distances = np.maximum(squared[:, :, None] + squared[:, None] - 2.0 * gramian, 0.0)  # not below, by rounding
    distances.sort(axis=-1)
    scores = distances[..., : neighbours + 1].sum(axis=-1)  # the first is the distance to itself, 0
    bound = np.sort(scores, axis=-1)[:, selected - 1, None]
    below = scores < (1 - _TIE) * bound
    equal = ~below & (scores <= (1 + _TIE) * bound)
    places = selected - below.sum(axis=-1, keepdims=True)
    weights: Array = (below + equal * (places / equal.sum(axis=-1, keepdims=True))) / selected
    return weights
