"""Backward passes through the part of a graph that losses share: for all losses at once where that is possible."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .base import Problem
from .graph import Node
from .per_loss import PlainSum

Input: TypeAlias = Any
"""A tensor or a ``GradientEdge``: torch takes lists of both but declares lists of one."""

Batchable: TypeAlias = dict[frozenset[str], bool]
"""For parts of graphs made of such nodes, whether one pass for all losses has worked."""


class _Start(NamedTuple):
    """Where passes begin: an edge of the graph, what arrives there ``(K, ...)``, and from which losses."""

    edge: GradientEdge
    seeds: Tensor
    losses: frozenset[int]


class Passes:
    """Differentiates losses with respect to points and parameters in what they share.

    The losses' private parts of the graph are passed once each, down to the frontier where the shared part begins.
    What arrives there starts every further pass. Where one point of the frontier lies below another, and would count
    twice, every pass starts from the losses themselves.

    Args:
        problem: The losses and their graph.
        batchable: What is known from earlier steps; grows.
    """

    def __init__(self, problem: Problem, batchable: Batchable) -> None:
        self._problem, self._batchable = problem, batchable
        self._count = len(problem.scalars)
        self._kept = problem.request.retain_graph
        self.plain = PlainSum()
        """The gradients of what is not shared."""
        self.alone: dict[Tensor, tuple[int, Tensor]] = {}
        """For each shared parameter that one loss alone reaches, which one, and its gradient."""
        self.how = ""
        """How the shared part was passed."""
        self._pass_extra_loss()
        self._starts = self._descend(_frontier(problem))
        self._pass_to_others()

    def rows(self, inputs: Sequence[Input], *, last: bool) -> list[Tensor]:
        """The gradients of all losses with respect to points that two or more reach, each ``(K, ...)``.

        Args:
            inputs: The points.
            last: Whether no further pass will follow, so that the graph can be freed on the way.
        """
        keep = self._kept or not last
        nodes = self._nodes_to_batch()
        if nodes is not None and self._batchable.get(nodes, True):
            found = self._batched(inputs, keep=keep or nodes not in self._batchable)
            self._batchable[nodes] = found is not None
            if found is not None:
                self.how = "all losses in one pass"
                return found
        self.how = "one pass a loss"
        return self._looped(inputs, keep=keep)

    def weighted(self, weights: Tensor, leaves: Sequence[Tensor], *, last: bool) -> list[Tensor]:
        """The gradients of parameters from the sum of the losses with weights ``(K,)``, by one pass."""
        seeds = [torch.tensordot(weights.to(start.seeds), start.seeds, 1) for start in self._starts]
        found = self._pass(leaves, self._starts, seeds, keep=self._kept or not last)
        return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]

    def _pass_extra_loss(self) -> None:
        problem = self._problem
        extra = problem.request.extra_loss
        leaves = [leaf for leaf, bits in problem.graph.leaves.items() if bits >> self._count]
        if extra is not None and extra.requires_grad and leaves:
            scaled = problem.request.scaled(extra)
            self.plain.add(leaves, torch.autograd.grad(scaled, leaves, retain_graph=True, allow_unused=True))

    def _pass_to_others(self) -> None:
        """Gets the gradients of what several losses reach and is not shared."""
        shared = set(self._problem.shared)
        others = [leaf for leaf, bits in self._problem.leaves.items() if not _is_one(bits) and leaf not in shared]
        if others:
            seeds = [start.seeds.sum(0) for start in self._starts]
            self.plain.add(others, self._pass(others, self._starts, seeds, keep=True))

    def _descend(self, frontier: "_Frontier") -> list[_Start]:
        """Passes all private parts at once; each ends in nodes of its own, where what goes on is taken down."""
        problem, shared = self._problem, set(self._problem.shared)
        arrived: dict[GradientEdge, dict[int, Tensor]] = {}

        def take(edge: GradientEdge, loss: int, gradient: Tensor | None) -> None:
            if gradient is not None:
                own = arrived.setdefault(edge, {})
                own[loss] = own[loss] + gradient if loss in own else gradient

        def watch(crossing: _Crossing) -> Callable[..., None]:
            return lambda handed_on, _: take(crossing.edge, crossing.loss, handed_on[crossing.slot])

        for loss, edge in frontier.roots:
            take(edge, loss, problem.request.scaled(torch.ones_like(problem.scalars[loss], requires_grad=False)))
        own = [leaf for leaf, bits in problem.leaves.items() if _is_one(bits)]
        ends = list(dict.fromkeys(crossing.edge for crossing in frontier.crossings))
        if ends or own:
            roots = [problem.request.scaled(root) for root in problem.scalars if root.requires_grad]
            hooks = [crossing.node.register_hook(watch(crossing)) for crossing in frontier.crossings]
            keep = self._kept or frontier.is_provisional
            try:
                inputs: list[Input] = [*ends, *own]
                found = torch.autograd.grad(roots, inputs, retain_graph=keep, allow_unused=True)
            finally:
                for hook in hooks:
                    hook.remove()
            for leaf, gradient in zip(own, found[len(ends) :], strict=True):
                if leaf not in shared:
                    self.plain.add([leaf], [gradient])
                elif gradient is not None:
                    loss = problem.leaves[leaf].bit_length() - 1
                    self.alone[leaf] = loss, gradient.clone()  # the same memory may be handed out twice
        return [_start(edge, gradients, self._count) for edge, gradients in arrived.items()]

    def _nodes_to_batch(self) -> frozenset[str] | None:
        """The kinds of nodes in the shared part; None where a batched pass could give other numbers or run user code.

        A zero for a loss that does not arrive at a start would become NaN where a derivative is infinite.
        """
        if any(len(start.losses) < self._count for start in self._starts):
            return None
        mask = (1 << self._count) - 1
        nodes = [node for node, bits in self._problem.graph.nodes.items() if not _is_one(bits & mask)]
        if any(isinstance(node, BackwardCFunction) for node in nodes):
            return None
        return frozenset(map(self._problem.graph.names.__getitem__, nodes))

    def _batched(self, inputs: Sequence[Input], *, keep: bool) -> list[Tensor] | None:
        """All losses in one pass, or None where an operation cannot be batched."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            try:
                found = torch.autograd.grad(
                    [start.edge for start in self._starts],
                    inputs,
                    [start.seeds for start in self._starts],
                    retain_graph=keep,
                    allow_unused=True,
                    is_grads_batched=True,
                )
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError):  # a pass a loss will show whether it is the user's error
                return None
        return [self._zeros(one) if rows is None else rows for one, rows in zip(inputs, found, strict=True)]

    def _looped(self, inputs: Sequence[Input], *, keep: bool) -> list[Tensor]:
        """One pass a loss, from where it arrives."""
        rows = [self._zeros(one) for one in inputs]
        for loss in range(self._count):
            starts = [start for start in self._starts if loss in start.losses]
            if not starts:
                continue
            seeds = [start.seeds[loss] for start in starts]
            found = self._pass(inputs, starts, seeds, keep=keep or loss < self._count - 1)
            for target, gradient in zip(rows, found, strict=True):
                if gradient is not None:
                    target[loss].copy_(gradient)
        return rows

    def _pass(
        self, inputs: Sequence[Input], starts: Sequence[_Start], seeds: Sequence[Tensor], *, keep: bool
    ) -> tuple[Tensor | None, ...]:
        edges = [start.edge for start in starts]
        return torch.autograd.grad(edges, inputs, seeds, retain_graph=keep, allow_unused=True)

    def _zeros(self, one: Input) -> Tensor:
        """Zero gradients ``(K, ...)`` with respect to a point."""
        if isinstance(one, Tensor):
            return one.new_zeros(self._count, *one.shape, requires_grad=False)
        metadata = one.node._input_metadata[one.output_nr]
        return torch.zeros(self._count, *metadata.shape, dtype=metadata.dtype, device=metadata.device)


