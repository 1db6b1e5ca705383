"""Finds, on the autograd graph, the parameters all of whose uses are of a kind that ``uses`` knows."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .graph import Node, Reach
from .uses import Bias, Convolution, Lookup, MatrixProduct, Use
from .views import View, is_view, view_of


class _Path(NamedTuple):
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
    mask = (1 << losses) - 1
    arriving: dict[Node, int] = defaultdict(int)
    paths: dict[Node, list[_Path]] = defaultdict(list)
    members = set(shared)
    found: dict[Tensor, list[Use]] = {}
    for node, bits in graph.nodes.items():  # every node comes after all that lead to it
        bits &= mask
        if not bits:
            continue
        for child in graph.children[node]:
            arriving[child] += 1
        own = paths.pop(node, None)
        if own is not None and len(own) == arriving[node]:
            variable = getattr(node, "variable", None)
            if variable is not None:
                if variable in members and not variable._backward_hooks:
                    found[variable] = [path.use() for path in own]
            elif is_view(node):
                step = view_of(node)
                paths[node.next_functions[0][0]] += [path._replace(views=(*path.views, step)) for path in own]
        if bits & (bits - 1):
            for child, path in _operands(node, graph.names[node]):
                paths[child].append(path)
    return _readable(found)


def _operands(node: Node, name: str) -> Iterator[tuple[Node, _Path]]:
    """The operands of a node that may be parameters."""
    builds: list[tuple[int, Callable[..., Use]]] = []
    if name == "MmBackward0" or name == "BmmBackward0":
        builds = [
            (0, partial(MatrixProduct, left=True, other="_saved_mat2")),
            (1, partial(MatrixProduct, left=False, other="_saved_self")),
        ]
    elif name == "AddmmBackward0" and node._saved_alpha == 1 and node._saved_beta == 1:
        builds = [
            (0, partial(Bias, dim=-1)),
            (1, partial(MatrixProduct, left=True, other="_saved_mat2")),
            (2, partial(MatrixProduct, left=False, other="_saved_mat1")),
        ]
    elif name == "ConvolutionBackward0":
        builds = [(1, Convolution), (2, partial(Bias, dim=1 - len(node._input_metadata[0].shape)))]
    elif name == "EmbeddingBackward0":
        builds = [(0, Lookup)]
    for position, build in builds:
        child = node.next_functions[position][0]
        if child is not None:
            yield child, _Path(build, node)


def _readable(found: dict[Tensor, list[Use]]) -> dict[Tensor, list[Use]]:
    """Reads what the nodes have saved, and keeps the parameters of which all uses can be served."""
    kept: dict[Tensor, list[Use]] = {}

    def read() -> None:
        for leaf, uses in found.items():
            if all(use.read() and _fits(use, leaf) for use in uses):
                kept[leaf] = uses

    if any(use.hooked for uses in found.values() for use in uses):
        _within_one_pass(read)
    else:
        read()
    return kept


def _fits(use: Use, leaf: Tensor) -> bool:
    """Whether a bias is one, and an embedding's table is the parameter itself."""
    if isinstance(use, Bias):
        return leaf.ndim == 1 and leaf.numel() == use.features
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
