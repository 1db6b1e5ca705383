"""Backward passes through the part of a graph that losses share: for all losses at once where that is possible."""

import warnings
from collections.abc import Sequence
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
        frontier = _frontier(problem)
        self._starts = self._descend(frontier or _roots(problem), keep=self._kept or frontier is None)
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

    def _descend(self, ends: list[list[GradientEdge]], *, keep: bool) -> list[_Start]:
        """Passes the private part of each loss, down to its ends."""
        problem, shared = self._problem, set(self._problem.shared)
        arrived: dict[GradientEdge, dict[int, Tensor]] = {}
        for loss, root in enumerate(problem.scalars):
            own = [leaf for leaf, bits in problem.leaves.items() if bits == 1 << loss]
            if not root.requires_grad or not (own or ends[loss]):
                continue
            inputs: list[Input] = [*ends[loss], *own]
            scaled = problem.request.scaled(root)
            found = torch.autograd.grad(scaled, inputs, retain_graph=keep, allow_unused=True)
            for edge, gradient in zip(ends[loss], found, strict=False):
                if gradient is not None:
                    arrived.setdefault(edge, {})[loss] = gradient
            for leaf, gradient in zip(own, found[len(ends[loss]) :], strict=True):
                if leaf not in shared:
                    self.plain.add([leaf], [gradient])
                elif gradient is not None:
                    self.alone[leaf] = loss, gradient.clone()  # the same memory may be handed out twice
        starts = []
        for edge, gradients in arrived.items():
            zero = torch.zeros_like(next(iter(gradients.values())))
            rows = [gradients.get(loss, zero) for loss in range(self._count)]
            starts.append(_Start(edge, torch.stack(rows), frozenset(gradients)))
        return starts

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
        return frozenset(node.name() for node in nodes)

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


def _roots(problem: Problem) -> list[list[GradientEdge]]:
    return [[get_gradient_edge(root)] if root.requires_grad else [] for root in problem.scalars]


def _frontier(problem: Problem) -> list[list[GradientEdge]] | None:
    """For each loss the points where its private part ends; None if one of them lies below another."""
    mask = (1 << len(problem.scalars)) - 1
    nodes, children = problem.graph.nodes, problem.graph.children
    ends: list[dict[GradientEdge, None]] = [{} for _ in problem.scalars]
    tops: set[Node] = set()
    below: set[Node] = set()
    for loss, edges in enumerate(_roots(problem)):
        for edge in edges:
            if not _is_one(nodes[edge.node] & mask):
                ends[loss][edge] = None
                tops.add(edge.node)
    for node, bits in nodes.items():  # every node comes after all that lead to it
        bits &= mask
        if not bits:
            continue
        if _is_one(bits):
            for child, output in node.next_functions:
                if child is not None and not _is_one(nodes[child] & mask):
                    ends[bits.bit_length() - 1][GradientEdge(child, output)] = None
                    tops.add(child)
        elif node in below or node in tops:
            if node in below and node in tops:
                return None
            below.update(children[node])
    return [list(edges) for edges in ends]
