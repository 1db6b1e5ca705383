"""One step with a scalarizer: a single backward pass over the weighed sum of the losses."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .distributed import Ranks, any_sharded
from .engines import PlainSum, Request, sums_of_all_items
from .engines.averages import Averages, averages
from .engines.ordinary import OrdinaryPasses, averaged, ranks_of, reached_anywhere
from .losses import named_losses
from .scalarizers import Scalarizer
from .surgery import Surgery, weights_of_first
from .writing import add_gradients, all_finite

Numbering = Callable[[Sequence[str], Sequence[str]], tuple[list[str], list[int]]]


def weigh(
    request: Request, scalarizer: Scalarizer, numbered: Numbering, first: Surgery | None
) -> tuple[list[str], Surgery]:
    """Differentiates the scalar and writes all gradients to ``.grad``; if it raises, nothing has happened.

    Args:
        request: The losses, the extra loss, the scale.
        scalarizer: Weighs the losses by the derivatives of its scalar.
        numbered: Numbers the losses by name.
        first: An earlier surgery of the same step, whose weights serve again.

    Returns:
        The names of all losses seen so far, and what was done.
    """
    ranks = ranks_of(request) if any_sharded(request.wrapped) else None
    own = named_losses(request.evaluated(), may_be_absent=request.agreement is not None)
    found = averages(request, own, sharded=ranks is not None)
    known, objectives = numbered(found.names, found.all_names)
    with scalarizer.transaction() as roll_back:
        weights = None if first is None else weights_of_first(first, found.names)
        if weights is None:
            with torch.enable_grad():
                points = found.values.clone().requires_grad_()
                (weights,) = torch.autograd.grad(scalarizer(points, rows=objectives), points)
            if request.agreement is not None:
                weights = request.agreement.ranks.from_first(weights)
        if ranks is None:
            gradients = _of_all_ranks(request, found, weights)
        else:
            gradients = _of_shards(request, found, weights, ranks)
        sound = not scalarizer.stateful or all_finite(gradient for _, gradient in gradients)
        if ranks is not None and scalarizer.stateful:
            sound = ranks.everywhere(sound)
        add_gradients(gradients)
        if not sound:
            roll_back()
    how = "one backward pass of the weighed sum"
    return known, Surgery(found.names, found.values, weights, None, engine=how)


def _total(request: Request, found: Averages, weights: Tensor, ranks: int) -> Tensor:
    """What this rank contributes to the weighed sum of the losses of all ranks, times a number of ranks."""
    with torch.enable_grad():
        total = weights.new_zeros(())
        # one of no items may be NaN; where parameters are sharded, all ranks have to differentiate it even so
        here = {place: loss for place, loss in found.here.items() if found.shares[place] or ranks > 1}
        if here and request.agreement is not None:
            weights = torch.stack([weights[place] * (found.shares[place] * ranks) for place in here])
        if here:
            total = (weights * torch.stack([loss.to(weights) for loss in here.values()])).sum()
        if request.extra_loss is not None and (found.shares[-1] or ranks > 1):
            total = total + request.extra_loss.to(weights) * (found.shares[-1] * ranks)
        return total


def _of_all_ranks(request: Request, found: Averages, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The gradients of the weighed sum, added up over the ranks if there are several."""
    roots, graph = replace(request, extra_loss=None).reach([_total(request, found, weights, 1)])
    leaves = list(graph.leaves)
    plain = PlainSum()
    if leaves:
        plain.add(leaves, request.gradients(roots, graph, 0, leaves))
    if request.agreement is None:
        return plain.items()
    return sums_of_all_items(plain.items(), request.agreement, request.wrapped, request.names)


def _of_shards(request: Request, found: Averages, weights: Tensor, ranks: Ranks) -> list[tuple[Tensor, Tensor]]:
    """The gradients of the weighed sum where parameters are sharded, which averages over the ranks."""
    roots, graph = replace(request, extra_loss=None).reach(
        [_total(request, found, weights, ranks.size)], sharded=True
    )
    passes = OrdinaryPasses(request, graph)
    gradients = {parameter: {0: gradient} for parameter, gradient in passes.gradients(roots, 0).items()}
    passes.finish()
    everywhere = reached_anywhere(request, gradients, 1, ranks)
    return [(parameter, averaged(parameter, own[0], ranks)) for parameter, own in everywhere.items()]
