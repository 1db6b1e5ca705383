"""Finds, on the autograd graph, the parameters all of whose uses are of a kind that ``uses`` knows."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .graph import Node, Reach
from .products import Convolution, MatrixProduct
from .uses import Bias, Lookup, Use
from .views import View, is_view, shape_below, view_of

Operands: TypeAlias = Callable[[Node, str], list[tuple[int, Callable[..., Use]]]]
"""Says of a node of some kind which operands may be parameters, and what use is made of each."""

_Key = TypeVar("_Key")


class Path(NamedTuple):
    """The way from an operand of a node down to where a parameter may be."""

    build: Callable[..., Use]
    node: Node
    views: tuple[tuple[View, object], ...] = ()

    def use(self) -> Use:
        views = [view for view, _ in self.views]

        def view(gradient: Tensor) -> Tensor:
            for step in views:
                gradient = step(gradient)
            return gradient

        return self.build(self.node, view, tuple(key for _, key in self.views))


def matched_uses(graph: Reach, shared: list[Tensor], losses: int) -> dict[Tensor, list[Use]]:
    """Finds the shared parameters whose every use is one that two or more losses pass through, and of a known kind.

    Args:
        graph: What the losses reach.
        shared: The parameters that take part in the surgery.
        losses: K; roots beyond it (an extra loss) do not count.

    Returns:
        For each such parameter its uses, what they need of the graph already read.

    Cost:
        Linear in the number of nodes.
    """
    members = set(shared)
    found: dict[Tensor, list[Use]] = {}
    for node, paths in completed(graph, losses, operands, least=2):
        variable = getattr(node, "variable", None)
        if variable is not None and variable in members and variable.ndim and not variable._backward_hooks:
            found[variable] = [path.use() for path in paths]
    return readable(found)


def completed(graph: Reach, losses: int, known: Operands, least: int) -> Iterator[tuple[Node, list[Path]]]:
    """Finds the nodes that are reached by known uses only, and are no views.

    Args:
        graph: What the losses reach.
        losses: As in :func:`matched_uses`.
        known: The uses that are known.
        least: How many losses have to pass through a node for its use to be one.

    Yields:
        Such a node after all those above it, and the ways on which it is reached.
    """
    mask = (1 << losses) - 1
    arriving: dict[Node, int] = defaultdict(int)
    paths: dict[Node, list[Path]] = defaultdict(list)
    for node, bits in graph.nodes.items():  # every node comes after all that lead to it
        bits &= mask
        if not bits:
            continue
        for child in graph.children[node]:
            arriving[child] += 1
        own = paths.pop(node, None)
        if own is not None and len(own) == arriving[node]:
            if not is_view(node):
                yield node, own
            elif node._input_metadata[0].shape:  # what has no dimensions may be a loss itself
                step = view_of(node)
                paths[node.next_functions[0][0]] += [path._replace(views=(*path.views, step)) for path in own]
        if least == 1 or bits & (bits - 1):
            for position, build in known(node, graph.names[node]):
                child = node.next_functions[position][0]
                if child is not None:
                    paths[child].append(Path(build, node))


def operands(node: Node, name: str) -> list[tuple[int, Callable[..., Use]]]:
    """The operands of a node that may be parameters, and the uses that are made of them."""
    builds: list[tuple[int, Callable[..., Use]]] = []
    if name == "MmBackward0" or name == "BmmBackward0":
        builds = [
            (0, partial(MatrixProduct, left=True, other="_saved_mat2")),
            (1, partial(MatrixProduct, left=False, other="_saved_self")),
        ]
    elif name == "AddmmBackward0" and node._saved_alpha == 1 and node._saved_beta == 1:
        builds = [
            (1, partial(MatrixProduct, left=True, other="_saved_mat2")),
            (2, partial(MatrixProduct, left=False, other="_saved_mat1")),
        ]
        if node.next_functions[0][0] is not None and shape_below(node) == (node._input_metadata[0].shape[-1],):
            builds.append((0, partial(Bias, dim=-1)))
    elif name == "ConvolutionBackward0":
        builds = [(1, Convolution), (2, partial(Bias, dim=1 - len(node._input_metadata[0].shape)))]
    elif name == "EmbeddingBackward0":
        builds = [(0, Lookup)]
    return [] if builds and node._input_metadata[0].dtype.is_complex else builds


def readable(found: dict[_Key, list[Use]]) -> dict[_Key, list[Use]]:
    """Reads what the nodes have saved, and keeps those parameters, or points, of which all uses can be served."""
    kept: dict[_Key, list[Use]] = {}

    def read() -> None:
        for leaf, uses in found.items():
            if all(use.read() and _fits(use) for use in uses):
                kept[leaf] = uses

    if any(use.hooked for uses in found.values() for use in uses):
        _within_one_pass(read)
    else:
        read()
    return kept


def _fits(use: Use) -> bool:
    """Whether an embedding's table is the parameter itself."""
    return not isinstance(use, Lookup) or use.key[1] == ()


def _within_one_pass(read: Callable[[], None]) -> None:
    """Reads as one backward pass would: checkpointing then recomputes each of its regions once for all reads."""
    handle = torch.zeros((), requires_grad=True)
    with torch.enable_grad():
        marker: Tensor = _During.apply(handle, read)  # type: ignore[no-untyped-call]
    torch.autograd.grad(marker, handle, allow_unused=True)


class _During(torch.autograd.Function):
    """Runs a function during a backward pass."""

    @staticmethod
    def forward(ctx: Any, handle: Tensor, function: Callable[[], None]) -> Tensor:
        ctx.function = function
        return handle.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        ctx.function()
        return None, None
