"""One ``torch.autograd.grad`` a loss, on the graph that exists already: the engine that always works."""

from ..losses import named_losses, values_of
from .base import Engine, PerLossGradients, PlainSum, Request, ordered
from .rows import Rows


class Loop(Engine):
    """Differentiates one loss after the other and copies the gradients into the rows of one matrix.

    Works for whatever autograd can differentiate: any module, separate forward passes, sparse gradients,
    non-reentrant checkpointing, custom Functions. Tensor hooks fire once a loss. The graph of a loss is freed on the
    way unless a later loss needs some of it; the rest of it then lives as long as the loss itself.

    Raises:
        RuntimeError: A loss depends on a reentrant checkpoint.

    Cost:
        K backward passes, K x P numbers, kept from step to step.
    """

    def differentiate(self, request: Request) -> PerLossGradients:
        names, scalars, all_names = named_losses(request.evaluated())
        roots, graph = request.reach(scalars)
        leaves = ordered(graph, request.wrapped, len(scalars))
        shared = request.sharing.select(request.wrapped, leaves)
        rows = Rows(len(scalars), request.workspace)
        plain = PlainSum()
        members = set(shared)
        specific = [leaf for leaf in leaves if leaf not in members]
        for position, root in enumerate(roots):
            if not root.requires_grad:
                continue
            bit = 1 << position
            if position < len(scalars):
                own = [leaf for leaf in shared if leaves[leaf] & bit]
                others = [leaf for leaf in specific if leaves[leaf] & bit]
            else:
                own, others = [], [leaf for leaf, bits in graph.leaves.items() if bits & bit]
            if not own and not others:
                continue
            gradients = request.gradients(roots, graph, position, own + others)
            rows.store(position, own, gradients[: len(own)])
            plain.add(others, gradients[len(own) :])
        return PerLossGradients(names, all_names, values_of(scalars), rows.blocks(), plain.items())
