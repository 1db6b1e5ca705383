"""One backward pass for all losses together: the engine for many losses on a small network."""

import torch
from torch import Tensor

from ..losses import values_of
from .base import Engine, Problem, Request, pose
from .frontier import Frontier, descend, frontier_of, pass_at_once
from .graph import sparse_tables
from .loop import Loop
from .per_loss import Block, Jacobian, PerLossGradients


class Batched(Engine):
    """Passes the part of the graph that the losses share once, with all their gradients side by side.

    Where that is not possible, ``Loop`` runs: operations that cannot be batched or are written in Python, sparse
    gradients, losses that reach different ends of what they share, or pass no gradient on to it, parameters outside
    the surgery that several losses reach. Tensor hooks in the shared part fire once and see a gradient that stands
    for those of all losses; such tensors are of no use after the pass, so hooks should not keep them, nor should
    ``retain_grad`` be used. Where the losses part, hooks fire before that too, with a sum that is not used.

    Raises:
        RuntimeError: A loss depends on a reentrant checkpoint, or an operation of a kind that could be batched in
            earlier steps cannot now.

    Cost:
        The calls of about two backward passes, the operations of K; K x P numbers, and K times the activations of a
        backward pass.
    """

    def __init__(self) -> None:
        self._worked: dict[frozenset[str], bool] = {}

    def differentiate(self, request: Request) -> PerLossGradients:
        return self.solve(pose(request))

    def solve(self, problem: Problem) -> PerLossGradients:
        """Differentiates losses whose graph has been read."""
        if len(problem.scalars) == 1:
            return Loop().solve(problem, ", as there is only one")
        members = set(problem.shared)
        others = [leaf for leaf, bits in problem.leaves.items() if leaf not in members and bits & (bits - 1)]
        frontier = None if others or sparse_tables(problem.graph) & members else frontier_of(problem)
        if frontier is None or not self._worked.get(frontier.kinds, True):
            return Loop().solve(problem, ", as they cannot all share one")
        found = self._at_once(problem, frontier)
        return Loop().solve(problem, ", as something cannot be batched") if found is None else found

    def _at_once(self, problem: Problem, frontier: Frontier) -> PerLossGradients | None:
        """The gradients, or None where this is the first try and something cannot be batched."""
        is_first = frontier.kinds not in self._worked
        keep = problem.request.retain_graph or is_first
        several = problem.shared_by_several()
        extra = problem.request.extra_gradients(problem.graph, len(problem.scalars), keep=True)
        descent = descend(problem, frontier, keep=keep)
        try:
            rows = pass_at_once(problem, descent, several, keep=keep)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:  # a pass a loss will show whose error it is
            self._worked[frontier.kinds] = False
            if is_first:
                return None
            raise RuntimeError(
                f"Batched: `losses` must have a graph that can be passed for all of them at once, as earlier ones of "
                f"this kind could, got {error}. Run the forward pass again: each loss now has a pass of its own."
            ) from error
        self._worked[frontier.kinds] = True
        count = len(problem.scalars)
        blocks = [
            Block([leaf], own.reshape(count, leaf.numel()))
            for leaf, own in zip(several, rows, strict=True)
            if own is not None
        ]
        blocks += [_alone(leaf, *own, count) for leaf, own in descent.alone.items()]
        descent.plain.add(extra, list(extra.values()))
        values, plain = values_of(problem.scalars), descent.plain.items()
        how = "batched: one backward pass for all losses"
        return PerLossGradients(problem.names, problem.all_names, values, Jacobian(blocks), plain, how)


def _alone(leaf: Tensor, loss: int, gradient: Tensor, count: int) -> Block:
    """The rows of a parameter that one loss alone reaches."""
    rows = gradient.new_zeros(count, leaf.numel())
    rows[loss] = gradient.flatten()
    return Block([leaf], rows)
