r"""What is wrong with the sum of several losses, if anything: lengths, directions, or only noise.

Judged on the Gramian :math:`U` of the mean gradients (see :mod:`gradsurgery.diagnostics.diagnosis.noise`), with
lengths :math:`n_i = \sqrt{U_{ii}}` and cosines :math:`c_{ij}`. Something counts when it is both large enough to
matter and too large to be chance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .. import similarity
from .noise import (
    FEWEST,
    BatchProducts,
    Signal,
    cosines_of_estimates,
    lengths_of_estimates,
    significant,
)

Trouble = Literal["none", "magnitude", "direction", "both", "noise", "nothing shared"]
Standing = Literal["systematic", "shallow", "unclear", "noise", "none"]

LEVEL = 0.01
"""All tests of conflicts together call noise a conflict with about this probability; so do those of lengths."""
PERHAPS = 0.05
"""A pair that would be called a conflict with this probability, were it the only one, may be one."""
SIGNAL_LEVEL = 0.05
"""All tests for a signal together."""
DEEP = -0.1
"""A pair of mean gradients whose cosine is not below is at most a shallow conflict."""
FAINT = -0.02
"""A cosine that is not below is no conflict worth a word, however certain it is."""
TAKEN = 0.25
"""Losses whose gradients, brought to one length, take a larger share of another's progress are a trouble.

Two with a cosine of -.25 leave each other three quarters. Surgery could win back no more than the quarter."""
LONGER = 10.0
"""A gradient so many times shorter than the longest is overlooked, if not helped by the others.

