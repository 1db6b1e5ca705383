"""Backward passes through the graph of per-sample losses."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..base import Request, ordered
from ..graph import Node, Reach
from ..passes import Input
from ..per_loss import Jacobian, PlainSum
from ..rows import Rows
from .gradients import Arrived, formed_by_all
from .inner_products import SCRATCH
from .probe import Deltas

_BATCH_NORMS = ("NativeBatchNorm", "BatchNormWithUpdate", "CudnnBatchNorm", "MiopenBatchNorm", "SyncBatchNorm")


class Samples:
    """Per-sample losses whose graph has been read.

    Args:
        request: What the optimizer asked for.
        losses: ``(N,)`` or ``(N, K)``.

    Raises:
        RuntimeError: BatchNorm in train mode is on the way, or a reentrant checkpoint.
    """

    def __init__(self, request: Request, losses: Tensor) -> None:
        self.request = request
        self.count, self.each = len(losses), losses[0].numel()
        _, self.graph = request.reach([losses])
        _refuse_batch_norm(self.graph)
        leaves = ordered(self.graph, request.wrapped, 1)
        reached = dict.fromkeys(leaves, 0b11)  # as if by two losses
        self.shared = request.sharing.select(request.wrapped, reached, sticky=request.sticky)
        members = set(self.shared)
        self._others = [leaf for leaf in leaves if leaf not in members]
        self._root = request.scaled(losses, 0)

    def plain(self) -> list[tuple[Tensor, Tensor]]:
        """The gradients that take no part in the surgery: those of the extra loss, and of what is not shared."""
        plain, extra = PlainSum(), self.request.extra_gradients(self.graph, 1, keep=True)
        plain.add(extra, list(extra.values()))
        if self._others:
            plain.add(self._others, self._pass(self._others, torch.ones_like(self._root)))
        return plain.items()

    def deltas(self, edges: Sequence[GradientEdge], members: Tensor | None = None, *, last: bool = False) -> Deltas:
        """What arrives at points, ``(K, *output)``, from the losses of all samples, or of some, ``(N,)`` bool.

        Args:
            edges: The points.
            members: Which samples.
            last: Whether no further pass will follow, so that the graph can be freed on the way.
        """
        rows: dict[GradientEdge, list[Tensor]] = {edge: [] for edge in edges}
        for place in range(self.each if edges else 0):
            seed = torch.zeros_like(self._root)
            seed.view(self.count, -1)[:, place] = 1.0 if members is None else members.to(seed)
            keep = self.request.retain_graph or not last or place < self.each - 1
            for edge, gradient in zip(edges, self._pass(edges, seed, keep=keep), strict=True):
                rows[edge].append(_zeros(edge) if gradient is None else gradient)
        return {edge: own[0].unsqueeze(0) if len(own) == 1 else torch.stack(own) for edge, own in rows.items()}

    def rows(
        self, rest: Sequence[Tensor], points: Mapping[Node, Sequence[Arrived]], pulled: Sequence[Tensor]
    ) -> Jacobian:
        """The gradients of each loss, one after the other.

        Args:
            rest: Parameters that are reached from the losses.
            points: Points of the graph, and what arrives at their uses.
            pulled: Parameters that are reached from these points.
        """
        rows = Rows(self.count * self.each, self.request.workspace)
        edges: list[Input] = [GradientEdge(node, 0) for node in points]
        largest = max((torch.Size(node._input_metadata[0].shape).numel() for node in points), default=1)
        step = max(1, SCRATCH // (self.each * max(1, largest)))
        for place in range(self.count * self.each if rest or pulled else 0):
            found: list[Tensor | None] = []
            if rest:
                seed = torch.zeros_like(self._root)
                seed.view(-1)[place] = 1.0
                found += self._pass(rest, seed)
            if pulled:
                sample, offset = place // self.each, place % (step * self.each)
                if not offset:
                    formed = [formed_by_all(arrivals, sample, sample + step) for arrivals in points.values()]
                seeds = [
                    own[offset].to(node._input_metadata[0].dtype) for node, own in zip(points, formed, strict=True)
                ]
                found += torch.autograd.grad(edges, pulled, seeds, retain_graph=True, allow_unused=True)
            rows.store(place, [*rest, *pulled], found)
        return Jacobian(rows.blocks())

    def _pass(self, inputs: Sequence[Input], seed: Tensor, *, keep: bool = True) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad([self._root], inputs, [seed], retain_graph=keep, allow_unused=True)


def _zeros(edge: GradientEdge) -> Tensor:
    metadata = edge.node._input_metadata[edge.output_nr]
    return torch.zeros(tuple(metadata.shape), dtype=metadata.dtype, device=metadata.device)


def _refuse_batch_norm(graph: Reach) -> None:
    for node, name in graph.names.items():
        if name.startswith(_BATCH_NORMS) and graph.nodes[node] & 1 and getattr(node, "_saved_training", True):
            shape = node._input_metadata[0].shape
            if shape[0] != 1:  # else it is InstanceNorm, which has the samples elsewhere
                raise RuntimeError(
                    f"MultiObjectiveOptimizer: `losses` must come from samples that do not mix when they are one "
                    f"tensor, got BatchNorm in train mode on the way, over an input of shape {tuple(shape)}: it "
                    f"normalises each sample by statistics of all. Put it in eval mode, replace it by GroupNorm or "
                    f"LayerNorm, or use engine='loop', which differentiates one loss after the other."
                )
