"""One surgery: per-loss gradients and a method in, gradients to write out."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import kernels
from .aggregators import Aggregator, GramianAggregator
from .engines import PerLossGradients
from .scope import Scope, grouped
from .sharing import Sharing
from .writing import all_finite


@dataclass(frozen=True)
class Surgery:
    """What one surgery did.

    Args:
        names: The losses that were present: keys of the dict, or positions as text.
        losses: Their values ``(K,)``, float64, detached and unscaled.
        weights: ``(K,)``, or ``(B, K)`` with one row a group where ``scope`` is not ``"all"``. None for a method
            that has none. Ones when nothing was shared.
        gramian: Inner products of the unscaled gradients of the shared parameters, shaped ``(K, K)`` or
            ``(B, K, K)``. None for a method that does not use it, and when nothing was shared.
        groups: With a ``scope`` other than ``"all"``, what each of the B groups is.
    """

    names: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None
    gramian: Tensor | None
    groups: tuple[str, ...] = ()


class Plan(NamedTuple):
    """What a surgery needs to know beside the gradients.

    Args:
        objectives: The number of each loss, for methods with a state per loss.
        scope: What one surgery comprises.
        sharing: Knows the shared modules.
        names: Names of parameters by id, where the optimizer has them.
        factor: What the gradients are multiplied by; the method sees them without it.
        weights: Used in the place of the method's, if given.
    """

    objectives: list[int]
    scope: Scope
    sharing: Sharing
    names: dict[int, str]
    factor: Tensor
    weights: Tensor | None = None


def operate(found: PerLossGradients, method: Aggregator, plan: Plan) -> tuple[Surgery, list[tuple[Tensor, Tensor]]]:
    """Aggregates per-loss gradients.

    Returns:
        What was done, and the gradients of the shared parameters.
    """
    if not found.blocks:
        return Surgery(found.names, found.values, torch.ones_like(found.values), None), []
    blocks, groups, labels = grouped(found.blocks, plan.scope, plan.sharing, plan.names)
    rows = [block.rows for block in blocks]
    sound = not method.stateful or all_finite(gradient for _, gradient in found.plain)
    gramian, weights = None, plan.weights
    with method.transaction(commit=sound):
        if isinstance(method, GramianAggregator) and not method.needs_jacobian:
            gramian = kernels.gramian(rows, groups) / plan.factor.square()
            gramian = gramian if labels else gramian[0]
            if weights is None:
                weights = method.solve(gramian, found.values, rows=plan.objectives)
            directions = kernels.combine(rows, weights if labels else weights.unsqueeze(0), groups)
        else:
            directions = _directions(rows, groups, found.values, method, plan)
    gradients = [
        pair
        for block, direction in zip(blocks, directions, strict=True)
        for pair in zip(block.parameters, block.gradients(direction), strict=True)
    ]
    return Surgery(found.names, found.values, weights, gramian, labels), gradients


def _directions(
    rows: list[Tensor], groups: list[int], losses: Tensor, method: Aggregator, plan: Plan
) -> list[Tensor]:
    """Hands the Jacobian itself to the method, group by group."""
    scaled = bool(plan.factor != 1)
    result: list[Tensor] = [rows[0]] * len(rows)
    for group in range(max(groups) + 1):
        members = [position for position, own in enumerate(groups) if own == group]
        blocks = [rows[position] for position in members]
        if scaled:  # float16 would lose in this division what the scale is for
            blocks = [block.to(torch.promote_types(block.dtype, torch.float32)) / plan.factor for block in blocks]
        directions = method(blocks, losses, rows=plan.objectives)
        for position, direction in zip(members, directions, strict=True):
            full = direction * plan.factor if scaled else direction
            result[position] = full.to(rows[position].dtype)
    return result