def _is_one(bits: int) -> bool:
    """Whether at most one loss is meant."""
    return bits & (bits - 1) == 0


class _Crossing(NamedTuple):
    """Where a loss leaves its private part: a node, one of the edges that lead on from it, and the loss."""

    node: Node
    slot: int
    edge: GradientEdge
    loss: int


class _Frontier(NamedTuple):
    """Where the private parts of the losses end.

    Args:
        crossings: Edges from private nodes to shared ones.
        roots: Losses that are shared nodes themselves.
        is_provisional: Whether the losses themselves were taken for it, and their private parts are still needed.
    """

    crossings: list[_Crossing]
    roots: list[tuple[int, GradientEdge]]
    is_provisional: bool = False


def _frontier(problem: Problem) -> _Frontier:
    """Finds the frontier; the losses themselves where one point of it lies below another."""
    mask = (1 << len(problem.scalars)) - 1
    nodes, children = problem.graph.nodes, problem.graph.children
    roots = [(loss, _edge(root)) for loss, root in enumerate(problem.scalars) if root.requires_grad]
    shared_roots = [(loss, edge) for loss, edge in roots if not _is_one(nodes[edge.node] & mask)]
    tops: set[Node] = {edge.node for _, edge in shared_roots}
    below: set[Node] = set()
    crossings = []
    for node, bits in nodes.items():  # every node comes after all that lead to it
        bits &= mask
        if not bits:
            continue
        if _is_one(bits):
            for slot, (child, output) in enumerate(node.next_functions):
                if child is not None and not _is_one(nodes[child] & mask):
                    crossings.append(_Crossing(node, slot, GradientEdge(child, output), bits.bit_length() - 1))
                    tops.add(child)
        elif node in below or node in tops:
            if node in below and node in tops:
                return _Frontier([], roots, is_provisional=True)
            below.update(children[node])
    return _Frontier(crossings, shared_roots)


def _edge(root: Tensor) -> GradientEdge:
    """The edge to a root, equal to other edges to it."""
    found = get_gradient_edge(root)
    return GradientEdge(found.node, found.output_nr)


def _start(edge: GradientEdge, gradients: dict[int, Tensor], count: int) -> _Start:
    zero = torch.zeros_like(next(iter(gradients.values())))
    seeds = torch.stack([gradients.get(loss, zero) for loss in range(count)])
    return _Start(edge, seeds, frozenset(gradients))
