"""IMTL-G: equal projections on all gradients."""

import torch
from torch import Tensor

from ..solvers.scaling import RIDGE
from .base import GramianAggregator

_NULL = 1e-10
"""Eigenvalues of the unit-diagonal Gramian far below this one belong to its null space."""


class IMTLG(GramianAggregator):
    r"""Finds the combination whose projections on all unit gradients are equal.

    .. math:: d = \sum_k \alpha_k g_k, \quad \sum_k \alpha_k = 1, \quad
        \langle d, u_i \rangle = \langle d, u_j \rangle \text{ for all } i, j

    In unit rows :math:`C \beta = 1`, :math:`\alpha_k \propto \beta_k / \lVert g_k \rVert`. Where the rows are
    linearly dependent, parallel ones share their weight, and rows that no direction serves equally, such as two
    opposed ones, give d = 0.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        scale_equivariant: ``d(sJ) = s d(J)``.
        zero_rows_constrain_nothing: a zero row gets weight zero.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems.
        no_host_sync: nothing is copied to the host.

    Weights can be negative, and so can the common projection when the norms are very different: the paper's
    condition sets the sum of the weights to 1, not the sign of the step.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, sums to 1.

    Raises:
        ValueError: ``gramian`` is not square in its last two dimensions.

    Cost:
        Two K x K factorizations.

    References:
        Liu et al., Towards impartial multi-task learning, ICLR 2021, section 3.1.

    Example:
        >>> J = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> IMTLG()(J)
        tensor([0.8000, 0.8000])
    """

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        norms = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
        nonzero = norms > 0
        inverse = torch.where(nonzero, 1.0 / norms, 0.0)
        cosines = gramian * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
        cosines = cosines + torch.diag_embed((~nonzero).to(cosines))
        ones = nonzero.to(cosines)
        beta = _solve(cosines, ones)
        # The scale of the norms cancels in alpha; taking it out first keeps tiny losses from overflowing.
        largest = inverse.amax(-1, keepdim=True)
        relative = inverse / torch.where(largest > 0, largest, 1.0)
        alpha = beta * relative
        total = alpha.sum(-1, keepdim=True)
        equal = torch.full_like(alpha, 1.0 / alpha.shape[-1])
        return torch.where(largest > 0, alpha / total, equal)


def _solve(cosines: Tensor, right: Tensor) -> Tensor:
    """Solves with a ridge and refines; of two parts, in the null space and out of it, drops one that is rounding."""
    wanted = right.unsqueeze(-1)
    regular = _factors(cosines, RIDGE)
    solution: Tensor = torch.linalg.lu_solve(*regular, wanted)
    solution = solution + torch.linalg.lu_solve(*regular, wanted - cosines @ solution)
    coarse = _factors(cosines, _NULL)
    null = _null_part(solution, coarse)
    rest = solution - null
    rest = rest - _null_part(rest, coarse)
    null_norm, rest_norm = null.norm(dim=-2, keepdim=True), rest.norm(dim=-2, keepdim=True)
    result = torch.where(null_norm < 1e-2 * rest_norm, rest, solution)
    return torch.where(rest_norm < 1e-4 * null_norm, null, result).squeeze(-1)


def _null_part(vector: Tensor, coarse: tuple[Tensor, Tensor]) -> Tensor:
    """Damps the component along each eigenvector by ``_NULL / (eigenvalue + _NULL)``, three times over."""
    for _ in range(3):
        vector = _NULL * torch.linalg.lu_solve(*coarse, vector)
    return vector


def _factors(cosines: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    ridges = torch.full_like(cosines[..., 0], ridge)
    factors = torch.linalg.lu_factor_ex(cosines + torch.diag_embed(ridges))
    return factors.LU, factors.pivots
