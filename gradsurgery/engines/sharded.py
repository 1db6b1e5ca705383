"""Parameters that are spread over devices, by FSDP2 or tensor parallelism: each rank keeps the rows of its shards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..distributed import Place, Ranks, is_sharded
from ..losses import named_losses
from ..sharing import describe, parameters_of, tagged_parameters
from .averages import averages
from .base import Engine, Request
from .compiled import check_tags
from .graph import Reach
from .ordinary import OrdinaryPasses, averaged, ranks_of, reached_anywhere
from .per_loss import Block, PerLossGradients, PlainSum
from .spread import Spread


class Sharded(Engine):
    r"""One ordinary backward pass a loss, for parameters that are DTensors.

    Each rank keeps the rows of its own shards. An inner product is a sum over the shards of all ranks, to which each
    of the :math:`c_p` ranks that have the same shard of parameter p contributes one part in :math:`c_p`:

    .. math:: G = \sum_{\text{ranks}} \sum_p \tfrac{1}{c_p} J_p J_p^\top

    Serves ``fully_shard`` in any nesting, with any policy of resharding and mixed precision, over one or two
    dimensions of ranks; ``parallelize_module``; and both, as long as each parameter is spread over all ranks.
    Parameters beside them that are no DTensors (such as ``ignored_params``) have their rows averaged over the ranks.

    Guarantees:
        the numbers of ``Loop`` on the whole batch, up to rounding, that of the mixed precision policy included.

    Raises:
        RuntimeError: A gradient is not reduced, is sparse, or arrives at a parameter that the optimizer does not
            hold; a parameter is spread over other ranks than those that train; the ranks have different losses.

    Cost:
        K backward passes, each with the collectives of an ordinary one; K x P / N numbers on each of N ranks; K x K
        numbers on the wire for the Gramian.
    """

    adds_up = True

    def differentiate(self, request: Request) -> PerLossGradients:
        ranks = ranks_of(request)
        own = named_losses(request.evaluated())
        roots, graph = request.reach(own.scalars, sharded=True)
        found = averages(request, own, sharded=True)
        if len(found.names) < len(own.names):  # nothing was averaged in them anywhere
            roots, graph = request.reach(found.here.values(), sharded=True)
        request = replace(request, weights=[ranks.size * share for share in found.shares])
        passes, plain, count = OrdinaryPasses(request, graph), PlainSum(), len(found.names)
        rows: dict[Tensor, dict[int, Tensor]] = {}
        for position in range(len(roots)):
            for parameter, gradient in passes.gradients(roots, position).items():
                rows.setdefault(parameter, {})[position] = gradient
        passes.finish()
        _check_declared(request, graph)
        check_tags(  # only now, as modules show FSDP2's copies before, which no tag seems to be about
            graph, list(found.here.values()), request.wrapped, request.sharing, request.names, copies=True
        )
        rows = reached_anywhere(request, rows, len(roots), ranks)
        extra = {parameter: own.pop(count) for parameter, own in rows.items() if count in own}
        plain.add(extra, list(extra.values()))
        reach = {parameter: sum(1 << loss for loss in own) for parameter, own in rows.items() if own}
        shared = request.sharing.select(request.wrapped, reach, sticky=request.sticky)
        blocks = [_block(parameter, rows.pop(parameter), count, ranks) for parameter in shared]
        for parameter, gradients in rows.items():
            for gradient in gradients.values():
                plain.add([parameter], [gradient])
        rest = [(parameter, averaged(parameter, gradient, ranks)) for parameter, gradient in plain.items()]
        places = [_place(parameter, ranks) for parameter in shared]
        jacobian = Shards(blocks, places, ranks)
        how = f"sharded: one ordinary backward pass a loss, rows spread over {ranks.size} ranks"
        return PerLossGradients(found.names, found.all_names, found.values, jacobian, rest, how)


class Shards(Spread):
    """Rows of which each rank has its shards; parameters that are not sharded have the same rows on all ranks."""

    def assemble(self, parts: list[Block], directions: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [
            (part.parameters[0], _distributed(direction, part.parameters[0]))
            for part, direction in zip(parts, directions, strict=True)
        ]


class _Local(Block):
    """The rows of one parameter, as far as they are on this rank."""

    def dense(self) -> Tensor:
        return _distributed(self.rows, self.parameters[0])


def _block(parameter: Tensor, gradients: Mapping[int, Any], count: int, ranks: Ranks) -> Block:
    """The rows of a parameter, zero where a loss does not reach it."""
    with torch.no_grad():
        local = {loss: own.to_local() if is_sharded(own) else own for loss, own in gradients.items()}
        zero = torch.zeros_like(next(iter(local.values())))
        rows = torch.stack([local.get(loss, zero) for loss in range(count)])
        return _Local([parameter], averaged(parameter, rows, ranks))


def _distributed(local: Tensor, parameter: Any) -> Tensor:
    """Entries of this rank, or rows of them, distributed as a parameter is."""
    if not is_sharded(parameter):
        return local
    from torch.distributed.tensor import DTensor, Replicate, Shard

    placements, shape = list(parameter.placements), list(parameter.shape)
    rows = local.ndim - parameter.ndim
    if rows:
        if any(type(placement) not in (Shard, Replicate) for placement in placements):
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `jacobian` must be of parameters that are cut once along a dimension, got "
                f"{describe(parameter)}, placed as {placements}."
            )
        placements = [Shard(each.dim + rows) if isinstance(each, Shard) else each for each in placements]
        shape = [len(local), *shape]
    stride = torch.empty(shape, device="meta").stride() if rows else parameter.stride()
    return DTensor.from_local(
        local, parameter.device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def _place(parameter: Any, ranks: Ranks) -> Place:
    """Where this rank's columns of a parameter lie, and how many ranks have the same."""
    shape = tuple(parameter.shape)
    if not is_sharded(parameter):
        return Place(shape, tuple(slice(0, length) for length in shape), ranks.size)
    sizes = zip(parameter.device_mesh.shape, parameter.placements, strict=True)
    copies = math.prod(size for size, placement in sizes if placement.is_replicate())
    (chunk,) = parameter.__create_chunk_list__()
    ends = [offset + length for offset, length in zip(chunk.offsets, chunk.sizes, strict=True)]
    return Place(shape, tuple(map(slice, chunk.offsets, ends)), copies)


def _check_declared(request: Request, graph: Reach) -> None:
    """Raises where a module that is declared as shared shows FSDP2's copies, or what the optimizer does not hold."""
    held, explicit = set(request.wrapped), request.sharing.explicit
    for parameter in tagged_parameters() if explicit is None else parameters_of(explicit):
        foreign = is_sharded(parameter) and explicit is not None
        if parameter not in held and (foreign or parameter in graph.leaves):
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `shared` must name parameters of the optimizer where they are sharded, "
                f"got {describe(parameter, request.names)}. Hand it to the optimizer, and leave out "
                f"set_reshard_after_backward(False)."
            )
