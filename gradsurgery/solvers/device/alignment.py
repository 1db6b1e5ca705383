"""The inverse square root of a Gramian: see ``solvers/alignment.py``."""

import torch
from torch import Tensor

from ..alignment import Scale
from ..arrays import TINY
from ..scaling import NULL
from .jacobi import spectrum
from .scaling import unit_gramian


def aligned_weights(gramian: Tensor, preference: Tensor, scale: Scale) -> Tensor:
    r"""Computes the weights that replace the rows by the closest orthogonal ones of equal length.

    .. math:: w = \sigma \, (G^+)^{1/2} \, p

    The rank of G is that of the unit rows, as on the host. Rows of very different length are no case of their own,
    because :func:`spectrum` finds small eigenvalues as exactly as large ones.

    Laws:
        Those of ``solvers.aligned_weights``.

    Args:
        gramian: G, finite.
        preference: p.
        scale: Which singular value.

    Shape:
        - gramian: ``(B, K, K)``.
        - preference: ``(K,)``.
        - output: ``(B, K)``.

    Cost:
        The launches of one :func:`spectrum`, and 45.
    """
    cosines, norms, nonzero = unit_gramian(gramian)
    batch, size = norms.shape
    lengths = norms * nonzero
    lengths = lengths / lengths.amax(-1, keepdim=True).clamp(min=TINY)
    values, vectors = spectrum(torch.cat([cosines, cosines]), torch.cat([nonzero.to(lengths), lengths]))
    unit, values = values.split(batch)
    rank = (unit > NULL).sum(-1, keepdim=True)
    kept = (torch.arange(size, device=gramian.device) >= size - rank) & (values > 0)
    values = torch.where(kept, values, 1.0)
    inverse = torch.where(kept, (_squared(values * kept, rank, scale) / values).sqrt(), 0.0)
    shares = (preference @ vectors[batch:]) * inverse
    return (vectors[batch:] @ shares.unsqueeze(-1)).squeeze(-1)


def _squared(values: Tensor, rank: Tensor, scale: Scale) -> Tensor:
    """Of eigenvalues in ascending order, of which the last ``rank`` count and the others are zero."""
    if scale == "rmse":
        return values.sum(-1, keepdim=True) / rank.clamp(min=1)
    size = values.shape[-1]
    first = size - rank if scale == "min" else size - rank + (rank - 1) // 2
    return values.gather(-1, first.clamp(0, size - 1))
