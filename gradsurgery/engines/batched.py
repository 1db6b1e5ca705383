"""One backward pass for all losses together: the engine for many losses on a small network."""

from ..losses import values_of
from .base import Engine, Problem, Request, pose
from .graph import sparse_tables
from .loop import Loop
from .passes import Batchable, Passes
from .per_loss import Block, Jacobian, PerLossGradients


class Batched(Engine):
    """Passes the part of the graph that the losses share once, with all their gradients side by side.

    The private part of each loss is passed by itself. Where an operation cannot be batched, or losses reach different
    ends of what they share, each loss has a pass of its own. The losses need not come from a closure.

    Raises:
        RuntimeError: A loss depends on a reentrant checkpoint.

    Cost:
        The calls of about two backward passes, the operations of K; K x P numbers, and K times the activations of a
        backward pass.
    """

    def __init__(self) -> None:
        self._batchable: Batchable = {}

    def differentiate(self, request: Request) -> PerLossGradients:
        return self.solve(pose(request))

    def solve(self, problem: Problem, why: str = "") -> PerLossGradients:
        """Differentiates losses whose graph has been read."""
        count = len(problem.scalars)
        if count == 1:
            return Loop().solve(problem, ", as there is only one")
        if sparse_tables(problem.graph) & set(problem.shared):
            return Loop().solve(problem, ", as there are sparse gradients")
        passes = Passes(problem, self._batchable)
        several = problem.shared_by_several()
        blocks = [
            Block([leaf], rows.detach().reshape(count, leaf.numel()))
            for leaf, rows in zip(several, passes.rows(several, last=True), strict=True)
        ]
        for leaf, (loss, gradient) in passes.alone.items():
            rows = gradient.new_zeros(count, leaf.numel())
            rows[loss] = gradient.flatten()
            blocks.append(Block([leaf], rows))
        values, plain = values_of(problem.scalars), passes.plain.items()
        shared = Jacobian(blocks)
        return PerLossGradients(
            problem.names, problem.all_names, values, shared, plain, f"batched: {passes.how}{why}"
        )
