"""Where losses part: the frontier between what one loss alone reaches and what all share, and one pass from there."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .base import Problem
from .graph import Node
from .per_loss import PlainSum
from .workspace import reused


class _Crossing(NamedTuple):
    """Where a loss leaves its private part: a node, one of the edges that lead on from it, and the loss."""

    node: Node
    slot: int
    edge: GradientEdge
    loss: int


class Frontier(NamedTuple):
    """Where the private parts of the losses end.

    Args:
        crossings: Edges from private nodes to shared ones.
        roots: Losses that are shared nodes themselves.
        kinds: The kinds of nodes in the shared part.
    """

    crossings: list[_Crossing]
    roots: list[tuple[int, GradientEdge]]
    kinds: frozenset[str]


def frontier_of(problem: Problem) -> Frontier | None:
    """Finds the frontier; None where losses cannot all pass it at once with the numbers of separate passes.

    That is where one point of it lies below another, and would count twice; where some loss does not arrive at a
    point, as its zero would become NaN where a derivative is infinite; or where Python functions are passed.
    """
    count = len(problem.scalars)
    everything = (1 << count) - 1
    nodes, children = problem.graph.nodes, problem.graph.children
    roots = [(loss, _edge(root)) for loss, root in enumerate(problem.scalars) if root.requires_grad]
    shared_roots = [(loss, edge) for loss, edge in roots if not _is_one(nodes[edge.node] & everything)]
    crossings: list[_Crossing] = []
    arriving: dict[GradientEdge, int] = {}
    below: set[Node] = set()
    shared: list[Node] = []
    for loss, edge in shared_roots:
        arriving[edge] = arriving.get(edge, 0) | 1 << loss
    tops: set[Node] = {edge.node for edge in arriving}
    for node, bits in nodes.items():  # every node comes after all that lead to it
        bits &= everything
        if not bits:
            continue
        if _is_one(bits):
            for slot, (child, output) in enumerate(node.next_functions):
                if child is not None and not _is_one(nodes[child] & everything):
                    edge = GradientEdge(child, output)
                    crossings.append(_Crossing(node, slot, edge, bits.bit_length() - 1))
                    arriving[edge] = arriving.get(edge, 0) | bits
                    tops.add(child)
            continue
        shared.append(node)
        if node in below or node in tops:
            if node in below and node in tops:
                return None
            below.update(children[node])
    if any(bits != everything for bits in arriving.values()):
        return None
    if any(isinstance(node, BackwardCFunction) for node in shared):
        return None
    return Frontier(crossings, shared_roots, frozenset(map(problem.graph.names.__getitem__, shared)))


class Descent(NamedTuple):
    """What the private parts of the losses gave.

    Args:
        arrived: For each point of the frontier that a gradient arrives at the gradients of the losses by number.
        plain: The gradients of what is not shared.
        alone: For each shared parameter that one loss alone reaches, which one, and its gradient.
    """

    arrived: dict[GradientEdge, dict[int, Tensor]]
    plain: PlainSum
    alone: dict[Tensor, tuple[int, Tensor]]


def descend(problem: Problem, frontier: Frontier, *, keep: bool) -> Descent:
    """Passes all private parts at once: each ends in nodes of its own, where what goes on is taken down."""
    arrived: dict[GradientEdge, dict[int, Tensor]] = {}

    def take(edge: GradientEdge, loss: int, gradient: Tensor | None) -> None:
        if gradient is not None:
            own = arrived.setdefault(edge, {})
            own[loss] = own[loss] + gradient if loss in own else gradient

    def watch(crossing: _Crossing) -> Callable[..., None]:
        return lambda handed_on, _: take(crossing.edge, crossing.loss, handed_on[crossing.slot])

    for loss, edge in frontier.roots:
        take(edge, loss, problem.request.scaled(torch.ones_like(problem.scalars[loss], requires_grad=False), loss))
    own = [leaf for leaf, bits in problem.leaves.items() if _is_one(bits)]
    ends = list(dict.fromkeys(crossing.edge for crossing in frontier.crossings))
    found: tuple[Tensor | None, ...] = ()
    if ends or own:
        roots = [
            problem.request.scaled(root, loss) for loss, root in enumerate(problem.scalars) if root.requires_grad
        ]
        hooks = [crossing.node.register_hook(watch(crossing)) for crossing in frontier.crossings]
        try:
            inputs: list[Any] = [*ends, *own]
            found = torch.autograd.grad(roots, inputs, retain_graph=keep, allow_unused=True)[len(ends) :]
        finally:
            for hook in hooks:
                hook.remove()
    return Descent(arrived, *_divided(problem, own, found))


def _divided(
    problem: Problem, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> tuple[PlainSum, dict[Tensor, tuple[int, Tensor]]]:
    """Divides gradients of what one loss alone reaches between what is shared and what is not."""
    plain, alone, shared = PlainSum(), {}, set(problem.shared)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if leaf not in shared:
            plain.add([leaf], [gradient])
        elif gradient is not None:
            alone[leaf] = problem.leaves[leaf].bit_length() - 1, gradient
    return plain, alone


def pass_at_once(problem: Problem, descent: Descent, leaves: Sequence[Tensor], *, keep: bool) -> list[Tensor | None]:
    """The gradients ``(K, *shape)`` of all losses with respect to parameters; None where none arrives.

    Raises:
        RuntimeError: An operation cannot be batched, or some loss does not arrive where others do.
    """
    seeds = _seeds(problem, descent)
    if not seeds:
        return [None] * len(leaves)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        found = torch.autograd.grad(
            list(seeds), leaves, list(seeds.values()), retain_graph=keep, allow_unused=True, is_grads_batched=True
        )
    return list(found)


def _seeds(problem: Problem, descent: Descent) -> dict[GradientEdge, Tensor]:
    """For each point of the frontier what arrives there, ``(K, ...)``."""
    count, seeds = len(problem.scalars), {}
    for place, (edge, gradients) in enumerate(descent.arrived.items()):
        if len(gradients) < count:
            raise RuntimeError("a gradient that some of the losses do not pass on")
        shape = (count, *gradients[0].shape)
        rows = seeds[edge] = reused(problem.request.workspace, ("seeds", place), shape, gradients[0])
        for loss, gradient in gradients.items():
            rows[loss].copy_(gradient)
    return seeds


def _is_one(bits: int) -> bool:
    """Whether at most one loss is meant."""
    return bits & (bits - 1) == 0


def _edge(root: Tensor) -> GradientEdge:
    """The edge to a root, equal to other edges to it."""
    found = get_gradient_edge(root)
    return GradientEdge(found.node, found.output_nr)
