r"""Signal and noise: what the mean gradients are to each other, judged from a handful of batches.

Inner products of gradients of one batch hold that batch's noise, which the losses share: two losses may conflict in
every batch and not at all on average. Products of *different* batches do not, as their noise is independent. With
n batches, rows :math:`g_i^b` and :math:`S_i = \sum_b g_i^b`,

.. math:: U_{ij} = \frac{\langle S_i, S_j \rangle - \sum_b \langle g_i^b, g_j^b \rangle}{n (n - 1)}

is an unbiased estimate of the product of the mean gradients, whatever the noise. How far it may be off is found by
leaving out one batch after the other (the jackknife), for which :math:`\langle S_i, g_j^b \rangle` is enough.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST = 3
"""With fewer batches nothing can be said about noise."""


@dataclass(frozen=True)
class BatchProducts:
    """Inner products of the gradients of n batches, B groups of parameters and K losses, float64.

    Args:
        within: ``(n, B, K, K)``, between gradients of the same batch; zero where a loss is absent.
        across: ``(n, B, K, K)``, row i and column j: between the sum over all batches of loss i and batch's own of j.
        present: ``(n, K)``, which losses a batch has.
    """

    within: Tensor
    across: Tensor
    present: Tensor

    def together(self) -> "BatchProducts":
        """Those of all groups as one."""
        return BatchProducts(self.within.sum(1, keepdim=True), self.across.sum(1, keepdim=True), self.present)

    def only(self, losses: Tensor) -> "BatchProducts":
        """Those of some losses, by number."""
        within = self.within.index_select(-1, losses).index_select(-2, losses)
        across = self.across.index_select(-1, losses).index_select(-2, losses)
        return BatchProducts(within, across, self.present[:, losses])


@dataclass(frozen=True)
class Estimate:
    """Numbers, how far they may be off, and whether they differ from zero.

    Args:
        value: The estimates.
        error: Their standard errors by the jackknife; NaN where there are too few batches.
        freedom: The degrees of freedom of the errors, whole.
    """

    value: Tensor
    error: Tensor
    freedom: Tensor

    def below_zero(self) -> Tensor:
        """The probability of a value this low where the truth is zero or more: a one-sided t-test. NaN: not known."""
        statistic = torch.where(self.error > 0, self.value / self.error, self.value.sign() * math.inf)
        statistic = torch.where((self.value == 0) & (self.error == 0), 0.0, statistic)
        tails = student_tail(-statistic, self.freedom)
        return torch.where(self.error.isfinite() & self.value.isfinite(), tails, torch.nan)

    def above_zero(self) -> Tensor:
        """The probability of a value this high where the truth is zero or less."""
        return Estimate(-self.value, self.error, self.freedom).below_zero()


class Signal:
    r"""Inner products of the mean gradients, without the bias of noise, and what follows from them.

    Guarantees:
        unbiased: the mean of ``gramian`` over draws of the batches is the Gramian of the mean gradients, whatever the
            noise of a batch does to several losses at once.
        cautious: the jackknife's standard errors are on average too large rather than too small (Efron and Stein);
            on noise alone about twice the variance. So a test at 5% is wrong less often than that.

    Args:
        products: Of the gradients by batch.

    Shape:
        - gramian: ``(B, K, K)``, NaN for a pair of which no two different batches exist. Its diagonal may be
          negative where there is no signal.

    References:
        Efron and Stein, The jackknife estimate of variance, Annals of Statistics 9 (1981).

    Example:
        >>> rows = torch.tensor([[[2.0], [1.0]], [[4.0], [-1.0]], [[3.0], [0.0]]])  # 3 batches, 2 losses
        >>> within, across = rows @ rows.mT, rows.sum(0) @ rows.mT
        >>> products = BatchProducts(within.unsqueeze(1), across.unsqueeze(1), torch.ones(3, 2, dtype=torch.bool))
        >>> Signal(products).gramian  # the means are 3 and 0; the noise conflicts
        tensor([[[ 8.6667,  0.3333],
                 [ 0.3333, -0.3333]]])
    """

    def __init__(self, products: BatchProducts) -> None:
        within, across = products.within, products.across
        present = products.present.to(within.dtype)
        both = present.unsqueeze(-1) * present.unsqueeze(-2)  # (n, K, K)
        often = present.sum(0)
        pairs = often.unsqueeze(-1) * often.unsqueeze(-2) - both.sum(0)
        different = across.sum(0) - within.sum(0)
        self.gramian = _divided(different, pairs)
        left = often - present  # how often each loss is there without one batch
        pairs_left = left.unsqueeze(-1) * left.unsqueeze(-2) - (both.sum(0) - both)
        different_left = different - across - across.mT + 2 * within
        self._without = _divided(different_left, pairs_left.unsqueeze(1))  # (n, B, K, K)
        self._present = products.present
        squares = within.diagonal(dim1=-2, dim2=-1).sum(0) / often
        self.noise = (squares - self.gramian.diagonal(dim1=-2, dim2=-1)).clamp_min(0.0)
        """``(B, K)``, the trace of the covariance of one batch's gradient, unbiased up to the cut at zero."""

    def of(self, statistic: Callable[[Tensor], Tensor], kinds: Tensor | None = None) -> Estimate:
        """Estimates something that follows from the Gramian.

        Args:
            statistic: Takes Gramians ``(..., B, K, K)`` to numbers ``(..., *shape)``.
            kinds: ``(n, *shape)``, broadcast: of which kind a batch is for each number, by the losses that it has; 0
                where it has none that the number depends on. None: by all losses.
        """
        value, without = statistic(self.gramian), statistic(self._without)
        if kinds is None:
            kinds = 1 + torch.unique(self._present, dim=0, return_inverse=True)[1]
            kinds = kinds.view(-1, *(1,) * (without.dim() - 1))
        counted = (kinds > 0).expand_as(without)
        batches = counted.sum(0)
        mean = torch.where(counted, without, 0.0).sum(0) / batches
        squares = torch.where(counted, (without - mean).square(), 0.0)
        error = (squares.sum(0) * (batches - 1) / batches).sqrt()
        return Estimate(value, torch.where(batches >= FEWEST, error, torch.nan), _freedom(squares, kinds))

    def products(self) -> Estimate:
        """The inner products themselves, ``(B, K, K)``; on the diagonal the squared lengths."""
        return self.of(lambda gramian: gramian, self._kinds_for_pairs())

    def cosines(self) -> Estimate:
        """Cosines between mean gradients ``(B, K, K)``, in -1 to 1; NaN where a squared length is not positive."""
        return self.of(cosines_of_estimates, self._kinds_for_pairs())

    def _kinds_for_pairs(self) -> Tensor:
        present = self._present.long()
        return (present.unsqueeze(-1) + 2 * present.unsqueeze(-2)).unsqueeze(1)


