"""Uses of a parameter as a factor of a product: linear layers, convolutions, attention's projections."""

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .graph import Node
from .uses import Use, norm, norms
from .views import View


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
    def inputs(self) -> Tensor:
        """a, ``(E, rows, width)``."""
        return self.unfolded(self.stored)

    @property
    @abstractmethod
    def stored(self) -> Tensor:
        """What a is made of; along dimension ``along`` as long as the output along the dimension ``summed``."""

    along: int

    @abstractmethod
    def unfolded(self, stored: Tensor) -> Tensor:
        """a, or the rows of it that belong to a part of what is stored."""

    @abstractmethod
    def gains(self) -> Tensor:
        """How much longer than its part of delta the gradient can be, for each index along that dimension."""

    @abstractmethod
    def factor(self, delta: Tensor) -> Tensor:
        """Deltas as ``(K, E, rows, height)``."""

    @abstractmethod
    def shaped(self, matrices: Tensor) -> Tensor:
        """Gradients ``(K, E, height, width)`` as ``(K, *parameter)``."""

    def gradients(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        left, right = self.factor(delta).to(dtype).mT, self.inputs.to(dtype)
        if left.shape[:2] == (1, 1):  # a matrix product proper is a little faster
            return self.shaped((left[0, 0] @ right[0])[None, None])
        products: Tensor = left @ right
        return self.shaped(products)

    def gain(self) -> Tensor | float:
        return norm(self.inputs)


def as_product(use: Use) -> Product:
    """The use, which is one."""
    if not isinstance(use, Product):
        raise TypeError(f"Product: `use` must be one, got {type(use).__name__}.")
    return use


class MatrixProduct(Product):
    """An operand of ``mm``, ``addmm`` or ``bmm``: linear layers, attention's projections, bare products.

    Args:
        left: Whether the parameter is the left operand.
        other: The name under which the node has saved the other operand.
    """

    along = 1

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
    def stored(self) -> Tensor:
        return self._inputs

    def unfolded(self, stored: Tensor) -> Tensor:
        return stored

    def gains(self) -> Tensor:
        return norms(self._inputs.transpose(0, 1))

    @property
    def summed(self) -> tuple[int, ...]:
        return (self._dims() - (1 if self._left else 2),)

    def factor(self, delta: Tensor) -> Tensor:
        matrices = delta.unsqueeze(1) if self._single else delta
        return matrices.mT if self._left else matrices

    def shaped(self, matrices: Tensor) -> Tensor:
        operands = matrices if self._left else matrices.mT
        return self.view(operands.squeeze(1) if self._single else operands)


class Convolution(Product):
    """The weight of a convolution over one, two or three dimensions, in groups or not."""

    saved = ("_saved_input", "_saved_weight")
    along = 0
    _images: Tensor

    def read(self) -> bool:
        node = self.node
        if node._saved_transposed:
            return False
        images, weight = node._saved_input, node._saved_weight
        if images is None or images.layout != torch.strided or images.ndim == 2:
            return False
        self._images, self._kernels = images.detach(), weight.detach()
        self._stride, self._padding, self._dilation = (
            list(sizes) * ((images.ndim - 2) // len(sizes))  # one size may stand for all dimensions
            for sizes in (node._saved_stride, node._saved_padding, node._saved_dilation)
        )
        self._groups = int(node._saved_groups)
        positions = torch.Size(node._input_metadata[0].shape[2:]).numel()
        height = len(weight) // self._groups
        self.size = Size(self._groups, len(images) * positions, height, weight[0].numel())
        return True

    @property
    def stored(self) -> Tensor:
        return self._images

    def unfolded(self, stored: Tensor) -> Tensor:
        kernel = self._kernels.shape[2:]
        dims = len(kernel)
        patches = functional.pad(stored, [side for size in reversed(self._padding) for side in (size, size)])
        for dim in range(dims):
            reach = self._dilation[dim] * (kernel[dim] - 1) + 1
            patches = patches.unfold(2 + dim, reach, self._stride[dim])
        steps: Any = [slice(None, None, step) for step in self._dilation]
        patches = patches.__getitem__((..., *steps))
        count, channels = patches.shape[:2]
        patches = patches.reshape(count, self._groups, channels // self._groups, *patches.shape[2:])
        order = [1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims)]
        rows = count * patches.shape[3 : 3 + dims].numel()
        result: Tensor = patches.permute(order).reshape(self.size.copies, rows, self.size.width)
        return result

    def factor(self, delta: Tensor) -> Tensor:
        losses, count = delta.shape[:2]
        split = delta.reshape(losses, count, self._groups, self.size.height, delta.shape[3:].numel())
        return split.permute(0, 2, 1, 4, 3).reshape(losses, self.size.copies, self.size.rows, self.size.height)

    @property
    def summed(self) -> tuple[int, ...]:
        return (0,)

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

    def gains(self) -> Tensor:
        return norms(self._images) * math.sqrt(self._kernels[0, 0].numel())
