"""Cholesky factors of positive semidefinite matrices of any rank, whose rows may be of very different length."""

import torch
from torch import Tensor

from ..arrays import TINY


def graded_factor(cosines: Tensor, norms: Tensor, least: float) -> Tensor:
    r"""Factorizes :math:`C = L L^\top`, the rows in the order of what is longest beside those before.

    A row whose squared rest is not more than ``least`` is a combination of those before. What is left of it is
    rounding, in which long rows would drown short ones; it is taken for zero.

    Args:
        cosines: C, unit-diagonal Gramians.
        norms: The lengths by which the order goes.
        least: The squared length, relative to a unit row, that counts as zero.

    Shape:
        - cosines: ``(B, K, K)``.
        - norms: ``(B, K)``.
        - output: ``(B, K, K)``, as many columns not zero as C has rank.

    Cost:
        ``12K + 2`` launches.
    """
    rest = cosines.clone()
    squares = rest.diagonal(dim1=-2, dim2=-1)  # a view
    columns = []
    for _ in range(cosines.shape[-1]):
        left = squares > least
        squared = squares * left
        chosen = (squared.sqrt() * norms).argmax(-1, keepdim=True)
        row = rest.gather(1, chosen.unsqueeze(-1).expand_as(rest[:, :1])).squeeze(1)
        column = row * left * squared.gather(1, chosen).clamp(min=TINY).rsqrt()
        columns.append(column)
        rest.addcmul_(column.unsqueeze(-1), column.unsqueeze(-2), value=-1.0)
    return torch.stack(columns, dim=-1)
