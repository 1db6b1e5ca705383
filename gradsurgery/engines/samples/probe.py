"""Finds out where samples lie in what layers returned, and whether they mix."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..uses import Use
from .layout import Layout, halves, layouts

Deltas: TypeAlias = dict[GradientEdge, Tensor]
"""What arrives at points, each ``(K, *output)``."""

_Active: TypeAlias = dict[int, Tensor]
"""Along some dimensions, which indices have deltas that are numbers and not zero."""


class Probed(NamedTuple):
    """The result of a probe.

    Args:
        deltas: Of all losses.
        layouts: For each use where the samples lie; None where they mix.
        is_conclusive: Whether something arrived at every use that shows it to be so in any other step.
    """

    deltas: Deltas
    layouts: dict[Use, Layout | None]
    is_conclusive: bool


def layouts_of(use: Use, samples: int) -> list[Layout]:
    """Where N samples may lie in what a use returned, judged by its shape."""
    return layouts(tuple(use.node._input_metadata[0].shape), use.summed, samples)


def probe(uses: Iterable[Use], samples: int, seed: int, passed: Callable[[Tensor], Deltas]) -> Probed:
    """Differentiates half of the losses, then the others: each half must leave the other's deltas exactly zero.

    Args:
        uses: Uses whose shape admits a layout.
        samples: N, at least 2.
        seed: Chooses the first half.
        passed: Gives the deltas of the losses of some samples, ``(N,)`` bool.

    Cost:
        Two backward passes as a rule; two more for each binary digit of N while it matters which layout it is.
    """
    left = {use: layouts_of(use, samples) for use in uses}
    deltas: Deltas = {}
    conclusive = True
    for half in halves(samples, seed):
        parts = [passed(members) for members in half]
        active = {use: [_active(part[use.edge], options) for part in parts] for use, options in left.items()}
        left = {
            use: [one for one in options if _is_permitted(one, half, active[use])] for use, options in left.items()
        }
        if not deltas:
            deltas = {edge: delta + parts[1][edge] for edge, delta in parts[0].items()}
            conclusive = all(own.any() for pair in active.values() for one in pair for own in one.values())
        if not any(_is_in_doubt(options, active[use]) for use, options in left.items()):
            break
    conclusive &= all(len(options) < 2 for options in left.values())
    conclusive &= all(bool(delta.isfinite().all()) for delta in deltas.values())
    return Probed(deltas, {use: options[0] if options else None for use, options in left.items()}, conclusive)


def _active(delta: Tensor, options: list[Layout]) -> _Active:
    known = (delta != 0) & delta.isfinite()
    others = {one.dim: [dim for dim in range(delta.ndim) if dim != 1 + one.dim] for one in options}
    return {dim: known.any(dim=other).cpu() for dim, other in others.items()}


def _is_permitted(layout: Layout, half: tuple[Tensor, Tensor], active: list[_Active]) -> bool:
    pairs = zip(half, active, strict=True)
    return not any(bool(own[layout.dim][~members[layout.owners()]].any()) for members, own in pairs)


def _is_in_doubt(options: list[Layout], active: list[_Active]) -> bool:
    """Whether it matters for what has arrived which layout it is."""
    for one in options[1:]:
        first = options[0]
        seen = active[0][one.dim] | active[1][one.dim]
        if bool(seen.any()) and (one.dim != first.dim or not torch.equal(one.owners()[seen], first.owners()[seen])):
            return True
    return False
