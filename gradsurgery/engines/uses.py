"""The ways in which layers use a parameter whose gradient follows from the layer's input and output gradient."""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional

from .graph import Node
from .per_loss import sparse_gradient
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


class Size(NamedTuple):
    """The size of a product: E matrices side by side, each ``(height, rows) @ (rows, width)``."""

    copies: int
    rows: int
    height: int
    width: int


class Product(Use):
    r"""A use whose gradient is a matrix product, :math:`\delta^\top a`."""

    size: Size

    @property
    @abstractmethod
    def inputs(self) -> Tensor:
        """a, ``(E, rows, width)``."""

    @abstractmethod
    def factor(self, delta: Tensor) -> Tensor:
        """Deltas as ``(K, E, rows, height)``."""

    @abstractmethod
    def shaped(self, matrices: Tensor) -> Tensor:
        """Gradients ``(K, E, height, width)`` as ``(K, *parameter)``."""

    def gradients(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        products: Tensor = self.factor(delta).to(dtype).mT @ self.inputs.to(dtype)
        return self.shaped(products)

    def gain(self) -> Tensor | float:
        return norm(self.inputs)


class MatrixProduct(Product):
    """An operand of ``mm``, ``addmm`` or ``bmm``: linear layers, attention's projections, bare products.

    Args:
        left: Whether the parameter is the left operand.
        other: The name under which the node has saved the other operand.
    """

    def __init__(self, node: Node, view: View, key: object, *, left: bool, other: str) -> None:
        super().__init__(node, view, (left, key))
        self._left = left
        self.saved = (other,)

    def read(self) -> bool:
        other = getattr(self.node, *self.saved)
        if other is None or other.layout != torch.strided:
            return False
        self._single = other.ndim == 2
        matrices = other.detach().unsqueeze(0) if self._single else other.detach()
        self._inputs: Tensor = matrices.mT if self._left else matrices
        output = self.node._input_metadata[0].shape
        copies, rows, width = self._inputs.shape
        self.size = Size(copies, rows, int(output[-2 if self._left else -1]), width)
        return True

    @property
    def inputs(self) -> Tensor:
        return self._inputs

    def factor(self, delta: Tensor) -> Tensor:
        matrices = delta.unsqueeze(1) if self._single else delta
        return matrices.mT if self._left else matrices

    def shaped(self, matrices: Tensor) -> Tensor:
        operands = matrices if self._left else matrices.mT
        return self.view(operands.squeeze(1) if self._single else operands)


class Convolution(Product):
    """The weight of a convolution over one, two or three dimensions, in groups or not."""

    saved = ("_saved_input", "_saved_weight")

    def read(self) -> bool:
        node = self.node
        if node._saved_transposed:
            return False
        images, weight = node._saved_input, node._saved_weight
        if images is None or images.layout != torch.strided or images.ndim == 2:
            return False
        self._images, self._kernels = images.detach(), weight.detach()
        self._stride, self._padding, self._dilation = node._saved_stride, node._saved_padding, node._saved_dilation
        self._groups = int(node._saved_groups)
        positions = torch.Size(node._input_metadata[0].shape[2:]).numel()
        height = len(weight) // self._groups
        self.size = Size(self._groups, len(images) * positions, height, weight[0].numel())
        return True

    @property
    def inputs(self) -> Tensor:
        kernel = self._kernels.shape[2:]
        dims = len(kernel)
        patches = functional.pad(self._images, [side for size in reversed(self._padding) for side in (size, size)])
        for dim in range(dims):
            reach = self._dilation[dim] * (kernel[dim] - 1) + 1
            patches = patches.unfold(2 + dim, reach, self._stride[dim])
        steps: Any = [slice(None, None, step) for step in self._dilation]
        patches = patches.__getitem__((..., *steps))
        count, channels = patches.shape[:2]
        patches = patches.reshape(count, self._groups, channels // self._groups, *patches.shape[2:])
        order = [1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims)]
        return patches.permute(order).reshape(self.size.copies, self.size.rows, self.size.width)

    def factor(self, delta: Tensor) -> Tensor:
        losses, count = delta.shape[:2]
        split = delta.reshape(losses, count, self._groups, self.size.height, -1)
        return split.permute(0, 2, 1, 4, 3).reshape(losses, self.size.copies, self.size.rows, self.size.height)

    def shaped(self, matrices: Tensor) -> Tensor:
        return self.view(matrices.reshape(len(matrices), *self._kernels.shape))

    def gradients(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        images, kernels = self._images.to(dtype), self._kernels.to(dtype)
        zeros, wanted = [0] * len(self._stride), [False, True, False]
        options = (self._stride, self._padding, self._dilation, False, zeros, self._groups, wanted)
        results: list[tuple[Any, Tensor, Any]] = [
            torch.ops.aten.convolution_backward(own, images, kernels, None, *options) for own in delta.to(dtype)
        ]
        return self.view(torch.stack([result[1] for result in results]))

    def gain(self) -> Tensor | float:
        return norm(self._images) * math.sqrt(self._kernels[0, 0].numel())


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
        self._counts = torch.ones_like(indices) if padding < 0 else indices != padding
        self.used, self._inverse = indices.unique(return_inverse=True)
        return True

    def compact(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        """The gradients of those rows of the table that occur, ``(K, n, width)``."""
        flat = delta.reshape(len(delta), len(self._inverse), -1).to(dtype) * self._counts.unsqueeze(1)
        return flat.new_zeros(len(flat), len(self.used), flat.shape[2]).index_add_(1, self._inverse, flat)

    def expanded(self, values: Tensor, table: Tensor) -> Tensor:
        """Gradients of the rows that occur as one gradient of the table."""
        if self.sparse:
            return sparse_gradient(table, self.used, values)
        return values.new_zeros(table.shape).index_copy_(0, self.used, values.view(-1, table.shape[1]))

    def gradients(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        rows = int(self.node._saved_weight_sym_argsize_0)
        compact = self.compact(delta, dtype)
        return compact.new_zeros(len(compact), rows, compact.shape[2]).index_copy_(1, self.used, compact)

    def gain(self) -> Tensor | float:
        return math.sqrt(self._inverse.bincount().max()) if len(self.used) else 0.0


def norms(rows: Tensor) -> Tensor:
    """The Frobenius norm of each of ``(K, ...)``, ``(K,)``, in float32 or better."""
    found: Tensor = torch.linalg.vector_norm(_widened(rows).flatten(1), dim=1)
    return found


def norm(tensor: Tensor) -> Tensor:
    """The Frobenius norm, in float32 or better."""
    found: Tensor = torch.linalg.vector_norm(_widened(tensor))
    return found


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.itemsize < 4 else tensor
