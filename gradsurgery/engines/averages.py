"""Losses averaged over the ranks, each of which has some of the items."""

from dataclasses import dataclass

from torch import Tensor

from ..losses import NamedLosses, values_of
from .base import Request


@dataclass(frozen=True)
class Averages:
    """What the ranks have agreed on.

    Args:
        names: The losses that are present on any rank.
        all_names: Those, and the ones that are absent in this step.
        values: Their averages over the ranks ``(K,)``, float64.
        here: The losses that are present on this rank, by position among the names.
        shares: The share of this rank in each average, and last in that of the extra loss.
    """

    names: tuple[str, ...]
    all_names: tuple[str, ...]
    values: Tensor
    here: dict[int, Tensor]
    shares: list[float]


def averages(request: Request, found: NamedLosses, *, sharded: bool) -> Averages:
    """Averages the losses of all ranks, after these have agreed; alone, takes them as they are.

    Args:
        request: What the optimizer asked for.
        found: This rank's losses.
        sharded: Whether each loss has to be differentiated on all ranks or on none.

    Raises:
        RuntimeError: The ranks disagree.
    """
    own = values_of(found.scalars)
    if request.agreement is None:
        here = dict(enumerate(found.scalars))
        return Averages(found.names, found.all_names, own, here, [1.0] * (len(here) + 1))
    table = _differentiable(found) if sharded else {}
    presence = request.agreement.presence(found.names, found.all_names, table)
    if sharded:
        _check_differentiable(presence.reach, found)
    shares = [presence.weights.get(name, 0.0) for name in presence.names]
    own = own.to(request.wrapped[0].device)  # a rank without losses knows of no other device
    values = presence.averaged(found.names, own, request.agreement.ranks)
    here = {
        presence.names.index(name): loss
        for name, loss in zip(found.names, found.scalars, strict=True)
        if name in presence.names
    }
    return Averages(presence.names, found.all_names, values, here, [*shares, presence.extra_weight])


def _differentiable(found: NamedLosses) -> dict[int, int]:
    """The losses that require a gradient and those that do not: ranks disagree on what ends up in both."""
    bits = [
        sum(1 << place for place, loss in enumerate(found.scalars) if loss.requires_grad is does)
        for does in (True, False)
    ]
    return dict(enumerate(bits))


def _check_differentiable(anywhere: dict[int, int], found: NamedLosses) -> None:
    mixed = anywhere[0] & anywhere[1]
    if mixed:
        names = [name for place, name in enumerate(found.names) if mixed >> place & 1]
        raise RuntimeError(
            f"MultiObjectiveOptimizer: `losses` must require a gradient on all ranks or on none where parameters are "
            f"sharded, got {names}, which do on some. Zero times an output stands for a loss without items."
        )
