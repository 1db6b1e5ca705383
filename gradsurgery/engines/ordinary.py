"""Gradients of parameters that are spread over devices, by ordinary backward passes.

FSDP2 computes with copies of its parameters. ``autograd.grad`` knows those alone; what arrives there is reduced and
handed to the parameters only after an ordinary pass. So ``.grad`` is set aside, filled, read and put back.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..distributed import Ranks, is_sharded
from ..sharing import describe
from .base import Request
from .graph import Reach

_FSDP_NODE = "RegisterPostBackwardFunctionBackward"


def ranks_of(request: Request) -> Ranks:
    """The ranks that train together.

    Raises:
        RuntimeError: A parameter is spread over others, or none is spread at all.
    """
    sharded: list[Any] = [parameter for parameter in request.wrapped if is_sharded(parameter)]
    if not sharded:
        raise RuntimeError(
            "MultiObjectiveOptimizer: `engine` must be another one where no parameter is sharded, got 'sharded'. Use "
            "engine='auto'."
        )
    alone = request.agreement is None
    ranks = Ranks(sharded[0].device_mesh.get_group(0)) if request.agreement is None else request.agreement.ranks
    members = [torch.distributed.get_rank()] if alone else torch.distributed.get_process_group_ranks(ranks.group)
    for parameter in sharded:
        spread = parameter.device_mesh.mesh.flatten().tolist()
        if sorted(spread) != sorted(members):
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `optimizer` must hold parameters that are spread over all ranks, "
                f"{sorted(members)}, got {describe(parameter, request.names)}, over {sorted(spread)}. Distribute it "
                f"over the other dimension of the device mesh too, if need be by Replicate()."
            )
    return ranks


def averaged(parameter: Tensor, gradient: Tensor, ranks: Ranks) -> Tensor:
    """The gradient of a sharded parameter, which is reduced already, and the mean over the ranks of any other."""
    return gradient if is_sharded(parameter) else ranks.total(gradient / ranks.size)


def reached_anywhere(
    request: Request, rows: dict[Tensor, dict[int, Tensor]], roots: int, ranks: Ranks
) -> dict[Tensor, dict[int, Tensor]]:
    """Gradients by parameter and root in the optimizer's order, with zeros for what only other ranks reach.

    What is sharded is reached on all ranks or on none: the rest need not be.
    """
    rest = [parameter for parameter in request.wrapped if not is_sharded(parameter)]
    if rest:
        here = torch.tensor([[root in rows.get(parameter, ()) for root in range(roots)] for parameter in rest])
        for parameter, anywhere in zip(rest, ranks.total(here.int()).tolist(), strict=True):
            for root in [root for root, on in enumerate(anywhere) if on and root not in rows.get(parameter, ())]:
                rows.setdefault(parameter, {})[root] = torch.zeros_like(parameter, requires_grad=False)
    return {parameter: rows[parameter] for parameter in request.wrapped if parameter in rows}


class OrdinaryPasses:
    """Differentiates scalars one after the other, each by an ordinary backward pass.

    Args:
        request: What the optimizer asked for.
        graph: What the scalars reach.

    Raises:
        RuntimeError: FSDP2 does not reduce gradients now.
    """

    def __init__(self, request: Request, graph: Reach) -> None:
        self._request = request
        self._graph = graph
        self._held = set(request.wrapped)
        self._reached: set[Tensor] = set()
        for node in [node for node, name in graph.names.items() if name == _FSDP_NODE]:
            group = getattr(node, "param_group", None)
            if not (getattr(group, "reduce_grads", True) and getattr(group, "all_reduce_grads", True)):
                self._raise_unreduced("some whose are not")

    def gradients(self, roots: Sequence[Tensor], position: int) -> dict[Tensor, Tensor]:
        """The scaled gradients of one root, each distributed as its parameter is.

        Leaves every ``.grad`` as it was; frees the root's graph unless somebody needs it again.

        Raises:
            RuntimeError: A gradient arrives at what the optimizer does not hold, or is sparse.
        """
        if not roots[position].requires_grad:
            return {}
        request = self._request
        keep = request.retain_graph or self._graph.needed_again(position)
        leaves = dict.fromkeys([*request.wrapped, *self._graph.leaves])
        with _set_aside(leaves):
            request.scaled(roots[position], position).backward(retain_graph=keep)
            arrived = {leaf: leaf.grad for leaf in leaves if leaf.grad is not None}
        for leaf, gradient in arrived.items():
            self._check(leaf, gradient)
        self._reached.update(arrived)
        with torch.no_grad():
            return {parameter: _placed_like(parameter, gradient) for parameter, gradient in arrived.items()}

    def finish(self) -> None:
        """Raises if gradients have gone elsewhere: each copy that was used stands for a parameter."""
        copies = [leaf for leaf in self._graph.leaves if leaf not in self._held]
        originals = [parameter for parameter in self._reached if parameter not in self._graph.leaves]
        if len(copies) > len(originals):
            self._raise_unreduced(f"{len(copies)} sharded ones, of which {len(originals)} got a gradient")

    def _check(self, leaf: Tensor, gradient: Tensor) -> None:
        if leaf not in self._held:
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `losses` must reach only parameters of the optimizer where they are "
                f"sharded, got {describe(leaf, self._request.names)}. Hand it to the optimizer, or detach it. "
                f"After a backward pass that has raised, FSDP2 gets gradients wrong: make the model again."
            )
        if gradient.is_sparse:
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `losses` must have dense gradients where parameters are sharded, got a "
                f"sparse one of {describe(leaf, self._request.names)}. Use Embedding(sparse=False)."
            )

    def _raise_unreduced(self, what: str) -> NoReturn:
        raise RuntimeError(
            f"MultiObjectiveOptimizer: `losses` must reach only parameters that the optimizer holds, and whose "
            f"gradients are reduced, got {what}. Hand all of them to the optimizer, and leave out "
            f"set_requires_gradient_sync(False): several calls of backward() add up."
        )


@contextmanager
def _set_aside(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Empties ``.grad`` for a while."""
    kept = {tensor: tensor.grad for tensor in tensors}
    try:
        for tensor in kept:
            tensor.grad = None
        yield
    finally:
        for tensor, gradient in kept.items():
            tensor.grad = gradient


def _placed_like(parameter: Any, gradient: Any) -> Tensor:
    """A gradient distributed as its parameter is; what is still to be added up over ranks is."""
    if not is_sharded(parameter) or gradient.placements == parameter.placements:
        return gradient  # type: ignore[no-any-return]
    return gradient.redistribute(parameter.device_mesh, parameter.placements)  # type: ignore[no-any-return]
