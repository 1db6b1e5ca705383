"""Eigenvalues and eigenvectors of Gramians, by Jacobi's rotations."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..arrays import EPSILON, TINY
from .elimination import identity
from .graded import graded_factor


class Spectrum(NamedTuple):
    r"""Of positive semidefinite matrices: :math:`V \Lambda V^\top`."""

    values: Tensor  # ascending, (B, K)
    vectors: Tensor  # in the columns; zero where the value is, (B, K, K)


def spectrum(cosines: Tensor, norms: Tensor) -> Spectrum:
    r"""Diagonalizes :math:`G = D C D` by rotating the columns of a factor of G until all are orthogonal.

    A sweep turns every pair of columns once, half of the columns against the others in each of its rounds. The number
    of sweeps is one or two more than the hardest matrices at hand need. Each eigenvalue has a small error relative to
    itself, as far as the condition of C allows, whatever the norms: so have those of ill-scaled gradients.

    Args:
        cosines: C, unit-diagonal Gramians.
        norms: The diagonal of D, >= 0.

    Shape:
        - cosines: ``(B, K, K)``.
        - norms: ``(B, K)``.

    Cost:
        ``15 (K - 1) (4 + log2 K) + 12K + 20`` launches, with K rounded up to an even number, its logarithm to an
        integer.

    References:
        Demmel and Veselić, Jacobi's method is more accurate than QR, SIAM J. Matrix Anal. Appl. 13 (1992). Brent and
        Luk, The solution of singular-value and symmetric eigenvalue problems on multiprocessor arrays, SIAM J. Sci.
        Stat. Comput. 6 (1985).
    """
    size = cosines.shape[-1]
    odd = size % 2
    columns = graded_factor(cosines, norms, 8 * size * EPSILON) * norms.unsqueeze(-1)
    columns = _orthogonalized(torch.nn.functional.pad(columns, (0, odd)))
    values, order = columns.square().sum(-2).sort(-1)
    columns = columns.gather(-1, order.unsqueeze(-2).expand_as(columns))
    lengths = torch.where(values > 0, values, 1.0).sqrt()
    return Spectrum(values[:, odd:], (columns / lengths.unsqueeze(-2))[..., odd:])


def _orthogonalized(columns: Tensor) -> Tensor:
    """Rotates an even number of columns among each other."""
    count = columns.shape[-1]
    half = count // 2
    kept, crossed = _moves(columns)
    one = columns.new_ones(())
    for _ in range((4 + (count - 1).bit_length()) * (count - 1)):
        products = columns.mT @ columns
        first, second = products.diagonal(dim1=-2, dim2=-1).split(half, dim=-1)
        twice = 2.0 * products.diagonal(half, -2, -1)
        difference = second - first
        longest = torch.hypot(difference, twice) + TINY
        tangent = twice / (difference + torch.copysign(longest, difference))
        cosine = torch.addcmul(one, tangent, tangent).rsqrt()
        sine = tangent * cosine
        cosines, sines = torch.cat([cosine, cosine, sine, sine], dim=-1).unsqueeze(-1).split(count, dim=-2)
        columns = columns @ torch.addcmul(cosines * kept, sines, crossed)
    return columns


def _moves(columns: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of a round's rotation that the cosines and the sines are for.

    Column k is turned against column ``k + K / 2``; then all but the first move on by one seat, around the table.
    """
    unit = identity(columns)
    first, second = unit.split(len(unit) // 2)
    seats = torch.cat([first[:1], second[:1], first[1:-1], second[1:], first[-1:]]) if len(unit) > 2 else unit
    first, second = seats.mT.split(len(unit) // 2)
    return seats.mT, torch.cat([second, -first])
