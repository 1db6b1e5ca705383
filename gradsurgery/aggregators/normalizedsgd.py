"""Normalized SGD: equal lengths for all gradients, and for their sum the pace of those that lag behind."""

import torch
from torch import Tensor

from .base import GramianAggregator


class NormalizedSGD(GramianAggregator):
    r"""Adds up the unit gradients, times an average of their norms that favours the losses that converge slowly.

    .. math:: d = C \sum_k \frac{g_k}{n_k}, \quad C = \sum_k \alpha_k n_k, \quad
        \alpha_k = \frac{n_k / n_k(0)}{\sum_j n_j / n_j(0)}, \quad n_k = \lVert g_k \rVert

    This is RotoGrad's scaling of magnitudes, without its rotations.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``.
        zero_rows_constrain_nothing: a zero row has no share in the average, and its initial norm waits.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems with a state of their own.
        state_round_trip: initial norms and numbers of calls are the state.

    Args:
        burn_in: After how many calls the initial norm of a loss is taken anew, >= 0: at the very start of training
            norms are often odd. 20 in the authors' codes; 0 keeps that of the first call.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, non-negative; zero for zero rows.

    Raises:
        ValueError: ``burn_in`` is no integer >= 0.

    Cost:
        A few operations on K numbers; a state of 2K numbers.

    References:
        Javaloy and Valera, RotoGrad: gradient homogenization in multitask learning, ICLR 2022 (arXiv:2103.02631).
        Javaloy, Meghdadi and Valera, Boosting heterogeneous VAEs via multi-objective optimization (2021).

    Example:
        >>> method = NormalizedSGD()
        >>> method(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor([2., 2.])
        >>> method(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))  # the second loss converges: less of its norm
        tensor([2.1667, 2.1667])
    """

    def __init__(self, burn_in: int = 20) -> None:
        super().__init__()
        if not isinstance(burn_in, int) or burn_in < 0:
            raise ValueError(f"NormalizedSGD: `burn_in` must be an integer >= 0, got {burn_in!r}.")
        self.burn_in = burn_in
        self.register_per_loss("initial", 1.0)
        self.register_per_loss("calls", 0.0)

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        norms = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
        present = norms > 0
        calls = self.recall("calls", norms)
        starts = present & ((calls == 0) | (calls == self.burn_in))
        initial = torch.where(starts, norms, self.recall("initial", norms))
        self.remember("calls", calls + present)
        self.remember("initial", initial)
        rates = norms / initial
        share = rates / torch.where(present, rates, 0.0).sum(-1, keepdim=True)
        length = torch.where(present, share * norms, 0.0).sum(-1, keepdim=True)
        return torch.where(present, length / norms, 0.0)
