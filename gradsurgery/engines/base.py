"""What the optimizer asks of an engine, and what every engine starts from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..distributed import Agreement, is_sharded
from ..losses import Losses, LossValues, NamedLosses, named_losses
from ..sharing import Sharing, describe
from .compiled import check_tags
from .donation import protect
from .graph import Reach, reach
from .per_loss import PerLossGradients
from .static_graph import leave_first_reduction
from .workspace import Workspace


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
        workspace: Memory that may serve again in the next step.
        rows: Whether the gradients themselves are needed, not only their inner products and combinations.
        sticky: Whether parameters that are found to be shared stay so in later steps.
        agreement: With the other ranks, where there are any.
        weights: Of the roots, as the ranks have agreed. None: ones.
        waiting: Models that must not take these backward passes for their first; one list for all copies.
    """

    losses: Losses
    extra_loss: Tensor | None
    wrapped: list[Tensor]
    sharing: Sharing
    scale: Callable[[Tensor], Tensor]
    retain_graph: bool = False
    names: dict[int, str] = field(default_factory=dict)
    workspace: Workspace = field(default_factory=dict)
    rows: bool = False
    sticky: bool = True
    agreement: Agreement | None = None
    weights: list[float] | None = None
    waiting: list[Any] = field(default_factory=list)

    def evaluated(self) -> LossValues:
        """The losses, after the forward pass if they came as a callable."""
        with torch.enable_grad():
            return self.losses() if callable(self.losses) else self.losses

    def reach(self, scalars: Iterable[Tensor], *, sharded: bool = False) -> tuple[list[Tensor], Reach]:
        """The scalars and the extra loss as roots, and what they reach, all of it fit to be differentiated.

        Args:
            scalars: The losses.
            sharded: Whether parameters may be DTensors.
        """
        roots = [*scalars, *([] if self.extra_loss is None else [self.extra_loss])]
        graph = reach(roots)
        originals = [parameter for parameter in self.wrapped if is_sharded(parameter)]  # FSDP2 computes with copies
        check_leaves([*graph.leaves, *originals], self.names, sharded=sharded)
        protect(graph)
        self.waiting += leave_first_reduction(graph)
        return roots, graph

    def gradients(
        self, roots: Sequence[Tensor], graph: Reach, position: int, leaves: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """The scaled gradients of one root; frees its graph unless somebody needs it again."""
        keep = self.retain_graph or graph.needed_again(position)
        root = self.scaled(roots[position], position)
        return torch.autograd.grad(root, leaves, retain_graph=keep, allow_unused=True)

    def extra_gradients(self, graph: Reach, losses: int, *, keep: bool) -> dict[Tensor, Tensor | None]:
        """The scaled gradients of the extra loss, which is the root of the graph behind the losses."""
        leaves = [leaf for leaf, bits in graph.leaves.items() if bits >> losses]
        if self.extra_loss is None or not self.extra_loss.requires_grad or not leaves:
            return {}
        scaled = self.scaled(self.extra_loss, losses)
        return dict(
            zip(leaves, torch.autograd.grad(scaled, leaves, retain_graph=keep, allow_unused=True), strict=True)
        )

    def scaled(self, root: Tensor, position: int) -> Tensor:
        """A root times its weight and the scale of mixed precision, ready to be differentiated."""
        with torch.enable_grad():  # scalarize() gets here from within a backward pass
            return self.scale(root if self.weights is None else root * self.weights[position])

    def agree(self, found: NamedLosses, reach: Mapping[Tensor, int]) -> tuple[NamedLosses, dict[Tensor, int]]:
        """What the ranks agree on: the losses that count here, and which parameters they reach on any rank.

        Alone, all of them and those that they reach here.
        """
        if self.agreement is None:
            return found, dict(reach)
        numbers = {parameter: position for position, parameter in enumerate(self.wrapped)}
        for parameter in reach:
            if parameter not in numbers:
                raise RuntimeError(
                    f"MultiObjectiveOptimizer: `losses` must reach only parameters of the optimizer when there are "
                    f"several ranks, got {describe(parameter, self.names)}. Hand it to the optimizer, or detach it."
                )
        places = [found.all_names.index(name) for name in found.names]
        table = {numbers[parameter]: _moved(bits, places) for parameter, bits in reach.items()}
        presence = self.agreement.presence(found.names, found.all_names, table)
        kept = [name in presence.weights for name in found.names]
        names = tuple(name for name, keep in zip(found.names, kept, strict=True) if keep)
        scalars = tuple(scalar for scalar, keep in zip(found.scalars, kept, strict=True) if keep)
        self.weights = [*(presence.weights[name] for name in names), presence.extra_weight]
        return NamedLosses(names, scalars, found.all_names), {
            self.wrapped[position]: bits for position, bits in presence.reach.items()
        }


def _moved(bits: int, places: Sequence[int]) -> int:
    """Bits with the k-th at ``places[k]``."""
    return sum(1 << place for position, place in enumerate(places) if bits >> position & 1)


@dataclass
class Problem:
    """Losses whose graph has been read: what is to be differentiated by what.

    Args:
        request: What the optimizer asked for.
        names: The losses that are present.
        all_names: Those, and the ones that are absent in this step.
        scalars: The losses.
        roots: The losses, then the extra loss if there is one.
        graph: What each root reaches.
        leaves: For each leaf that a loss reaches the losses that do, one bit a loss.
        shared: Those leaves that take part in the surgery.
    """

    request: Request
    names: tuple[str, ...]
    all_names: tuple[str, ...]
    scalars: tuple[Tensor, ...]
    roots: list[Tensor]
    graph: Reach
    leaves: dict[Tensor, int]
    shared: list[Tensor]

    def shared_by_several(self) -> list[Tensor]:
        """The shared parameters that two or more losses reach."""
        return [leaf for leaf in self.shared if self.leaves[leaf] & (self.leaves[leaf] - 1)]


def pose(request: Request) -> Problem:
    """Evaluates the losses and reads their graph."""
    found = named_losses(request.evaluated(), may_be_absent=request.agreement is not None)
    roots, graph = request.reach(found.scalars)
    check_tags(graph, found.scalars, request.wrapped, request.sharing, request.names)
    leaves = ordered(graph, request.wrapped, len(found.scalars))
    agreed, anywhere = request.agree(found, leaves)
    without_extra = request.weights is not None and not request.weights[-1]
    if without_extra:
        request = replace(request, extra_loss=None)
    if without_extra or len(agreed.names) < len(found.names):  # nothing was averaged in them here
        roots, graph = request.reach(agreed.scalars)
        leaves = ordered(graph, request.wrapped, len(agreed.scalars))
    shared = request.sharing.select(request.wrapped, anywhere, sticky=request.sticky)
    here = [parameter for parameter in shared if parameter in leaves]
    return Problem(request, agreed.names, agreed.all_names, agreed.scalars, roots, graph, leaves, here)


class Engine(ABC):
    """A way to obtain per-loss gradients. What it obtains does not depend on which engine it is, or it raises."""

    needs_callable: bool = False
    """Whether the losses must be handed over as a callable."""

    has_rows: bool = True
    """Whether it can deliver the gradients themselves."""

    adds_up: bool = False
    """Whether what it delivers is added up over the ranks already; then each rank must have each loss."""

    def suited_to(self, parameters: Sequence[Tensor]) -> "Engine":
        """The engine that runs for these parameters: this one, unless it chooses among others."""
        return self

    @abstractmethod
    def differentiate(self, request: Request) -> PerLossGradients:
        """Differentiates each loss once; leaves every ``.grad`` as it is."""


def check_leaves(leaves: Iterable[Tensor], names: dict[int, str], *, sharded: bool = False) -> None:
    """Raises for parameters whose gradients this library would get wrong, DTensors among them unless ``sharded``."""
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
        if is_sharded(leaf) and not sharded:
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `engine` must be 'sharded' where parameters are sharded, got "
                f"{describe(leaf, names)}, a DTensor. Use engine='auto', and losses in a dict or sequence."
            )


def ordered(reach: Reach, wrapped: Iterable[Tensor], losses: int) -> dict[Tensor, int]:
    """The leaves that the first ``losses`` roots reach, those of the wrapped optimizer first."""
    mask = (1 << losses) - 1
    found = {leaf: bits & mask for leaf, bits in reach.leaves.items() if bits & mask}
    first = {parameter: found[parameter] for parameter in wrapped if parameter in found}
    return {**first, **found}
