"""Compiled parts of the graph, in which it cannot be seen what each of their outputs reaches."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from ..sharing import Sharing, describe
from .graph import Node, Reach, edges_below


def check_tags(
    graph: Reach,
    losses: Sequence[Tensor],
    wrapped: list[Tensor],
    sharing: Sharing,
    names: Mapping[int, str],
    *,
    copies: bool = False,
) -> None:
    """Raises where what is shared can only be told by the user.

    All that a compiled graph holds lies below a single node. If all losses that reach the node do so by the same
    outputs, they share what it holds, as far as anybody can see. If they come out of it by different outputs, its
    heads may be in it.

    Args:
        graph: What the losses reach.
        losses: The losses.
        wrapped: The parameters of the wrapped optimizer.
        sharing: Knows what is declared as shared.
        names: Names of parameters, by id, for errors.
        copies: Whether leaves that the optimizer does not hold stand for parameters of it, as with FSDP2.

    Cost:
        Nothing without compiled parts; else a walk over the graph of each loss.
    """
    if not graph.compiled or sharing.explicit is not None or sharing.declared(wrapped):
        return
    hidden = set(_leaves_below(graph, _entered_apart(graph, losses)))
    for parameter in [*wrapped, *(graph.leaves if copies else ())]:
        if parameter in hidden:
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `shared` must be declared where several losses come out of one compiled "
                f"graph, in which everything looks shared, got {describe(parameter, dict(names))}, in or before such "
                f"a graph. Tag what the losses share, gs.tag_shared(model.trunk), or name it by shared=model.trunk, "
                f"or compile that part alone."
            )


def _entered_apart(graph: Reach, losses: Sequence[Tensor]) -> list[Node]:
    """The compiled nodes that different losses reach by different outputs."""
    entries: dict[Node, set[frozenset[int]]] = {node: set() for node in graph.compiled}
    for loss in losses:
        own: dict[Node, set[int]] = {}
        for node, output in edges_below(loss):
            if node in entries:
                own.setdefault(node, set()).add(output)
        for node, outputs in own.items():
            entries[node].add(frozenset(outputs))
    return [node for node, different in entries.items() if len(different) > 1]


def _leaves_below(graph: Reach, nodes: list[Node]) -> Iterator[Tensor]:
    """The leaves that can be reached from nodes."""
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            yield node.variable
        below = [child for child in graph.children[node] if child not in seen]
        seen.update(below)
        nodes += below
