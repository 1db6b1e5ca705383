"""Backward passes, one a loss, to points inside the graph and to parameters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .base import Problem
from .per_loss import PlainSum, times
from .workspace import reused

Input: TypeAlias = Any
"""A tensor or a ``GradientEdge``: torch takes lists of both but declares lists of one."""


class Passes:
    """Differentiates losses, one after the other, as often as it is asked to.

    Args:
        problem: The losses and their graph.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.count = len(problem.scalars)
        self.plain = PlainSum()
        """The gradients of what is not shared; there after the first passes."""
        self.alone: dict[Tensor, tuple[int, Tensor]] = {}
        """For each shared parameter that one loss alone reaches, which one, and its gradient; likewise."""
        self._shared = set(problem.shared)
        several = set(problem.shared_by_several())
        self._others: list[Tensor] | None = [leaf for leaf in problem.leaves if leaf not in several]

    def rows(self, inputs: Sequence[Input], *, last: bool, key: str = "rows") -> list[Tensor | None]:
        """The gradients of all losses with respect to points, each ``(K, ...)``; None where no gradient arrives.

        The first call also gets the gradients of what is not shared.

        Args:
            inputs: The points.
            last: Whether no further passes will follow, so that the graph can be freed on the way.
            key: A call with an equal one uses the memory of the result again.
        """
        others, is_first = self._others or [], self._others is not None
        self._others = None
        rows: list[Tensor | None] = [None] * len(inputs)
        absent: list[set[int]] = [set(range(self.count)) for _ in inputs]
        with _arrivals(inputs) as arrived:
            for loss, root in enumerate(self._problem.scalars):
                places = [place for place, one in enumerate(inputs) if self._reaches(loss, one)]
                own = [leaf for leaf in others if self._reaches(loss, leaf)]
                if not root.requires_grad or not (places or own):
                    continue
                arrived.clear()
                found = self._pass(loss, [*(inputs[place] for place in places), *own], last=last)
                for place, handed_out in zip(places, found, strict=False):
                    gradient = arrived.get(place, handed_out)
                    if gradient is not None:
                        rows[place] = self._stored(rows[place], (key, place), loss, gradient)
                        absent[place].discard(loss)
                self._add(loss, own, found[len(places) :])
        for row, losses in zip(rows, absent, strict=True):
            if row is not None:
                for loss in losses:
                    row[loss].zero_()
        if is_first:
            request = self._problem.request
            extra = request.extra_gradients(self._problem.graph, self.count, keep=request.retain_graph or not last)
            self.plain.add(extra, list(extra.values()))
        return rows

    def weighted(self, weights: Tensor, inputs: Sequence[Input], *, last: bool) -> list[Tensor | None]:
        """The gradients of the sum of the losses with weights ``(K,)`` with respect to points, by one pass."""
        request = self._problem.request
        largest = weights.abs().max()
        factor = torch.where(largest > 0, largest, 1.0)  # a weight may be beyond the range of a loss in float16
        pairs = enumerate(zip(self._problem.scalars, weights / factor, strict=True))
        terms = [(request.scaled(root, loss), weight) for loss, (root, weight) in pairs if root.requires_grad]
        roots, seeds = [root for root, _ in terms], [weight.to(root) for root, weight in terms]
        keep = request.retain_graph or not last
        with _arrivals(inputs) as arrived:
            found = torch.autograd.grad(roots, inputs, seeds, retain_graph=keep, allow_unused=True)
            gradients = [arrived.get(place, gradient) for place, gradient in enumerate(found)]
        return [None if gradient is None else times(gradient, factor) for gradient in gradients]

    @cached_property
    def rounding(self) -> float:
        """The rounding of the least exact numbers that the passes handle."""
        metadata = [
            each
            for node in self._problem.graph.nodes
            for each in ([node.variable] if hasattr(node, "variable") else node._input_metadata)
        ]
        return max(torch.finfo(dtype).eps for dtype in {each.dtype for each in metadata} if dtype.is_floating_point)

    def _reaches(self, loss: int, one: Input) -> bool:
        bits = self._problem.leaves[one] if isinstance(one, Tensor) else self._problem.graph.nodes[one.node]
        return bool(bits >> loss & 1)

    def _pass(self, position: int, inputs: Sequence[Input], *, last: bool) -> tuple[Tensor | None, ...]:
        problem = self._problem
        keep = problem.request.retain_graph or not last or problem.graph.needed_again(position)
        root = problem.request.scaled(problem.roots[position], position)
        return torch.autograd.grad(root, inputs, retain_graph=keep, allow_unused=True)

    def _stored(self, rows: Tensor | None, key: object, loss: int, gradient: Tensor) -> Tensor:
        """The rows of a point, with the gradient of one loss in its place."""
        if gradient.is_sparse:
            raise RuntimeError(
                "Ghost: `losses` must have dense gradients where no embedding makes them sparse, got a sparse one. "
                "Use engine='loop'."
            )
        if rows is None:
            shape = (self.count, *gradient.shape)
            rows = reused(self._problem.request.workspace, key, shape, gradient)
        rows[loss].copy_(gradient)
        return rows

    def _add(self, loss: int, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if leaf not in self._shared:
                self.plain.add([leaf], [gradient])
            elif gradient is not None:
                self.alone[leaf] = loss, gradient


@contextmanager
def _arrivals(inputs: Sequence[Input]) -> Iterator[dict[int, Tensor | None]]:
    """Notes what arrives at nodes that run: torch hands out gradients before hooks have changed them."""
    arrived: dict[int, Tensor | None] = {}

    def watch(place: int, output: int) -> Callable[..., None]:
        return lambda gradients: arrived.update({place: gradients[output]})

    hooks = [
        one.node.register_prehook(watch(place, one.output_nr))
        for place, one in enumerate(inputs)
        if not isinstance(one, Tensor)
    ]
    try:
        yield arrived
    finally:
        for hook in hooks:
            hook.remove()
