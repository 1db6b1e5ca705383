"""What an engine delivers: per-loss gradients of the shared parameters, as rows or in any form that serves."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..distributed import Share


@dataclass
class Block:
    """Per-loss gradients of some parameters, side by side in one matrix.

    Args:
        parameters: The parameters, in the order of their columns.
        rows: ``(K, P)``.
        indices: For a parameter with sparse gradients, the ``(n,)`` rows of it that any loss touches; the
            columns then hold only those. None: the block is dense.
    """

    parameters: list[Tensor]
    rows: Tensor
    indices: Tensor | None = None

    def split(self) -> list["Block"]:
        """One block a parameter, its rows ``(K, *shape)`` unless it is sparse; the rows are views."""
        if self.indices is not None:
            return [self]
        sizes = [parameter.numel() for parameter in self.parameters]
        return [
            Block([parameter], part.view(len(part), *parameter.shape))
            for parameter, part in zip(self.parameters, self.rows.split(sizes, dim=1), strict=True)
        ]

    def dense(self) -> Tensor:
        """The rows of a block of one parameter as ``(K, *shape)``, zeros included."""
        (parameter,) = self.parameters
        if self.indices is None:
            return self.rows
        full = self.rows.new_zeros(len(self.rows), *parameter.shape)
        return full.index_copy_(1, self.indices, self.rows.view(len(self.rows), -1, *parameter.shape[1:]))

    def gradient(self, direction: Tensor) -> Tensor:
        """Turns the direction of a block of one parameter into the parameter's gradient."""
        (parameter,) = self.parameters
        return direction if self.indices is None else sparse_gradient(parameter, self.indices, direction)


def sparse_gradient(parameter: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """A sparse gradient of whole rows; the indices are sorted and unique."""
    values = values.view(-1, *parameter.shape[1:])
    return torch.sparse_coo_tensor(
        indices.unsqueeze(0), values, parameter.shape, is_coalesced=True, check_invariants=False
    )


_SMALL = 1 << 18
"""Up to so many numbers, the calls cost more than the arithmetic."""

Groups = Mapping[Tensor, int] | None
"""For each parameter the surgery it takes part in, in ``range(B)``. None: one surgery."""


class SharedGradients(ABC):
    """The K gradients of the shared parameters, in whatever form an engine has them."""

    @property
    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """The shared parameters that any loss reaches."""

    def on_all_ranks(self, condition: bool) -> bool:
        """Whether something holds wherever some of the columns are."""
        return condition

    def of_first_rank(self, weights: Tensor) -> Tensor:
        """The weights of the first rank wherever some of the columns are: solvers may round elsewhere differently."""
        return weights

    @abstractmethod
    def gramian(self, groups: Groups) -> Tensor:
        """The inner products of the rows, ``(B, K, K)``, float64."""

    @abstractmethod
    def combine(self, weights: Tensor, groups: Groups) -> list[tuple[Tensor, Tensor]]:
        """For each parameter the weighted sum of its rows, with memory of its own; the weights are ``(B, K)``."""


class Jacobian(SharedGradients):
    """The gradients themselves, as blocks of rows."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = blocks
        self._wide: Tensor | None = None

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for block in self.blocks for parameter in block.parameters]

    def share(self, parts: list[Block]) -> Share | None:
        """What a method has to know of some of the :meth:`parts`, where other processes have other columns."""
        return None

    def gramian(self, groups: Groups) -> Tensor:
        if groups is not None:
            parts = self.parts()
            return kernels.gramian([part.rows for part in parts], _indices(parts, groups))
        rows = [block.rows for block in self.blocks]
        if self._is_small():  # then converting the rows once, and not for the direction again, is what counts
            self._wide = torch.cat(rows, 1).double() if len(rows) > 1 else rows[0].double()
            rows = [self._wide]
        return kernels.gramian(rows)  # fewer and larger products

    def combine(self, weights: Tensor, groups: Groups) -> list[tuple[Tensor, Tensor]]:
        if groups is None and self._wide is not None:
            return self._combine_wide(self._wide, weights)
        parts = self.parts()
        indices = None if groups is None else _indices(parts, groups)
        return self.assemble(parts, kernels.combine([part.rows for part in parts], weights, indices))

    def parts(self) -> list[Block]:
        """One block a parameter."""
        return [part for block in self.blocks for part in block.split()]

    def assemble(self, parts: list[Block], directions: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Parameters with their gradients, from the direction of each of the :meth:`parts`."""
        return [
            (part.parameters[0], part.gradient(direction)) for part, direction in zip(parts, directions, strict=True)
        ]

    def _is_small(self) -> bool:
        kinds = {(block.rows.dtype, block.rows.device.type, block.indices is None) for block in self.blocks}
        few = sum(block.rows.numel() for block in self.blocks) <= _SMALL
        return few and len(kinds) == 1 and next(iter(kinds))[1:] == ("cpu", True)

    def _combine_wide(self, wide: Tensor, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        direction = kernels.combine([wide], weights)[0].to(self.blocks[0].rows.dtype)
        parameters = self.parameters
        parts = direction.split([parameter.numel() for parameter in parameters])
        gradients = [
            torch.empty(parameter.shape, dtype=part.dtype) for parameter, part in zip(parameters, parts, strict=True)
        ]
        torch._foreach_copy_([gradient.view(-1) for gradient in gradients], list(parts))
        return list(zip(parameters, gradients, strict=True))


def _indices(parts: list[Block], groups: Mapping[Tensor, int]) -> list[int]:
    return [groups[part.parameters[0]] for part in parts]


@dataclass
class PerLossGradients:
    """The result of one differentiation.

    Args:
        names: The losses that are present.
        all_names: Those, and the ones that are absent in this step.
        values: Their values ``(K,)``, float64.
        shared: Per-loss gradients of the shared parameters.
        plain: Gradients that take no part in the surgery, each with memory of its own.
        engine: Which engine this is from and why, in a few words.
    """

    names: tuple[str, ...]
    all_names: tuple[str, ...]
    values: Tensor
    shared: SharedGradients
    plain: list[tuple[Tensor, Tensor]]
    engine: str

    def jacobian(self) -> Jacobian:
        """The shared gradients as rows.

        Raises:
            RuntimeError: The engine does not have them.
        """
        if not isinstance(self.shared, Jacobian):
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `engine` must deliver the gradients themselves for this method, got "
                f"{self.engine}. Use engine='auto' or engine='loop'."
            )
        return self.shared


class PlainSum:
    """Adds gradients parameter by parameter, outside the surgery."""

    def __init__(self) -> None:
        self._sums: dict[Tensor, Tensor] = {}

    def add(self, parameters: Iterable[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Adds gradients as ``torch.autograd.grad`` returns them; their memory stays their own."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            total = self._sums.get(parameter)
            # autograd.grad may hand out the same memory for several inputs
            self._sums[parameter] = gradient.clone() if total is None else added(total, gradient)

    def items(self) -> list[tuple[Tensor, Tensor]]:
        return list(self._sums.items())


def times(gradient: Tensor, factor: Tensor) -> Tensor:
    """A gradient times a number that may be beyond the range of the gradient's dtype, in that dtype."""
    wide = kernels.widened(gradient)
    return (wide * factor.to(wide)).to(gradient.dtype)


def added(total: Tensor, gradient: Tensor) -> Tensor:
    """Adds a gradient to a total, in place where the total is dense, whichever of them is sparse."""
    return gradient + total if total.is_sparse else total.add_(gradient)
