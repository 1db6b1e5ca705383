"""What every engine delivers: per-loss gradients of the shared parameters, plain sums for the rest."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..losses import Losses, LossValues
from ..sharing import Sharing, describe
from .graph import Reach, reach


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
            Block([parameter], part.view(-1, *parameter.shape))
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
        if self.indices is None:
            return direction
        values = direction.view(-1, *parameter.shape[1:])
        return torch.sparse_coo_tensor(
            self.indices.unsqueeze(0), values, parameter.shape, is_coalesced=True, check_invariants=False
        )


@dataclass
class PerLossGradients:
    """The result of one differentiation.

    Args:
        names: The losses that are present.
        all_names: Those, and the ones that are absent in this step.
        values: Their values ``(K,)``, float64.
        blocks: Per-loss gradients of the shared parameters.
        plain: Gradients that take no part in the surgery, each with memory of its own.
    """

    names: tuple[str, ...]
    all_names: tuple[str, ...]
    values: Tensor
    blocks: list[Block]
    plain: list[tuple[Tensor, Tensor]]


@dataclass
class Request:
    """What the optimizer asks of an engine.

    Args:
        losses: As the user handed them over.
        extra_loss: A scalar to differentiate outside the surgery.
        wrapped: The parameters of the wrapped optimizer.
        sharing: Decides which parameters are shared.
        scale: Multiplies a scalar by the scale of mixed precision.
        retain_graph: Whether the graph must survive.
        names: Names of parameters, by id, for errors.
        workspace: Buffers that may be used again in the next step.
    """

    losses: Losses
    extra_loss: Tensor | None
    wrapped: list[Tensor]
    sharing: Sharing
    scale: Callable[[Tensor], Tensor]
    retain_graph: bool = False
    names: dict[int, str] = field(default_factory=dict)
    workspace: dict[object, Tensor] = field(default_factory=dict)

    def evaluated(self) -> LossValues:
        """The losses, after the forward pass if they came as a callable."""
        with torch.enable_grad():
            return self.losses() if callable(self.losses) else self.losses

    def reach(self, scalars: Iterable[Tensor]) -> tuple[list[Tensor], Reach]:
        """The scalars and the extra loss as roots, and what they reach, all of it fit to be differentiated."""
        roots = [*scalars, *([] if self.extra_loss is None else [self.extra_loss])]
        graph = reach(roots)
        check_leaves(graph.leaves, self.names)
        return roots, graph

    def gradients(
        self, roots: Sequence[Tensor], graph: Reach, position: int, leaves: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """The scaled gradients of one root; frees its graph unless somebody needs it again."""
        with torch.enable_grad():  # scalarize() gets here from within a backward pass
            scaled = self.scale(roots[position])
        keep = self.retain_graph or graph.needed_again(position)
        return torch.autograd.grad(scaled, leaves, retain_graph=keep, allow_unused=True)


class Engine(ABC):
    """A way to obtain per-loss gradients. What it obtains does not depend on which engine it is, or it raises."""

    needs_callable: bool = False
    """Whether the losses must be handed over as a callable."""

    @abstractmethod
    def differentiate(self, request: Request) -> PerLossGradients:
        """Differentiates each loss once; leaves every ``.grad`` as it is."""


class PlainSum:
    """Adds gradients parameter by parameter, outside the surgery."""

    def __init__(self) -> None:
        self._sums: dict[Tensor, Tensor] = {}

    def add(self, parameters: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> None:
        """Adds gradients as ``torch.autograd.grad`` returns them; their memory stays their own."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            total = self._sums.get(parameter)
            # autograd.grad may hand out the same memory for several inputs
            self._sums[parameter] = gradient.clone() if total is None else added(total, gradient)

    def items(self) -> list[tuple[Tensor, Tensor]]:
        return list(self._sums.items())


def added(total: Tensor, gradient: Tensor) -> Tensor:
    """Adds a gradient to a total, in place where the total is dense, whichever of them is sparse."""
    return gradient + total if total.is_sparse else total.add_(gradient)


def check_leaves(leaves: Iterable[Tensor], names: dict[int, str]) -> None:
    """Raises for parameters whose gradients this library would get wrong."""
    for leaf in leaves:
        if getattr(leaf, "_post_accumulate_grad_hooks", None):
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `losses` must not reach parameters with post-accumulate-grad hooks, "
                f"got {describe(leaf, names)}. Such hooks never fire in a surgery; remove them, or step after "
                f"backward()."
            )
        if not leaf.is_floating_point():
            raise TypeError(
                f"MultiObjectiveOptimizer: `losses` must reach real parameters only, got {describe(leaf, names)} "
                f"of {leaf.dtype}. Store complex parameters as real ones (torch.view_as_real)."
            )
        if type(leaf).__name__ == "DTensor":
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `losses` must reach unsharded parameters only, got "
                f"{describe(leaf, names)}, a DTensor. Sharded parameters are not supported in this version."
            )


def ordered(reach: Reach, wrapped: Iterable[Tensor], losses: int) -> dict[Tensor, int]:
    """The leaves that the first ``losses`` roots reach, those of the wrapped optimizer first."""
    mask = (1 << losses) - 1
    found = {leaf: bits & mask for leaf, bits in reach.leaves.items() if bits & mask}
    first = {parameter: found[parameter] for parameter in wrapped if parameter in found}
    return {**first, **found}
