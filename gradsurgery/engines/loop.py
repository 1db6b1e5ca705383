"""One ``torch.autograd.grad`` a loss, on the graph that exists already: the engine that always works."""

from ..losses import values_of
from .base import Engine, Problem, Request, pose
from .per_loss import Jacobian, PerLossGradients, PlainSum
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
        return self.solve(pose(request))

    def solve(self, problem: Problem, why: str = "") -> PerLossGradients:
        """Differentiates losses whose graph has been read."""
        request, graph, shared, count = problem.request, problem.graph, problem.shared, len(problem.scalars)
        rows = Rows(count, request.workspace)
        plain = PlainSum()
        members = set(shared)
        specific = [leaf for leaf in problem.leaves if leaf not in members]
        reached_by_all = (1 << count) - 1
        common = all(problem.leaves[leaf] == reached_by_all for leaf in shared)
        for position, root in enumerate(problem.roots):
            if not root.requires_grad:
                continue
            bit = 1 << position
            if position < count:
                own = shared if common else [leaf for leaf in shared if problem.leaves[leaf] & bit]
                others = [leaf for leaf in specific if problem.leaves[leaf] & bit]
            else:
                own, others = [], [leaf for leaf, bits in graph.leaves.items() if bits & bit]
            if not own and not others:
                continue
            gradients = request.gradients(problem.roots, graph, position, own + others)
            rows.store(position, own, gradients[: len(own)])
            plain.add(others, gradients[len(own) :])
        return PerLossGradients(
            problem.names,
            problem.all_names,
            values_of(problem.scalars),
            Jacobian(rows.blocks()),
            plain.items(),
            f"loop: one backward pass a loss{why}",
        )