Orthogonal to a ten times longer one, it gets a tenth of what the same step along itself would bring."""
HELPED = 0.5
"""What the plain sum must leave a short gradient of that, to count as helped."""
OFTEN = 0.25
"""A pair that conflicts in a larger share of the batches, but not on average, conflicts by noise."""
ROUNDING = 1e-6
"""A cosine closer to zero is none."""


@dataclass(frozen=True)
class Findings:
    """How K losses stand to each other on all shared parameters, and what follows.

    Args:
        names: The losses.
        batches: In how many batches there is any loss.
        judged: Whether there were enough batches to tell signal from noise. If not, ``gramian`` is the mean of the
            batches' and nothing is tested.
        gramian: ``(K, K)``, of the mean gradients, unbiased. float64 like all that follows.
        with_gradient: ``(K,)``, whose gradient on the shared parameters is not zero in every batch.
        with_signal: ``(K,)``, whose mean gradient is significantly different from zero.
        batch_lengths: ``(K,)``, of the gradient of one batch, root mean square: noise included.
        noise: ``(K,)``, the variance of one batch's gradient over the squared length of the mean: so many batches
            must be averaged until signal and noise are as strong. NaN where no signal is seen.
        cosines: ``(K, K)``, between mean gradients; NaN where one has no signal.
        cosine_errors: Their standard errors.
        batch_cosines: ``(K, K)``, between gradients of the same batch, on average: noise included.
        conflict_shares: ``(K, K)``, in what share of the batches the two gradients conflict.
        standing: For each pair (i, j), i < j, what its conflict is.
        overlooked: ``(K,)``, losses with much shorter gradients than the longest, and not helped by the others.
        crowded: ``(K,)``, losses of whose progress the others take more than a quarter, at equal lengths.
        harmed: ``(K,)``, losses that the plain sum makes worse.
        trouble: The verdict.
    """

    names: tuple[str, ...]
    batches: int
    judged: bool
    gramian: Tensor
    with_gradient: Tensor
    with_signal: Tensor
    batch_lengths: Tensor
    noise: Tensor
    cosines: Tensor
    cosine_errors: Tensor
    batch_cosines: Tensor
    conflict_shares: Tensor
    standing: dict[tuple[int, int], Standing]
    overlooked: Tensor
    crowded: Tensor
    harmed: Tensor
    trouble: Trouble

    @property
    def lengths(self) -> Tensor:
        """``(K,)``, of the mean gradients; NaN where no signal is seen."""
        return torch.where(self.with_signal, lengths_of_estimates(self.gramian), torch.nan)

    @property
    def taken(self) -> Tensor:
        """``(K,)``, the share of each loss's progress that the others would take if all gradients had one length.

        Below zero where they add to it; NaN where no signal is seen.
        """
        return torch.where(self.with_signal, 1 - self.cosines.nansum(1), torch.nan)

    def progress(self, weights: Tensor) -> Tensor:
        r"""What a small step along the weighted sum does for each loss, ``(K,)``; NaN without a signal.

        .. math:: \frac{\langle g_i, d \rangle}{\lVert g_i \rVert \lVert d \rVert}, \quad d = \sum_j w_j g_j

        A share of what a step of the same length along its own gradient would bring: 1 at best, negative where it
        gets worse. Losses without a signal take no part in the sum.
        """
        kept = self.with_signal.nonzero().flatten()
        gramian = nearest_gramian(self.gramian[kept][:, kept])
        change = similarity.step_change(gramian, weights[kept])
        length = (weights[kept].to(gramian) * change).sum().clamp_min(0.0).sqrt()
        shares = torch.full((len(self.names),), torch.nan, dtype=torch.float64)
        parts = weights[kept].abs() * similarity.norms(gramian)
        if length > ROUNDING * parts.sum():  # else the gradients cancel, and there is no direction
            shares[kept] = (change / similarity.norms(gramian) / length).clamp(-1.0, 1.0)
        return shares


def find(names: tuple[str, ...], products: BatchProducts) -> Findings:
    """Judges what the batches say about all shared parameters together; no group of parameters: nothing is shared."""
    nothing_shared = products.within.shape[1] == 0
    evidence = _Evidence(products.together())
    with_signal = evidence.with_signal()
    either = with_signal.unsqueeze(-1) & with_signal.unsqueeze(-2)
    cosines = torch.where(either, cosines_of_estimates(evidence.gramian), torch.nan)
    batch_cosines, shares = evidence.of_batches()
    conflicts, perhaps = evidence.conflicts(either)
    standing = {
        (i, j): _standing(float(cosines[i, j]), bool(conflicts[i, j]), bool(perhaps[i, j]), float(shares[i, j]))
        for i, j in similarity.pairs(len(names))
    }
    overlooked, crowded, harmed = _in_trouble(evidence, with_signal)
    return Findings(
        names=names,
        batches=len(products.present),
        judged=evidence.judged,
        gramian=evidence.gramian,
        with_gradient=evidence.with_gradient,
        with_signal=with_signal,
        batch_lengths=evidence.batch_lengths(),
        noise=torch.where(with_signal, evidence.noise(), torch.nan),
        cosines=cosines,
        cosine_errors=torch.where(either, evidence.signal.cosines().error[0], torch.nan),
        batch_cosines=batch_cosines,
        conflict_shares=shares,
        standing=standing,
        overlooked=overlooked,
        crowded=crowded,
        harmed=harmed,
        trouble="nothing shared" if nothing_shared else _trouble(evidence, with_signal, overlooked, crowded, harmed),
    )


class _Evidence:
    """The batches' products over all shared parameters, and tests on them."""

    def __init__(self, products: BatchProducts) -> None:
        self.products, self.signal = products, Signal(products)
        self.judged = len(products.present) >= FEWEST
        self.with_gradient = (products.within[:, 0].diagonal(dim1=-2, dim2=-1) > 0).any(0)
        self.gramian = self.signal.gramian[0] if self.judged else self._of_each_batch()

    def _of_each_batch(self) -> Tensor:
        both = self.products.present.unsqueeze(-1) & self.products.present.unsqueeze(-2)
        return self.products.within[:, 0].sum(0) / both.sum(0)

    def with_signal(self) -> Tensor:
        if not self.judged:
            return self.with_gradient
        tests = self.signal.products().above_zero()[0].diagonal()
        return significant(torch.where(self.with_gradient, tests, torch.nan), SIGNAL_LEVEL)

    def batch_lengths(self) -> Tensor:
        return similarity.norms(self._of_each_batch())

    def noise(self) -> Tensor:
        squares = self.gramian.diagonal()
        return self.signal.noise[0] / squares if self.judged else torch.full_like(squares, torch.nan)

    def conflicts(self, among: Tensor) -> tuple[Tensor, Tensor]:
        """``(K, K)``, the pairs above the diagonal that conflict beyond chance, and those that may."""
        tests = torch.where(among.triu(1), self.signal.products().below_zero()[0], torch.nan)
        if not self.judged:
            return torch.zeros_like(among), (self.gramian < 0) & among
        return significant(tests, LEVEL), tests < PERHAPS

    def below_zero(self, statistic: Callable[[Tensor], Tensor], among: Tensor) -> Tensor:
        """Which numbers ``(..., K)`` of Gramians ``(..., K, K)`` are below zero; beyond chance, if that is known."""
        estimate = self.signal.of(lambda gramians: statistic(gramians[..., 0, :, :]))
        if not self.judged:
            return (statistic(self.gramian) < 0) & among
        return significant(torch.where(among, estimate.below_zero(), torch.nan), LEVEL)

    def of_batches(self) -> tuple[Tensor, Tensor]:
        """Cosines between gradients of the same batch, on average, and how often they conflict."""
        cosines = similarity.cosines(self.products.within[:, 0])
        there = ~cosines.isnan()
        return cosines.nanmean(0), ((cosines < -ROUNDING) & there).sum(0) / there.sum(0)


