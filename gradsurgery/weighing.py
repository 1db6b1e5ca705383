"""One step with a scalarizer: a single backward pass over the weighed sum of the losses."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from .engines import PlainSum, Request
from .losses import named_losses, values_of
from .scalarizers import Scalarizer
from .surgery import Surgery, weights_of_first
from .writing import add_gradients, all_finite

Numbering = Callable[[Sequence[str], Sequence[str]], tuple[list[str], list[int]]]


def weigh(
    request: Request, scalarizer: Scalarizer, numbered: Numbering, first: Surgery | None
) -> tuple[list[str], Surgery]:
    """Differentiates the scalar and writes all gradients to ``.grad``; if it raises, nothing has happened.

    Args:
        request: The losses, the extra loss, the scale.
        scalarizer: Weighs the losses by the derivatives of its scalar.
        numbered: Numbers the losses by name.
        first: An earlier surgery of the same step, whose weights serve again.

    Returns:
        The names of all losses seen so far, and what was done.
    """
    present = named_losses(request.evaluated())
    values = values_of(present.scalars)
    known, objectives = numbered(present.names, present.all_names)
    with scalarizer.transaction() as roll_back:
        weights = None if first is None else weights_of_first(first, present.names)
        if weights is None:
            with torch.enable_grad():
                points = values.clone().requires_grad_()
                (weights,) = torch.autograd.grad(scalarizer(points, rows=objectives), points)
        with torch.enable_grad():
            total = (weights * torch.stack([loss.to(values) for loss in present.scalars])).sum()
            if request.extra_loss is not None:
                total = total + request.extra_loss.to(values)
        roots, graph = replace(request, extra_loss=None).reach([total])
        leaves = list(graph.leaves)
        plain = PlainSum()
        plain.add(leaves, request.gradients(roots, graph, 0, leaves))
        gradients = plain.items()
        add_gradients(gradients)
        if scalarizer.stateful and not all_finite(gradient for _, gradient in gradients):
            roll_back()
    return known, Surgery(present.names, values, weights, None, engine="one backward pass of the weighed sum")
