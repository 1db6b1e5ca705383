"""Reads the autograd graph: which losses reach which leaves, and which losses share any of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

# Autograd records reentrant checkpointing as this node; the parameters inside are invisible to autograd.grad.
_REENTRANT_CHECKPOINT = "CheckpointFunctionBackward"
# Autograd records a graph that torch.compile has made as this node, whatever it holds.
_COMPILED = "CompiledFunctionBackward"

# DistributedDataParallel passes all outputs through one node, each in a slot of its own, for unused parameters.
PASSAGE = "_DDPSinkBackward"


Node: TypeAlias = Any
"""A node of the autograd graph; torch's own class does not say what it has."""


class Reach(NamedTuple):
    """What a graph says about K roots, bit k standing for root k."""

    leaves: dict[Tensor, int]
    """For each leaf that requires a gradient, the roots that reach it."""
    overlaps: frozenset[int]
    """The sets of roots that reach an inner node of the graph together."""
    nodes: dict[Node, int]
    """For each node, the roots that reach it; a node comes before all nodes below it."""
    children: dict[Node, list[Node]]
    """For each node the nodes that it hands gradients to, repeats included."""
    names: dict[Node, str]
    """For each node its kind."""
    compiled: Sequence[Node] = ()
    """The nodes that stand for compiled graphs."""

    def needed_again(self, root: int) -> bool:
        """Whether a later root passes through a part of the graph that this root passes through."""
        return any(roots >> root & 1 and roots >> (root + 1) for roots in self.overlaps)


def reach(roots: Sequence[Tensor]) -> Reach:
    """Walks the graph once for all roots together.

    Args:
        roots: Scalars; those that do not require a gradient reach nothing.

    Raises:
        RuntimeError: A part of the graph is a reentrant checkpoint.

    Cost:
        Linear in the number of nodes, about a microsecond each; independent of the number of roots.
    """
    starts = [get_gradient_edge(root).node if root.requires_grad else None for root in roots]
    children, waiting = _nodes_below([node for node in starts if node is not None])
    names: dict[Node, str] = {}
    reached = dict.fromkeys(waiting, 0)
    for position, node in enumerate(starts):
        if node is not None:
            reached[node] |= 1 << position
    ready = [node for node, count in waiting.items() if count == 0]
    leaves: dict[Tensor, int] = {}
    overlaps = set()
    compiled = []
    while ready:
        node = ready.pop()
        name = names[node] = node.name()
        bits = reached[node]
        below = children[node]
        if below:
            overlaps.add(bits)
        else:
            variable = getattr(node, "variable", None)
            if variable is not None:
                leaves[variable] = leaves.get(variable, 0) | bits
            else:
                overlaps.add(bits)
        if name == _COMPILED and compiled_graph(node).__module__.startswith("torch."):
            compiled.append(node)
        elif name == _REENTRANT_CHECKPOINT:
            raise RuntimeError(
                "MultiObjectiveOptimizer: `losses` must not depend on a reentrant checkpoint, whose parameters "
                "autograd cannot differentiate one loss at a time. Call torch.utils.checkpoint.checkpoint with "
                "use_reentrant=False."
            )
        for child in below:
            reached[child] |= bits
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    if PASSAGE in names.values():
        leaves = _leaves_by_slot(roots, leaves)
    nodes = {node: reached[node] for node in names}
    return Reach(leaves, frozenset(overlaps), nodes, children, names, compiled)


def compiled_graph(node: Node) -> Any:
    """The class by which torch runs the compiled graph that a node stands for."""
    return getattr(node, "_forward_cls", type(node))


def _leaves_by_slot(roots: Sequence[Tensor], leaves: dict[Tensor, int]) -> dict[Tensor, int]:
    """The leaves with the roots that reach them, where a passage hands on each gradient by itself.

    Taken as one node, it would have every root reach what is behind any of its outputs.
    """
    result = dict.fromkeys(leaves, 0)
    for position, root in enumerate(roots):
        for node in {node for node, _ in edges_below(root) if hasattr(node, "variable")}:
            result[node.variable] |= 1 << position
    return {leaf: bits for leaf, bits in result.items() if bits}


def edges_below(root: Tensor) -> set[tuple[Node, int]]:
    """All nodes that the gradient of a root gets to, each with the outputs by which it gets there."""
    edges: list[tuple[Node, int]] = []
    if root.requires_grad:
        start = get_gradient_edge(root)
        edges = [(start.node, start.output_nr)]
    seen = set(edges)
    passed = set()
    while edges:
        node, slot = edges.pop()
        below = node.next_functions
        if node.name() == PASSAGE:
            below = below[slot : slot + 1]
        elif node in passed:
            continue
        passed.add(node)
        new = [(child, output) for child, output in below if child is not None and (child, output) not in seen]
        seen.update(new)
        edges += new
    return seen


def sparse_tables(graph: Reach) -> set[Tensor]:
    """The parameters that get sparse gradients: the tables of embeddings, and what tables are made of."""
    waiting = [node.next_functions[0][0] for node, name in graph.names.items() if _is_sparse(node, name)]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += graph.children[node]
    return {node.variable for node in seen if hasattr(node, "variable")}


def _is_sparse(node: Node, name: str) -> bool:
    """Whether a node hands on a sparse gradient."""
    if name == "GatherBackward0":
        return bool(node._saved_sparse_grad)
    return name.startswith("Embedding") and bool(node._saved_sparse)


def _nodes_below(starts: list[Node]) -> tuple[dict[Node, list[Node]], dict[Node, int]]:
    """All nodes of the graph: the children of each, and how many parents each has."""
    children: dict[Node, list[Node]] = {}
    parents = dict.fromkeys(starts, 0)
    stack = list(parents)
    while stack:
        node = stack.pop()
        found = [child for child, _ in node.next_functions if child is not None]
        children[node] = found
        for child in found:
            if child not in parents:
                parents[child] = 0
                stack.append(child)
            parents[child] += 1
    return children, parents
