"""Projections of PCGrad and GradVac in Triton: one program for each problem, in float64."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .worklist import launch

ROUNDING = tl.constexpr(64 * 2.0**-52)  # of a squared length relative to that of the gradient
LONGEST = tl.constexpr(2.0**26)  # where squares still leave room for those of any number of further steps


def project(gramian: Tensor, order: Tensor) -> Tensor:
    """Computes what :func:`gradsurgery.kernels.reference.project` defines, in one launch."""
    gramian, order = gramian.detach().contiguous(), _on_same_device(order, gramian)
    result = torch.empty_like(gramian)
    size = gramian.shape[-1]
    if problems := gramian[..., 0, 0].numel():
        launch(projections, (problems,), gramian.device, gramian, order, result, problems, **project_options(size))
    return result


def vaccinate(gramian: Tensor, targets: Tensor, order: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Computes the weights of :class:`gradsurgery.GradVac` and its next targets, in one launch."""
    gramian, order = gramian.detach().double().contiguous(), _on_same_device(order, gramian)
    targets = targets.detach().to(gramian).contiguous()
    weights, moved = torch.empty_like(gramian[..., 0]), torch.empty_like(targets)
    if problems := gramian[..., 0, 0].numel():
        arguments = (gramian, targets, order, weights, moved, problems)
        options = {"BETA": beta, **project_options(gramian.shape[-1])}
        launch(vaccinations, (problems,), gramian.device, *arguments, **options)
    return weights, moved


def project_options(size: int) -> dict[str, Any]:
    """What :func:`projections` is compiled for."""
    side = triton.next_power_of_2(size)
    return {"K": size, "SIZE": side, "num_warps": max(1, side**2 // 256)}  # eight numbers of a matrix in each lane


def _on_same_device(order: Tensor, gramian: Tensor) -> Tensor:
    return order.to(gramian.device, torch.int64, non_blocking=True).contiguous()


@triton.jit(do_not_specialize=["gramian", "order", "problems"])
def projections(gramian, order, result, problems, K: tl.constexpr, SIZE: tl.constexpr):
    """All rows meet their others at once, step by step; row i holds the coefficients of the projected row i."""
    problem = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, SIZE), tl.arange(0, SIZE)[None, :]
    inside = (row < K)[:, None] & (column < K)
    gramian += problem * (K * K)
    coefficients = tl.where(row[:, None] == column, 1.0, 0.0).to(tl.float64)
    for step in range(K - 1):
        other = tl.load(order + (step * problems.to(tl.int64) + problem) * K + row, mask=row < K, other=0)
        met = tl.load(gramian + other[:, None] * K + column, mask=inside, other=0.0).to(tl.float64)
        squared = tl.load(gramian + other * (K + 1), mask=row < K, other=0.0).to(tl.float64)
        inner = tl.sum(coefficients * met, axis=1)
        conflicts = (inner < 0) & (squared > 0)
        change = tl.where(conflicts, inner, 0.0) / tl.where(conflicts, squared, 1.0)
        coefficients = tl.where(column == other[:, None], coefficients - change[:, None], coefficients)
    target = result + problem * (K * K) + row[:, None] * K + column
    tl.store(target, coefficients.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["gramian", "targets", "order", "problems"])
def vaccinations(
    gramian,
    targets,
    order,
    weights,
    moved,
    problems,
    BETA: tl.constexpr,  # a number argument would be float32
    K: tl.constexpr,
    SIZE: tl.constexpr,
):
    """As :class:`gradsurgery.GradVac` has it: lengths are relative to that of the row at the start."""
    problem = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, SIZE), tl.arange(0, SIZE)[None, :]
    inside = (row < K)[:, None] & (column < K)
    here = row[:, None] * K + column
    gramian += problem * (K * K)
    targets += problem * (K * K)
    squared = tl.load(gramian + row * (K + 1), mask=row < K, other=0.0)
    lengths = tl.sqrt(tl.where(squared > 0, squared, 1.0))
    of_columns = tl.load(gramian + column * (K + 1), mask=column < K, other=0.0)
    lengths_of_columns = tl.sqrt(tl.where(of_columns > 0, of_columns, 1.0))
    current = tl.load(gramian + here, mask=inside, other=0.0) / (lengths[:, None] * lengths_of_columns)
    current = tl.where((squared > 0)[:, None] & (of_columns > 0), current, 0.0)
    current = tl.where(row[:, None] == column, 1.0, current)
    wanted_of_all = tl.load(targets + here, mask=inside, other=0.0)
    next_targets = wanted_of_all
    added_to_all = tl.zeros([SIZE, SIZE], tl.float64)
    squares = tl.full([SIZE], 1.0, tl.float64)
    for step in range(K - 1):
        other = tl.load(order + (step * problems.to(tl.int64) + problem) * K + row, mask=row < K, other=0)
        pair = column == other[:, None]
        part = tl.sum(tl.where(pair, current, 0.0), axis=1)
        target = tl.sum(tl.where(pair, wanted_of_all, 0.0), axis=1)
        squared_of_other = tl.load(gramian + other * (K + 1), mask=row < K, other=0.0)
        both = (squared > 0) & (squared_of_other > 0)
        asked = tl.where(both, target, 0.0)
        cotangent = asked / tl.sqrt(_at_least(1.0 - asked * asked, ROUNDING))
        rest = squares - part * part  # squared
        rest = tl.where(rest <= ROUNDING, 0.0, rest)
        wanted = tl.sqrt(rest) * cotangent
        wanted = _at_least(tl.where(wanted > LONGEST, LONGEST, wanted), part)
        added = wanted - part
        seen = part / tl.sqrt(_at_least(squares, ROUNDING))
        change = tl.where(both, BETA * (seen - target), 0.0)
        next_targets = tl.where(pair, wanted_of_all + change[:, None], next_targets)
        added_to_all = tl.where(pair, (added * lengths)[:, None], added_to_all)
        unit = tl.load(gramian + other[:, None] * K + column, mask=inside, other=0.0)
        unit = unit / (tl.sqrt(tl.where(squared_of_other > 0, squared_of_other, 1.0))[:, None] * lengths_of_columns)
        unit = tl.where((squared_of_other > 0)[:, None] & (of_columns > 0), unit, 0.0)
        unit = tl.where(pair, 1.0, unit)
        current += added[:, None] * unit
        squares = wanted * wanted + rest
    total = 1.0 + tl.sum(added_to_all, axis=0)[None, :] / lengths_of_columns
    tl.store(weights + problem * K + column, total, mask=column < K)
    tl.store(moved + problem * (K * K) + here, next_targets, mask=inside)


@triton.jit
def _at_least(value, bound):
    """The larger one, or NaN where the value is."""
    return tl.where(value <= bound, bound, value)
