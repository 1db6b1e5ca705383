"""Further uses of parameters, whose gradient for one sample follows from delta: added, multiplied, broadcast."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..graph import Node
from ..matching import operands
from ..uses import Use, norm
from ..views import View, shape_below


class Broadcast(Use):
    """A parameter that was added to something larger: its gradient is delta summed over where it was repeated.

    Args:
        operand: Which operand of the node it is.
        channel: Whether it lies along dimension 1 of the output instead of the last ones.
        factor: What delta is multiplied by.
    """

    def __init__(
        self, node: Node, view: View, key: object, *, operand: int, channel: bool = False, factor: float = 1.0
    ) -> None:
        super().__init__(node, view, (operand, channel, factor, key))
        self._shape = shape_below(node, operand)
        output = tuple(node._input_metadata[0].shape)
        padded = (
            (1, -1, *[1] * (len(output) - 2)) if channel else (1,) * (len(output) - len(self._shape)) + self._shape
        )
        self._factor = factor
        self._repeated = tuple(dim for dim, size in enumerate(padded) if size == 1)

    @property
    def summed(self) -> tuple[int, ...]:
        return self._repeated

    def read(self) -> bool:
        return True

    def multiplied(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        """The terms ``(K, *output)`` that gradients sum up."""
        return delta.to(dtype) if self._factor == 1.0 else delta.to(dtype) * self._factor

    def total(self, terms: Tensor) -> Tensor:
        """Gradients ``(K, *parameter)`` from terms, of which a sample may hold some only."""
        repeated = [1 + dim for dim in self._repeated if terms.shape[1 + dim] > 1]
        sums = terms.sum(repeated) if repeated else terms
        return self.view(sums.reshape(len(terms), *self._shape))

    def gradients(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        return self.total(self.multiplied(delta, dtype))

    def gain(self) -> Tensor | float:
        return abs(self._factor) * math.sqrt(self.delta_numel)


class Multiplied(Broadcast):
    """A parameter that something larger was multiplied by.

    Args:
        operand: Which operand of the node it is.
        other: The name under which the node has saved the other operand.
    """

    def __init__(self, node: Node, view: View, key: object, *, operand: int, other: str) -> None:
        super().__init__(node, view, key, operand=operand)
        self.saved = (other,)

    def read(self) -> bool:
        other = getattr(self.node, *self.saved)
        if other is None or other.layout != torch.strided:
            return False
        self._other: Tensor = other.detach()
        return True

    def multiplied(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        return delta.to(dtype) * self._other.to(dtype)

    def gain(self) -> Tensor | float:
        return norm(self._other.expand(tuple(self.node._input_metadata[0].shape)))


class Normalized(Broadcast):
    """The weight of a normalisation: what it multiplies is computed again from the node's input.

    Args:
        operand: Which operand of the node it is.
        channel: Whether it has one entry a channel.
        saved: What is read of the node.
        parts: Makes three tensors of it: values, means and scales, which broadcast to as many values.
    """

    def __init__(
        self,
        node: Node,
        view: View,
        key: object,
        *,
        operand: int,
        channel: bool,
        saved: tuple[str, ...],
        parts: Callable[..., tuple[Tensor, Tensor, Tensor]],
    ) -> None:
        super().__init__(node, view, key, operand=operand, channel=channel)
        self.saved, self._parts = saved, parts

    def read(self) -> bool:
        read = [getattr(self.node, name) for name in self.saved]
        if any(tensor is None for tensor in read):
            return False
        self._tensors: list[Tensor] = [tensor.detach() for tensor in read]
        return True

    def multiplied(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        return delta.to(dtype) * self._normalized(dtype)

    def _normalized(self, dtype: torch.dtype) -> Tensor:
        values, means, scales = self._parts(self.node, *(tensor.to(dtype) for tensor in self._tensors))
        normalized: Tensor = ((values - means) * scales).reshape(self._tensors[0].shape)
        return normalized

    def gain(self) -> Tensor | float:
        return norm(self._normalized(torch.float32))


def sample_operands(node: Node, name: str) -> list[tuple[int, Callable[..., Use]]]:
    """The operands of a node that may be parameters, and their uses, as far as each loss is a sample's.

    Then also the gradients of what a layer adds or multiplies by need no backward pass of their own.
    """
    if node._input_metadata and node._input_metadata[0].dtype.is_complex:
        return []
    if name in ("AddBackward0", "SubBackward0"):
        factor = float(node._saved_alpha) * (1.0 if name == "AddBackward0" else -1.0)
        return [(0, partial(Broadcast, operand=0)), (1, partial(Broadcast, operand=1, factor=factor))]
    if name == "ExpandBackward0":
        return [(0, partial(Broadcast, operand=0))]
    if name == "MulBackward0":
        return [
            (0, partial(Multiplied, operand=0, other="_saved_other")),
            (1, partial(Multiplied, operand=1, other="_saved_self")),
        ]
    if name in _NORMALIZATIONS and not getattr(node, "_saved_training", False):
        channel, saved, parts = _NORMALIZATIONS[name]
        uses: list[tuple[int, Callable[..., Use]]] = [
            (1, partial(Normalized, operand=1, channel=channel, saved=saved, parts=parts)),
            (2, partial(Broadcast, operand=2, channel=channel)),
        ]
        return uses[: len(node.next_functions) - 1]
    return operands(node, name)


def _of_layer(node: Node, values: Tensor, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return values, means, scales


def _of_groups(node: Node, values: Tensor, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return values.reshape(*means.shape, -1), means.unsqueeze(-1), scales.unsqueeze(-1)


def _of_running(node: Node, values: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = (1, -1, *[1] * (values.ndim - 2))
    return values, means.view(shape), (variances + node._saved_eps).rsqrt().view(shape)


def _of_root_mean_squares(node: Node, values: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return values, values.new_zeros(()), scales


_NORMALIZATIONS: dict[str, tuple[bool, tuple[str, ...], Callable[..., tuple[Tensor, Tensor, Tensor]]]] = {
    "NativeLayerNormBackward0": (False, ("_saved_input", "_saved_result1", "_saved_result2"), _of_layer),
    "NativeGroupNormBackward0": (True, ("_saved_input", "_saved_result1", "_saved_result2"), _of_groups),
    "NativeBatchNormBackward0": (True, ("_saved_input", "_saved_running_mean", "_saved_running_var"), _of_running),
    "FusedRmsNormBackward0": (False, ("_saved_input", "_saved_result1"), _of_root_mean_squares),
}
