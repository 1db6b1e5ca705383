"""Where a graph over samples uses parameters such that the gradients of each sample can be told apart."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor
from torch.autograd.graph import GradientEdge

from ...sharing import describe
from ..graph import Node, Reach
from ..matching import completed, readable
from ..uses import Use
from .layout import Layout
from .uses import sample_operands

Target: TypeAlias = Tensor | Node
"""A parameter, or a point of the graph that is used as one and depends on parameters alone."""


class Site(NamedTuple):
    """A use, and where the samples lie in what it returned."""

    use: Use
    layout: Layout


class Sites(NamedTuple):
    """How each shared parameter gets its gradients.

    Args:
        matched: Parameters whose every use is a site.
        points: Points of the graph whose every use is a site.
        pulled: Parameters that are reached through these points only.
        rest: All others.
    """

    matched: dict[Tensor, list[Site]]
    points: dict[Node, list[Site]]
    pulled: list[Tensor]
    rest: list[Tensor]

    def edges(self) -> list[GradientEdge]:
        """Where deltas are needed."""
        sites = [site for own in [*self.matched.values(), *self.points.values()] for site in own]
        return list(dict.fromkeys(site.use.edge for site in sites))


def known_uses(graph: Reach, shared: Sequence[Tensor], samples: int) -> dict[Target, list[Use]]:
    """Finds the targets whose every use is known and may have N samples in what it returned, by its shape."""
    members = set(shared)
    found: dict[Target, list[Use]] = {}
    for node, paths in completed(graph, 1, sample_operands, least=1):
        variable = getattr(node, "variable", None)
        if variable is None or (variable in members and not variable._backward_hooks):
            uses = [path.use() for path in paths]
            if all(_may_hold(use, samples) for use in uses):
                found[node if variable is None else variable] = uses
    inner = [target for target in found if not isinstance(target, Tensor)]
    if inner:
        constant = _nodes_without_data(graph)
        for node in inner:
            if node not in constant or len(node._input_metadata) > 1:
                del found[node]
    return readable(found)


def sites_of(
    graph: Reach,
    shared: Sequence[Tensor],
    uses: Mapping[Target, list[Use]],
    layouts: Mapping[Use, Layout | None],
    names: dict[int, str],
) -> Sites:
    """Decides how each shared parameter gets its gradients.

    Raises:
        RuntimeError: Samples mix.
    """
    known: dict[Target, list[Site]] = {}
    for target, own in uses.items():
        found = [Site(use, layout) for use in own if (layout := layouts[use]) is not None]
        if len(found) == len(own):
            known[target] = found
    points, passable = _points(graph, known)
    reached = {getattr(node, "variable", None) for node in passable}
    sites = Sites({}, {point: known[point] for point in points}, [], [])
    for leaf in shared:
        if leaf in uses and all(use.node in passable and use.node not in points for use in uses[leaf]):
            if leaf in known:
                sites.matched[leaf] = known[leaf]
                continue
            constant = _nodes_without_data(graph)
            if not all(use.node in constant for use in uses[leaf] if layouts[use] is None):
                raise RuntimeError(_mixed(leaf, names))
        (sites.rest if leaf in reached else sites.pulled).append(leaf)
    return sites if sites.pulled else sites._replace(points={})


def _may_hold(use: Use, samples: int) -> bool:
    """Whether what a use returned may be rows of N samples, by its shape."""
    shape = use.node._input_metadata[0].shape
    return any(shape[dim] and shape[dim] % samples == 0 for dim in use.summed)


def _points(graph: Reach, known: dict[Target, list[Site]]) -> tuple[list[Node], set[Node]]:
    """The points to start from anew, none below another, and the nodes that are reached other than through them."""
    points: list[Node] = []
    passable: set[Node] = set()
    for node, bits in graph.nodes.items():  # every node comes after all that lead to it; the losses are the first
        if not bits & 1 or (passable and node not in passable):
            continue
        passable.add(node)
        if node in known:
            points.append(node)
        else:
            passable.update(graph.children[node])
    return points, passable


def _nodes_without_data(graph: Reach) -> set[Node]:
    """The nodes all of whose operands come from parameters alone, and that look up what was not looked up before."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):  # every node comes after all below it
        children = graph.children[node]
        known = len(children) == len(node.next_functions)
        if known and all(child in found and not graph.names[child].startswith("Embedding") for child in children):
            found.add(node)
    return found


def _mixed(leaf: Tensor, names: dict[int, str]) -> str:
    return (
        f"MultiObjectiveOptimizer: `losses` must come from samples that do not mix when they are one tensor, in the "
        f"order of the batch, each with as many rows as any other, got losses that depend on other samples, seen at "
        f"{describe(leaf, names)}. Statistics over the batch, attention across it and contrastive losses mix "
        f"samples: do without, or use engine='loop', which differentiates one loss after the other."
    )