def cosines_of_estimates(gramian: Tensor) -> Tensor:
    """Cosines from products that are only estimated: a length may not exist, and a cosine is cut at -1 and 1."""
    lengths = lengths_of_estimates(gramian)
    found = gramian / lengths.unsqueeze(-1) / lengths.unsqueeze(-2)
    return found.clamp(-1.0, 1.0)


def lengths_of_estimates(gramian: Tensor) -> Tensor:
    """The lengths of the mean gradients, NaN where the estimate of the square is not positive."""
    squares = gramian.diagonal(dim1=-2, dim2=-1)
    return torch.where(squares > 0, squares, torch.nan).sqrt()


def significant(probabilities: Tensor, level: float = 0.05) -> Tensor:
    """Which of several tests speak against chance, all together wrong with at most this probability (Holm 1979).

    NaN is not significant and does not count as a test.

    Example:
        >>> significant(torch.tensor([0.001, 0.03, 0.04, torch.nan]))
        tensor([ True, False, False, False])
    """
    flat = torch.where(probabilities.isnan(), torch.inf, probabilities).flatten()
    order = flat.argsort()
    tests = int(flat.isfinite().sum())
    ranks = torch.arange(len(flat), dtype=flat.dtype)
    passed = flat[order] * (tests - ranks) <= level
    passed &= flat[order].isfinite()
    accepted = torch.zeros_like(passed)
    accepted[order] = passed.cumprod(0).bool()
    return accepted.view(probabilities.shape)


def student_tail(statistic: Tensor, freedom: Tensor) -> Tensor:
    r"""The probability that Student's t exceeds the statistic; ``freedom`` is whole, NaN below 1.

    The finite series for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4), with
    :math:`\theta = \arctan(t / \sqrt \nu)`.

    Example:
        >>> student_tail(torch.tensor([0.0, 1.753]), torch.tensor([4, 15]))
        tensor([0.5000, 0.0500])
    """
    kind = statistic.dtype
    statistic, freedom = torch.broadcast_tensors(statistic.double(), freedom)
    known = ~statistic.isnan() & (freedom >= 1)
    odd = freedom % 2
    angle = (statistic / freedom.double().sqrt()).atan()
    term = torch.where(odd == 1, angle.cos(), 1.0)
    series = torch.zeros_like(angle)
    for step in range(int(torch.where(known, freedom, 0).max()) // 2 if known.any() else 0):
        series += torch.where(2 * step < freedom - odd, term, 0.0)
        term = term * angle.cos().square() * (2 * step + 1 + odd) / (2 * step + 2 + odd)
    middle = torch.where(odd == 1, (angle + angle.sin() * series) * (2 / math.pi), angle.sin() * series)
    return torch.where(known, ((1 - middle) / 2).clamp(0.0, 1.0), torch.nan).to(kind)


def _freedom(squares: Tensor, kinds: Tensor) -> Tensor:
    """Degrees of freedom of a sum of squares ``(n, ...)`` over several kinds of batches (Satterthwaite), cut.

    A loss that is there in few batches has its error from those few, however many others there are.
    """
    total, divisor = squares.sum(0), torch.zeros_like(squares[0])
    for kind in kinds[kinds > 0].unique():
        own = kinds == kind
        divisor += torch.where(own, squares, 0.0).sum(0).square() / (own.sum(0) - 1).clamp_min(1)
    most = (kinds > 0).sum(0).expand_as(total) - 1
    found = (total.square() / divisor + 1e-9).clamp_min(1.0).nan_to_num(torch.inf)  # 0 / 0 where there is no noise
    return torch.minimum(found, most.to(found)).long()


def _divided(numbers: Tensor, counts: Tensor) -> Tensor:
    """NaN where nothing was counted."""
    return numbers / torch.where(counts > 0, counts, torch.nan)
