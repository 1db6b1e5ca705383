"""One surgery: per-loss gradients and a method in, gradients to write out."""

from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from . import kernels
from .aggregators import Aggregator, GramianAggregator
from .engines import Block, Jacobian, PerLossGradients
from .engines.per_loss import Groups
from .scope import Scope, grouped
from .sharing import Sharing, describe
from .writing import add_gradients, all_finite


@dataclass(frozen=True)
class Surgery:
    """What one surgery did.

    Args:
        names: The losses that were present: keys of the dict, or positions as text.
        losses: Their values ``(K,)``, float64, detached and unscaled; NaN in a block, which sees none.
        weights: ``(K,)``, or ``(B, K)`` with one row a group where ``scope`` is not ``"all"``. None for a method
            that has none. Ones when nothing was shared.
        gramian: Inner products of the unscaled gradients of the shared parameters, shaped ``(K, K)`` or
            ``(B, K, K)``. None for a method that does not use it, and when nothing was shared.
        groups: With a ``scope`` other than ``"all"``, what each of the B groups is.
        engine: Which engine ran, how, and why.
    """

    names: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None
    gramian: Tensor | None
    groups: tuple[str, ...] = ()
    engine: str = ""


class Plan(NamedTuple):
    """What a surgery needs to know beside the gradients.

    Args:
        objectives: The number of each loss, for methods with a state per loss.
        scope: What one surgery comprises.
        sharing: Knows the shared modules.
        wrapped: The parameters of the wrapped optimizer.
        names: Names of parameters by id, where the optimizer has them.
        factor: What the gradients are multiplied by; the method sees them without it.
        first: An earlier surgery of the same step, whose weights serve again.
        last_groups: What each surgery of the last step was.
    """

    objectives: list[int]
    scope: Scope
    sharing: Sharing
    wrapped: list[Tensor]
    names: dict[int, str]
    factor: Tensor
    first: Surgery | None = None
    last_groups: tuple[str, ...] = ()


def operate(found: PerLossGradients, method: Aggregator, plan: Plan) -> Surgery:
    """Aggregates per-loss gradients and writes all gradients to ``.grad``; if it raises, nothing has happened."""
    weights = None if plan.first is None else weights_of_first(plan.first, found.names)
    parameters = in_order(found.shared.parameters, plan.wrapped)
    if not parameters:
        add_gradients(found.plain)
        return Surgery(found.names, found.values, torch.ones_like(found.values), None, engine=found.engine)
    indices, labels = grouped(parameters, plan.scope, plan.sharing, plan.wrapped, plan.names)
    _check_state(method, labels, plan.last_groups)
    groups = dict(zip(parameters, indices, strict=True)) if labels else None
    looks_back = method.stateful and method.looks_back(parameters[0].device)
    sound = not looks_back or found.shared.on_all_ranks(all_finite(gradient for _, gradient in found.plain))
    gramian = None
    with method.transaction() as roll_back:
        if isinstance(method, GramianAggregator) and not method.needs_jacobian:
            gramian = _gramian(found, groups, plan)
            if weights is None:
                weights = method.solve(gramian, found.values, rows=plan.objectives)
                weights = found.shared.of_first_rank(weights)
            gradients = found.shared.combine(weights if labels else weights.unsqueeze(0), groups)
        else:
            weights = None
            gradients = _directions(found, parameters, indices, method, plan)
            if labels and looks_back and sound:  # where one group overflows, the others' draws must not count
                sound = found.shared.on_all_ranks(all_finite(gradient for _, gradient in gradients))
        add_gradients(gradients + found.plain)
        if not sound:
            roll_back()
    return Surgery(found.names, found.values, weights, gramian, labels, found.engine)


def look_at(found: PerLossGradients, plan: Plan) -> Surgery:
    """The inner products of per-loss gradients, as a surgery without weights; nothing is written."""
    parameters = in_order(found.shared.parameters, plan.wrapped)
    if not parameters:
        return Surgery(found.names, found.values, None, None, engine=found.engine)
    indices, labels = grouped(parameters, plan.scope, plan.sharing, plan.wrapped, plan.names)
    groups = dict(zip(parameters, indices, strict=True)) if labels else None
    return Surgery(found.names, found.values, None, _gramian(found, groups, plan), labels, found.engine)


def _gramian(found: PerLossGradients, groups: Groups, plan: Plan) -> Tensor:
    """Inner products of the unscaled gradients, ``(K, K)`` or one a group."""
    gramian = found.shared.gramian(groups) / plan.factor.square()
    return gramian[0] if groups is None else gramian


