"""Do my losses conflict, where, and would it help: one call, nothing trained and nothing changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...looking import Look
from ...scope import Scope
from ...settings import check_scope
from .. import pictures, similarity
from .advice import Recommendation, recommended
from .costs import Costs, measure
from .findings import DEEP, LEVEL, Findings, Trouble, find
from .gathering import Gathered, gather
from .gradients import LossesOf, RowsByBatch
from .noise import Signal, cosines_of_estimates, significant
from .untouched import untouched

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` has found; ``print`` it, or :meth:`report` it as a page.

    Args:
        names: The K losses, by first appearance.
        losses: Their means over the batches ``(K,)``, float64.
        batches: How many batches had any loss.
        groups: What the B groups of shared parameters are: modules or tensors, or ``"all"``.
        sizes: How many numbers each group has.
        findings: What all shared parameters together say: lengths, cosines, noise, and which loss is in trouble.
        group_cosines: ``(B, K, K)``, between mean gradients in each group; NaN where one has no signal there.
        group_conflicts: ``(B, K, K)``, whether such a conflict is beyond chance, all groups and pairs together.
        non_finite: By loss, in how many batches it or its gradient was not finite, and was left out.
        recommendation: What to do, and why.
        costs: What it would cost. None where it was not measured.
    """

    names: tuple[str, ...]
    losses: Tensor
    batches: int
    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    findings: Findings
    group_cosines: Tensor
    group_conflicts: Tensor
    non_finite: dict[str, int]
    recommendation: Recommendation
    costs: Costs | None

    @property
    def trouble(self) -> Trouble:
        """The verdict, one of "none", "magnitude", "direction", "both", "noise" or "nothing shared"."""
        return self.findings.trouble

    def __str__(self) -> str:
        from .text import described

        return described(self)

    def __repr__(self) -> str:
        return f"<Diagnosis of {len(self.names)} losses in {self.batches} batches: {self.trouble}>"

    def to_pandas(self) -> DataFrame:
        """A row for each group and pair, all shared parameters first: cosines, how often they conflict, lengths.

        Raises:
            ImportError: pandas is not installed.
        """
        from .table import table

        return table(self)

    def draw_pairs(self) -> Figure:
        """The cosines between mean gradients, and how often the gradients of a batch conflict.

        Raises:
            ImportError: matplotlib is not installed.
        """
        findings = self.findings
        return pictures.draw_pairs(
            findings.cosines, list(self.names), shares=findings.conflict_shares, title="Do the losses conflict?"
        )

    def draw_layers(self) -> Figure:
        """The cosines between mean gradients in each group of parameters.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: There are no two losses, or nothing is shared.
        """
        return pictures.draw_layers(
            self.group_cosines, list(self.groups), list(self.names), title="Where do the losses conflict?"
        )

    def report(self, path: str | Path) -> Path:
        """Writes all this as one HTML page that needs nothing but a browser.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .page import report

        return report(self, path)


def diagnose(
    model: nn.Module,
    losses: LossesOf,
    batches: Iterable[Any],
    *,
    shared: nn.Module | Tensor | Iterable[nn.Module | Tensor] | None = None,
    max_batches: int = 16,
    scope: Scope = "module",
    seed: int = 0,
    costs: bool = True,
) -> Diagnosis:
    r"""Says whether losses conflict, how often and where, whether that is noise, what to do and what it would cost.

    .. math:: U_{ij} = \frac{\langle S_i, S_j \rangle - \sum_b \langle g_i^b, g_j^b \rangle}{n (n - 1)}, \quad
        S_i = \sum_b g_i^b

    with the gradients :math:`g_i^b` of loss i on batch b: inner products of *mean* gradients, from products of
    different batches only, so that noise that the losses of one batch have in common does not count (see
    :mod:`gradsurgery.diagnostics.diagnosis.noise`). The verdict is

    - ``"noise"`` where fewer than two losses have a mean gradient significantly different from zero (5%, Holm);
    - ``"magnitude"`` where a loss has a mean gradient more than ten times shorter than the longest, and the plain sum
      leaves it less than half of what a step along its own gradient would bring; or where the sum makes a loss worse
      that would be well off if all gradients had one length;
    - ``"direction"`` where the others would take more than a quarter of a loss's progress if all gradients had one
      length: the cosines of a loss with all others add up to less than -.25;
    - ``"both"``, ``"none"``, or ``"nothing shared"``.

    All that must be significant, too (1%, t-tests on the jackknife over batches, Holm over losses). So losses that
    conflict only in the noise of their batches are in no trouble. With fewer than three batches nothing can be said
    about noise: the verdict is as it looks, and the recommendation to wait. If one batch is all your data, pass it
    three times.

    Guarantees:
        nothing is changed: parameters, ``.grad``, buffers, modes, tags, optimizers and the random state stay. What
            a module keeps outside its buffers is its own, and so is what ``losses`` does beside returning losses.
        repeatable: random draws of the forward passes follow ``seed``, so the same batches give the same findings.

    Args:
        model: As it is, in train or eval mode, whole, on one device or several.
        losses: Called as ``losses(model, batch)``, returns a dict or sequence of scalars as for
            :meth:`MultiObjectiveOptimizer.backward`; None for a loss that is absent in a batch.
        batches: An iterable, such as a ``DataLoader``; gone through once, which moves a generator of its own on.
            Batches should be drawn at random.
        shared: As for :class:`MultiObjectiveOptimizer`.
        max_batches: So many are taken, >= 1. With many losses or much noise take more.
        scope: Into which groups the shared parameters are divided for the layers; the verdict is on all together.
        seed: Of the random numbers that the forward passes draw, >= 0.
        costs: Whether to time what methods would cost, a few seconds at most for small models.

    Returns:
        The diagnosis.

    Raises:
        TypeError: ``model`` is no module, ``losses`` cannot be called, or what it returns is no dict or sequence of
            scalar tensors.
        ValueError: There are no batches, no losses, no parameters to train, a loss has no graph or is never finite,
            or an argument is out of its range.
        RuntimeError: There are several ranks, or the losses depend on something that would be differentiated wrongly.

    Cost:
        n (K + 1) passes, and ``2 n K^2 P`` products for n batches. The gradients of all batches are kept where they
        fit in 1 GiB, else computed twice.

    References:
        McCandlish et al., An empirical model of large-batch training (arXiv:1812.06162), for the noise scale.
        Yu et al., Gradient surgery for multi-task learning (arXiv:2001.06782), for what conflicts do.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> _ = nn.init.constant_(model.weight, 0.1)
        >>> def losses(model, batch):
        ...     output = model(batch).square().sum()
        ...     return {"up": (output - 10).square(), "down": (output + 10).square()}
        >>> diagnosis = diagnose(model, losses, [torch.ones(4, 2)] * 3, costs=False)
        >>> diagnosis.trouble, diagnosis.recommendation.code
        ('direction', 'optimizer = gs.MultiObjectiveOptimizer(optimizer, gs.UPGrad())')
    """
    _check(losses, max_batches, seed)
    check_scope(scope, "diagnose")
    look = Look(model, shared=shared, caller="diagnose")
    with untouched(model) as before:
        taken = list(islice(_iterated(batches), max_batches))
        if not taken:
            raise ValueError("diagnose: `batches` must have at least one batch, got none. Was a generator used up?")
        source = RowsByBatch(model, losses, taken, look, before, seed=seed)
        gathered = gather(source, scope)
        if not gathered.names:
            raise ValueError(
                f"diagnose: `losses` must return a loss that is not None in any batch, got none in {len(taken)}."
            )
        findings = find(gathered.names, gathered.products)
        measured = _measured(source, gathered) if costs else None
    return _diagnosis(gathered, findings, measured)


def _check(losses: object, max_batches: object, seed: object) -> None:
    if not callable(losses):
        raise TypeError(
            f"diagnose: `losses` must be called as losses(model, batch), got {type(losses).__name__}. Write a "
            f"function that returns a dict of scalars."
        )
    for name, value, least in (("max_batches", max_batches, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"diagnose: `{name}` must be an integer >= {least}, got {value!r}.")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = torch.distributed.get_world_size()
        if ranks > 1:
            raise RuntimeError(
                f"diagnose: `model` must be looked at in one process, got {ranks} ranks. Run it in a script of its "
                f"own, without torch.distributed."
            )


def _iterated(batches: Iterable[Any]) -> Iterable[Any]:
    try:
        return iter(batches)
    except TypeError:
        raise TypeError(
            f"diagnose: `batches` must be an iterable of batches, got {type(batches).__name__}. Pass a DataLoader "
            f"or a list."
        ) from None


def _measured(source: RowsByBatch, gathered: Gathered) -> Costs | None:
    """Costs on the batch that has most losses; None where nothing is shared or nothing could be differentiated."""
    products = gathered.products
    if not gathered.groups or len(gathered.names) < 2:
        return None
    number = int(products.present.sum(1).argmax())
    there = products.present[number].nonzero().flatten()
    gramian = products.within[number].sum(0)[there][:, there]
    named = dict(source.model.named_parameters())
    return measure(source, gathered.numbers[number], gramian, [named[name] for name in gathered.parameters])


def _diagnosis(gathered: Gathered, findings: Findings, costs: Costs | None) -> Diagnosis:
    products, signal = gathered.products, Signal(gathered.products)
    upper = torch.ones_like(findings.cosines, dtype=torch.bool).triu(1)
    if findings.judged:
        with_signal = significant(signal.products().above_zero().diagonal(dim1=-2, dim2=-1))
        either = with_signal.unsqueeze(-1) & with_signal.unsqueeze(-2)
        cosines = torch.where(either, cosines_of_estimates(signal.gramian), torch.nan)
        tests = signal.products().below_zero()
        conflicts = significant(torch.where(upper & either, tests, torch.nan), LEVEL) & (cosines < DEEP)
    else:
        both = products.present.unsqueeze(-1) & products.present.unsqueeze(-2)
        cosines = similarity.cosines(products.within.sum(0) / both.sum(0))
        conflicts = torch.zeros_like(cosines, dtype=torch.bool)
    return Diagnosis(
        names=gathered.names,
        losses=gathered.losses.nanmean(0),
        batches=findings.batches,
        groups=gathered.groups,
        sizes=gathered.sizes,
        findings=findings,
        group_cosines=cosines,
        group_conflicts=conflicts,
        non_finite=gathered.non_finite,
        recommendation=recommended(findings),
        costs=costs,
    )


__all__ = ["Diagnosis", "diagnose"]