def _in_trouble(evidence: _Evidence, with_signal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which losses are overlooked, crowded and harmed."""
    gramian, chosen = evidence.gramian, with_signal.double()
    lengths = torch.where(with_signal, lengths_of_estimates(gramian), torch.nan)
    if not bool(with_signal.any()):
        return (torch.zeros_like(with_signal),) * 3
    longest = int(lengths.nan_to_num(-1.0).argmax())

    def taken(products: Tensor) -> Tensor:
        """The sum of the cosines with all other losses."""
        cosines = torch.where(with_signal, cosines_of_estimates(products), 0.0)
        return cosines.sum(-1) - cosines.diagonal(dim1=-2, dim2=-1)

    def relative_length(products: Tensor) -> Tensor:
        lengths = lengths_of_estimates(products)
        return lengths.log() - lengths[..., longest, None].log()

    def change(products: Tensor) -> Tensor:
        """What the plain sum of all losses does to each."""
        return torch.where(evidence.with_gradient, products, 0.0).nan_to_num(0.0).sum(-1)

    short = (lengths < lengths[longest] / LONGER) & evidence.below_zero(relative_length, with_signal)
    total = (chosen @ torch.where(with_signal, gramian, 0.0) @ chosen).clamp_min(0.0).sqrt()
    helped = change(gramian) >= HELPED * lengths * total
    crowded = (taken(gramian) < -TAKEN) & evidence.below_zero(taken, with_signal)
    harmed = evidence.below_zero(change, with_signal)
    return short & ~helped, crowded, harmed


def _trouble(
    evidence: _Evidence, with_signal: Tensor, overlooked: Tensor, crowded: Tensor, harmed: Tensor
) -> Trouble:
    if int(evidence.with_gradient.sum()) < 2:
        return "none"
    if int(with_signal.sum()) < 2:
        return "noise"
    direction = bool(crowded.any())
    magnitude = bool(overlooked.any()) or (bool(harmed.any()) and not direction)
    if direction and magnitude:
        return "both"
    return "direction" if direction else "magnitude" if magnitude else "none"


def _standing(cosine: float, conflicts: bool, perhaps: bool, share: float) -> Standing:
    if cosine != cosine and share > OFTEN:  # a mean gradient is lost in noise: nothing is known of the average
        return "unclear"
    if cosine < DEEP:
        return "systematic" if conflicts else "unclear"
    if conflicts or perhaps:
        return "none" if cosine > FAINT else "shallow" if conflicts else "unclear"
    return "noise" if share > OFTEN else "none"


def nearest_gramian(gramian: Tensor) -> Tensor:
    """The nearest matrix of inner products that exist: an estimate may have negative eigenvalues.

    Nearest after the rows are brought to one length, which stays.

    Example:
        >>> nearest_gramian(torch.tensor([[1.0, -2.0], [-2.0, 1.0]], dtype=torch.float64))
        tensor([[ 1., -1.],
                [-1.,  1.]], dtype=torch.float64)
    """
    lengths = similarity.norms(gramian)
    values, vectors = torch.linalg.eigh(gramian / lengths.unsqueeze(-1) / lengths)
    unit: Tensor = (vectors * values.clamp_min(0.0)) @ vectors.mT
    again = lengths / unit.diagonal().sqrt()
    nearest: Tensor = unit * again.unsqueeze(-1) * again
    return nearest


__all__ = ["Findings", "Standing", "Trouble", "find", "nearest_gramian"]