def weights_of_first(first: Surgery, names: tuple[str, ...]) -> Tensor | None:
    """The weights of the first surgery of a step, for another one with the same losses."""
    if names != first.names:
        raise ValueError(
            f"MultiObjectiveOptimizer: `closure` must return the same losses in every call of a step, got "
            f"{list(names)} after {list(first.names)}."
        )
    return first.weights


def in_order(parameters: list[Tensor], wrapped: list[Tensor]) -> list[Tensor]:
    """Parameters in the optimizer's order whatever the engine's: random methods draw in this order."""
    columns = _columns(parameters, wrapped)
    return sorted(parameters, key=columns.__getitem__)


def _columns(parameters: list[Tensor], wrapped: list[Tensor]) -> dict[Tensor, int]:
    """The position of each parameter in the optimizer; those that it does not hold follow."""
    positions = {parameter: position for position, parameter in enumerate(wrapped)}
    others = count(len(positions))
    return {key: positions[key] if key in positions else next(others) for key in parameters}


def _check_state(method: Aggregator, labels: tuple[str, ...], last: tuple[str, ...]) -> None:
    """Raises where a state kept for each group would be given to another one."""
    if not labels or not method.keeps_buffers:
        return
    name = type(method).__name__
    if any(getattr(member, "observes_whole_jacobians", False) for member in method.modules()):
        raise ValueError(
            f"MultiObjectiveOptimizer: `scope` must be 'all' for a method that learns from whole Jacobians in "
            f"observe(), got {name}."
        )
    if method.needs_jacobian:
        raise ValueError(
            f"MultiObjectiveOptimizer: `scope` must be 'all' for a method over the Jacobian that has a state, got "
            f"{name}."
        )
    if last and labels != last:
        raise ValueError(
            f"MultiObjectiveOptimizer: `scope` must be 'all' for a method with a state where the groups change from "
            f"step to step, got {name} over {list(labels)} after {list(last)}."
        )


def _check_memory(method: Aggregator, parts: list[Block], plan: Plan) -> None:
    """Raises where remembered gradients could not be told apart: they are kept by position in the optimizer."""
    if not method.remembers_gradients:
        return
    name, held = type(method).__name__, {id(parameter) for parameter in plan.wrapped}
    for part in parts:
        (parameter,) = part.parameters
        if part.indices is not None:  # other rows of it in every step
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `losses` must have dense gradients for a method that remembers them, got "
                f"sparse ones of {describe(parameter, plan.names)} with {name}. Use Embedding(sparse=False)."
            )
        if id(parameter) not in held:
            raise ValueError(
                f"MultiObjectiveOptimizer: `shared` must hold parameters of the optimizer for a method that "
                f"remembers gradients, got {describe(parameter, plan.names)} with {name}. Hand it to the optimizer."
            )


def _check_share(method: Aggregator, jacobian: Jacobian) -> None:
    """Raises where a method would take the columns that are here for all of them."""
    if jacobian.share([]) is not None and (method.remembers_gradients or not method.works_on_parts):
        raise RuntimeError(
            f"MultiObjectiveOptimizer: `aggregator` must be a method that can do with a part of each gradient where "
            f"parameters are sharded, got {type(method).__name__}. Use a method that needs only inner products."
        )


def unscaled(rows: Tensor, factor: Tensor) -> Tensor:
    """Rows without the scale of mixed precision; float16 would lose in this division what the scale is for."""
    return kernels.widened(rows) / factor


def _directions(
    found: PerLossGradients, parameters: list[Tensor], groups: list[int], method: Aggregator, plan: Plan
) -> list[tuple[Tensor, Tensor]]:
    """Hands the Jacobian itself to the method, group by group."""
    jacobian = found.jacobian()
    blocks = {part.parameters[0]: part for part in jacobian.parts()}
    _check_share(method, jacobian)
    _check_memory(method, list(blocks.values()), plan)
    columns = _columns(parameters, plan.wrapped)
    scaled = bool(plan.factor != 1)
    parts, result = [], []
    for group in range(max(groups) + 1):
        members = [parameter for parameter, owner in zip(parameters, groups, strict=True) if owner == group]
        chosen = [blocks[parameter] for parameter in members]
        rows = [part.rows for part in chosen]
        given = [unscaled(block, plan.factor) for block in rows] if scaled else rows
        own = [columns[parameter] for parameter in members]
        with method.seeing(jacobian.share(chosen)):
            directions = method(given, found.values, rows=plan.objectives, columns=own)
        parts += chosen
        result += [
            (direction * plan.factor if scaled else direction).to(block.dtype)
            for block, direction in zip(rows, directions, strict=True)
        ]
    return jacobian.assemble(parts, result)
