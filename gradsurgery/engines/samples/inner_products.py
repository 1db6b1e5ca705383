"""Inner products of per-sample gradients from the rows that each sample has of a layer's deltas and inputs."""

from collections.abc import Callable

import torch
from torch import Tensor

SCRATCH = 1 << 24
"""So many float64 numbers may be held at a time beside what the graph and the deltas take."""


def inner_products(rows: Tensor) -> Tensor:
    """All inner products of rows, as float64 sums.

    Shape:
        - rows: ``(M, ...)``.
        - output: ``(M, M)``, valid on and below the diagonal.
    """
    flat = rows.flatten(1) if rows.ndim > 1 else rows.unsqueeze(1)
    count = len(flat)
    result = torch.zeros(count, count, dtype=torch.float64, device=rows.device)
    step = max(32, -(-count // 4))
    for part in flat.split(max(1, SCRATCH // count), 1):
        wide = part.double()
        for first in range(0, count, step):
            last = min(count, first + step)
            result[first:last, :last].addmm_(wide[first:last], wide[:last].mT)
    return result


def symmetric(lower: Tensor) -> Tensor:
    """The symmetric matrices that have this lower triangle."""
    return lower.tril() + lower.tril(-1).mT


def by_pairs(deltas: Tensor, inputs: Tensor) -> Tensor:
    r"""Products :math:`\sum_{t,s} \langle \delta_t, \delta_s \rangle \langle a_t, a_s \rangle` over pairs of rows.

    Shape:
        - deltas: ``(N, K, T, height)``.
        - inputs: ``(N, T, width)``.
        - output: ``(N * K, N * K)``, valid on and below the diagonal.
    """
    samples, losses, rows, _ = deltas.shape
    wide, base = deltas.double().flatten(0, 2), inputs.double().flatten(0, 1)
    result = torch.zeros(samples, losses, samples, losses, dtype=torch.float64, device=deltas.device)
    step = max(1, min(-(-samples // 4), SCRATCH // (samples * (losses * rows) ** 2)))
    for first in range(0, samples, step):
        last, own = min(samples, first + step), losses * rows
        outer = wide[first * own : last * own] @ wide[: last * own].mT
        inner = base[first * rows : last * rows] @ base[: last * rows].mT
        terms = outer.view(last - first, losses, rows, last, losses, rows)
        terms *= inner.view(last - first, 1, rows, last, 1, rows)
        result[first:last, :, :last] = terms.sum((2, 5))
    return result.view(samples * losses, samples * losses)


def by_gradients(deltas: Tensor, inputs: Callable[[int, int], Tensor], width: int) -> Tensor:
    """Products of the gradients themselves, some rows of all of them at a time.

    Args:
        deltas: Of all samples.
        inputs: Gives those of the samples from one to before another.
        width: Of the inputs.

    Shape:
        - deltas: ``(N, K, E, T, height)``.
        - inputs: ``(n, E, T, width)``.
        - output: ``(N * K, N * K)``.
    """
    samples, losses, copies, rows, _ = deltas.shape
    step = max(1, SCRATCH // (samples * losses * copies * width))
    block = max(1, SCRATCH // (copies * rows * (width + losses * step)))
    result = torch.zeros(samples * losses, samples * losses, dtype=torch.float64, device=deltas.device)
    for part in deltas.split(step, 4):
        formed = torch.cat(
            [
                products(part[first : first + block].double(), inputs(first, first + block).double())
                for first in range(0, samples, block)
            ]
        )
        result += inner_products(formed.flatten(0, 1))
    return result


def products(deltas: Tensor, inputs: Tensor) -> Tensor:
    """Gradients ``(n, K, E, height, width)`` of some samples."""
    samples, losses, copies, rows, height = deltas.shape
    left = deltas.permute(0, 2, 1, 4, 3).reshape(samples, copies, losses * height, rows)
    return (left @ inputs).view(samples, copies, losses, height, -1).transpose(1, 2)


def is_by_pairs(samples: int, losses: int, rows: int, height: int, width: int) -> bool:
    """Whether pairs of rows take fewer operations than gradients, of T rows a sample."""
    pairs = samples * rows**2 * (losses**2 * (height + 2) + width) / 2
    return pairs <= losses * rows * height * width + samples * losses**2 * height * width / 2


def by_occurrences(values: Tensor, places: Tensor) -> Tensor:
    """Products of gradients of an embedding's table: only what samples have in common counts.

    Args:
        values: Deltas.
        places: The row of the table that each goes to; -1 for none.

    Shape:
        - values: ``(N, K, T, width)``.
        - places: ``(N, T)``.
        - output: ``(N * K, N * K)``.
    """
    samples, losses = values.shape[:2]
    counted = places >= 0
    owners = torch.arange(samples, device=places.device).unsqueeze(1).expand_as(places)[counted]
    pairs, inverse = (places[counted] * samples + owners).unique(return_inverse=True)  # the same rows side by side
    sums = values.new_zeros(len(pairs), losses, values.shape[3], dtype=torch.float64)
    sums.index_add_(0, inverse, values.transpose(1, 2)[counted].double())
    owners = pairs % samples
    counts = torch.unique_consecutive(pairs // samples, return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    result = torch.zeros(samples * losses, samples * losses, dtype=torch.float64, device=values.device)
    for exponent in range((int(counts.max()) - 1).bit_length() + 1 if len(counts) else 0):
        largest = 1 << exponent
        chosen = ((counts > largest // 2) & (counts <= largest)).nonzero().squeeze(1)
        block = max(1, SCRATCH // (largest * losses * (sums.shape[2] + 3 * largest * losses)))
        for part in chosen.split(block):
            slots = torch.arange(largest, device=values.device)
            at = (starts[part].unsqueeze(1) + slots).clamp(max=len(pairs) - 1)
            known = (slots < counts[part].unsqueeze(1)).view(*at.shape, 1, 1)
            own = torch.where(known, sums[at], 0.0).flatten(1, 2)
            rows = (owners[at].unsqueeze(2) * losses + torch.arange(losses, device=values.device)).flatten(1)
            targets = rows.unsqueeze(2) * (samples * losses) + rows.unsqueeze(1)
            result.view(-1).index_add_(0, targets.flatten(), (own @ own.mT).flatten())
    return result
