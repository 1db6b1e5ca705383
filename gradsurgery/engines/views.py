"""What lies between a layer and its parameter: transposes, reshapes, casts, which keep inner products as they are."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .graph import Node

View: TypeAlias = Callable[[Tensor], Tensor]
"""Turns gradients ``(..., *shape)`` with respect to what a view returned into those with respect to what it took."""

_TRANSPOSES = {"TBackward0", "TransposeBackward0", "TransposeBackward1", "PermuteBackward0"}
_RESHAPES = {
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "UnsqueezeBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
}
_IDENTITIES = {"ToCopyBackward0", "CloneBackward0", "AliasBackward0", "DetachBackward0"}


def is_view(node: Node) -> bool:
    """Whether gradients pass through a node with all their inner products, up to a cast, and stay on their device."""
    name = node.name()
    if name in _IDENTITIES:
        return bool(node._input_metadata[0].device == _below(node, 0).device)
    return name in _TRANSPOSES or name in _RESHAPES


def view_of(node: Node) -> tuple[View, object]:
    """How gradients pass through a node, and a key that is equal for nodes that do the same."""
    name = node.name()
    if name in _TRANSPOSES:
        order = _inverse_order(node)
        return (lambda gradient: _permuted(gradient, order)), order
    if name in _IDENTITIES:
        return (lambda gradient: gradient), ()
    shape, dims = shape_below(node), _dims(node)
    return (lambda gradient: gradient.reshape(*gradient.shape[: gradient.ndim - dims], *shape)), ("shape", shape)


def shape_below(node: Node, operand: int = 0) -> tuple[int, ...]:
    """The shape of the gradients that a node hands on to an operand."""
    return tuple(_below(node, operand).shape)


def _below(node: Node, operand: int) -> Any:
    """What is known of the gradients that a node hands on to an operand: shape, dtype, device."""
    child, output = node.next_functions[operand]
    variable = getattr(child, "variable", None)
    return child._input_metadata[output] if variable is None else variable


def _dims(node: Node) -> int:
    return len(node._input_metadata[0].shape)


def _inverse_order(node: Node) -> tuple[int, ...]:
    """The order of dimensions that undoes a transposition."""
    dims = _dims(node)
    if node.name() == "PermuteBackward0":
        order = [signed(dim) % dims for dim in node._saved_dims]
        return tuple(order.index(dim) for dim in range(dims))
    first, second = (0, dims - 1) if node.name() == "TBackward0" else (node._saved_dim0, node._saved_dim1)
    order = list(range(dims))
    if dims:
        first, second = signed(first) % dims, signed(second) % dims
        order[first], order[second] = order[second], order[first]
    return tuple(order)


def signed(dim: int) -> int:
    """A dimension as the user gave it; the graph stores negative ones modulo 2^64."""
    return dim - (1 << 64) if dim >= 1 << 63 else dim


def _permuted(gradient: Tensor, order: Sequence[int]) -> Tensor:
    lead = gradient.ndim - len(order)
    return torch.permute(gradient, [*range(lead), *(lead + dim for dim in order)])
