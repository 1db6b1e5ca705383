"""The ways in which layers use a parameter whose gradient follows from the layer's input and output gradient."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..kernels import widened
from .graph import Node
from .views import View, signed


class Use(ABC):
    """One use of a parameter by one node of the graph.

    Delta is the gradient with respect to what the node returned, ``(K, *output)`` with one row a loss, or
    ``(1, *output)``.

    Args:
        node: The node.
        view: Carries gradients from the node's operand to the parameter.
        key: Equal for views that do the same.
    """

    saved: tuple[str, ...] = ()
    """What is read of the node."""

    def __init__(self, node: Node, view: View, key: object) -> None:
        self.node = node
        self.view = view
        self.key = (type(self), key)

    @property
    def edge(self) -> GradientEdge:
        """Where delta arrives."""
        return GradientEdge(self.node, 0)

    @property
    def delta_numel(self) -> int:
        """How many numbers arrive for one loss."""
        return torch.Size(self.node._input_metadata[0].shape).numel()

    @property
    def hooked(self) -> bool:
        """Whether reading runs somebody's code, such as that of checkpointing; True if that cannot be told."""
        return any(getattr(getattr(self.node, f"_raw{name}"), "unpack_hook", True) is not None for name in self.saved)

    @abstractmethod
    def read(self) -> bool:
        """Reads what the node has saved; False if it is of a kind that is not served."""

    @abstractmethod
    def gradients(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        """The gradients ``(K, *parameter)`` that belong to deltas, computed in ``dtype``."""

    @abstractmethod
    def gain(self) -> Tensor | float:
        """How much longer than its delta a gradient can be."""

    @property
    @abstractmethod
    def summed(self) -> tuple[int, ...]:
        """The dimensions of the node's output, from 0 on, that gradients sum over and samples may lie along."""

    def _dims(self) -> int:
        return len(self.node._input_metadata[0].shape)


class Bias(Use):
    """A bias: its gradient is delta summed over all dimensions but one.

    Args:
        dim: That dimension of the node's output, counted from the end.
    """

    def __init__(self, node: Node, view: View, key: object, *, dim: int) -> None:
        super().__init__(node, view, (dim, key))
        self._dim = dim
        self.features = int(node._input_metadata[0].shape[dim])

    def read(self) -> bool:
        return True

    def gradients(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        kept = delta.ndim + self._dim
        others = [dim for dim in range(1, delta.ndim) if dim != kept]
        return self.view(delta.sum(others, dtype=dtype) if others else delta.to(dtype))

    def gain(self) -> Tensor | float:
        return math.sqrt(self.delta_numel // self.features)

    @property
    def summed(self) -> tuple[int, ...]:
        dims = self._dims()
        return tuple(dim for dim in range(dims) if dim != dims + self._dim)


class Lookup(Use):
    """The table of an embedding."""

    saved = ("_saved_indices",)

    def read(self) -> bool:
        node = self.node
        if node._saved_scale_grad_by_freq:
            return False
        self.sparse = bool(node._saved_sparse)
        indices = node._saved_indices.detach().reshape(-1)
        padding = signed(node._saved_padding_idx)
        self._counted = None if padding < 0 else (indices != padding).nonzero().squeeze(1)
        counted = indices if self._counted is None else indices[self._counted]
        self.used, self._inverse = counted.unique(return_inverse=True)
        return True

    def compact(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        """The gradients of those rows of the table that occur, ``(K, n, width)``."""
        flat = delta.to(dtype).flatten(1, -2) if delta.ndim > 2 else delta.to(dtype).unsqueeze(1)
        if self._counted is not None:
            flat = flat[:, self._counted]
        return flat.new_zeros(len(flat), len(self.used), flat.shape[2]).index_add_(1, self._inverse, flat)

    def gradients(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        rows = int(self.node._saved_weight_sym_argsize_0)
        compact = self.compact(delta, dtype)
        return compact.new_zeros(len(compact), rows, compact.shape[2]).index_copy_(1, self.used, compact)

    def places(self) -> Tensor:
        """The row of the table that each row of delta goes to, shaped like delta without its width; -1 for none."""
        shape = torch.Size(self.node._input_metadata[0].shape[:-1])
        indices = self.used[self._inverse]
        if self._counted is not None:
            indices = indices.new_full((shape.numel(),), -1).index_copy_(0, self._counted, indices)
        result: Tensor = indices.view(shape)
        return result

    @property
    def summed(self) -> tuple[int, ...]:
        return tuple(range(self._dims() - 1))

    def gain(self) -> Tensor | float:
        return math.sqrt(self._inverse.bincount().max()) if len(self.used) else 0.0


def as_lookup(use: Use) -> Lookup:
    """The use, which is one."""
    if not isinstance(use, Lookup):
        raise TypeError(f"Lookup: `use` must be one, got {type(use).__name__}.")
    return use


def norms(rows: Tensor) -> Tensor:
    """The Frobenius norm of each of ``(K, ...)``, ``(K,)``, in float32 or better."""
    found: Tensor = torch.linalg.vector_norm(widened(rows).flatten(1), dim=1)
    return found


def norm(tensor: Tensor) -> Tensor:
    """The Frobenius norm, in float32 or better."""
    found: Tensor = torch.linalg.vector_norm(widened(tensor))
    return found
