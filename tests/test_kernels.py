"""The kernels against naive float64 arithmetic, over sizes, strides and dtypes."""

import math
from collections.abc import Callable

import pytest
import torch
from support import assert_near, assert_same_bits, gaussian
from torch import Tensor

from gradsurgery import kernels

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda block: block,
    "transposed": lambda block: block.T.contiguous().T,
    "every other column": lambda block: block.repeat_interleave(2, dim=1)[:, ::2],
    "every other row": lambda block: block.repeat_interleave(2, dim=0)[::2],
    "offset": lambda block: torch.cat([block, block], dim=1)[:, block.shape[1] :],
    "three dimensions": lambda block: block.reshape(len(block), -1, 1),
    "permuted": lambda block: block.reshape(len(block), 1, 1, -1).permute(0, 3, 1, 2),
    "expanded rows": lambda block: block[:1].expand(len(block), -1),
    "expanded columns": lambda block: block[:, :1].expand(-1, block.shape[1]),
}


def naive_gramian(blocks: list[Tensor]) -> Tensor:
    wide = torch.cat([block.double().reshape(len(block), -1) for block in blocks], dim=1)
    return (wide.unsqueeze(0) * wide.unsqueeze(1)).sum(-1)


def naive_direction(block: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros(block.shape[1:], dtype=torch.float64)
    for row, weight in zip(block.double(), weights.double(), strict=True):
        total = total + weight * row
    return total


def assert_rounded(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Fails unless ``actual`` is the float64 result rounded to its dtype."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs()
    allowed = torch.finfo(dtype).eps * expected.abs() + 1e-14 * float(expected.abs().max())
    allowed += torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert bool((error <= allowed).all()), f"off by up to {float((error - allowed).max())}"


def weights_for(count: int, seed: int = 9) -> Tensor:
    return gaussian(1, count, seed)


# --- gramian -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 1), (3, 7), (7, 129), (33, 65)])
def test_gramian(rows: int, columns: int, strides: str, dtype: torch.dtype) -> None:
    block = STRIDES[strides](gaussian(rows, columns, seed=rows).to(dtype))
    found = kernels.gramian([block])
    assert found.dtype == torch.float64
    assert found.shape == (1, rows, rows)
    assert_near(found[0], naive_gramian([block]), 1e-14)


@pytest.mark.parametrize(("rows", "columns"), [(2, 32768 * 2 + 1), (5, 13107 * 3), (64, 1024 * 2 + 1), (70, 1025)])
def test_chunks_meet(rows: int, columns: int) -> None:
    block = gaussian(rows, columns).float()
    assert_near(kernels.gramian([block])[0], naive_gramian([block]), 1e-13)
    weights = weights_for(rows)
    assert_rounded(kernels.combine([block], weights)[0], naive_direction(block, weights[0]), torch.float32)


def test_gramian_adds_up_blocks_of_all_kinds() -> None:
    blocks = [
        gaussian(3, 5, seed=1).float(),
        gaussian(3, 12, seed=2).reshape(3, 2, 3, 2).bfloat16(),
        gaussian(3, 1, seed=3).squeeze(1),
        gaussian(3, 4, seed=4).half().expand(3, 4),
    ]
    assert_near(kernels.gramian(blocks)[0], naive_gramian(blocks), 1e-14)


def test_groups_are_surgeries_of_their_own() -> None:
    blocks = [gaussian(3, columns, seed=columns).float() for columns in (4, 1, 7, 2)]
    found = kernels.gramian(blocks, groups=[2, 0, 2, 3])
    assert found.shape == (4, 3, 3)
    assert_near(found[0], naive_gramian(blocks[1:2]), 1e-14)
    assert_same_bits(found[1], torch.zeros(3, 3, dtype=torch.float64))
    assert_near(found[2], naive_gramian([blocks[0], blocks[2]]), 1e-14)
    assert_near(found[3], naive_gramian(blocks[3:]), 1e-14)
    weights = gaussian(4, 3, seed=5)
    for block, group, direction in zip(
        blocks, [2, 0, 2, 3], kernels.combine(blocks, weights, groups=[2, 0, 2, 3]), strict=True
    ):
        assert_rounded(direction, naive_direction(block, weights[group]), torch.float32)


def test_gramian_sees_what_float32_products_would_lose() -> None:
    long = torch.full((1, 300_001), 1.0 + 2.0**-12)
    block = torch.cat([long, long * 2.0**10, -long])
    factors = torch.tensor([1.0, 2.0**10, -1.0], dtype=torch.float64)
    expected = (1.0 + 2.0**-12) ** 2 * 300_001 * torch.outer(factors, factors)
    assert_near(kernels.gramian([block])[0], expected, 1e-15)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nonfinite_entries_pass_through(bad: float) -> None:
    block = gaussian(3, 40)
    block[1, 7] = bad
    finite = kernels.gramian([block])[0].isfinite()
    assert finite.tolist() == [[True, False, True], [False, False, False], [True, False, True]]
    assert kernels.combine([block], torch.ones(1, 3))[0].isfinite().sum() == 39


def test_blocks_without_columns() -> None:
    empty = torch.zeros(3, 0)
    assert_same_bits(kernels.gramian([empty]), torch.zeros(1, 3, 3, dtype=torch.float64))
    assert kernels.combine([empty, torch.ones(3, 2)], torch.ones(1, 3))[0].shape == (0,)


# --- combine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 1), (3, 7), (7, 129), (33, 65)])
def test_combine(rows: int, columns: int, strides: str, dtype: torch.dtype) -> None:
    block = STRIDES[strides](gaussian(rows, columns, seed=rows).to(dtype))
    before = block.clone()
    weights = weights_for(rows)
    (found,) = kernels.combine([block], weights)
    assert_rounded(found, naive_direction(block, weights[0]), dtype)
    found.fill_(7.0)  # has memory of its own, every entry of it
    assert_same_bits(block, before)
    assert bool((found == 7.0).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_combine_with_one_weight_is_that_row(dtype: torch.dtype) -> None:
    block = gaussian(3, 70_001).to(dtype)
    weights = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    assert_same_bits(kernels.combine([block], weights)[0], block[1])
    assert_same_bits(kernels.combine([block[1:2]], weights[:, 1:2])[0], block[1])


def test_combine_of_a_scalar_parameter() -> None:
    found = kernels.combine([torch.tensor([1.0, 2.0, 4.0])], torch.tensor([[1.0, 1.0, 0.5]]))
    assert_same_bits(found, [torch.tensor(5.0)])


def test_combine_keeps_digits_where_rows_cancel() -> None:
    row = gaussian(1, 3000).float()
    rest = 1e-4 * gaussian(1, 3000, seed=1).float()
    block = torch.cat([row, -row + rest])
    weights = torch.full((1, 2), 1 / 3, dtype=torch.float64)
    assert_near(kernels.combine([block], weights)[0], naive_direction(block, weights[0]), 1e-7)


def test_rounding_comparison_can_fail() -> None:
    expected = gaussian(1, 5)[0]
    assert_rounded(expected.float(), expected, torch.float32)
    for wrong in (expected.bfloat16().float(), -expected.float(), expected.float() * torch.nan, expected):
        with pytest.raises(AssertionError):
            assert_rounded(wrong, expected, torch.float32)


# --- project -----------------------------------------------------------------------------------------------------


def literal_projection(jacobian: Tensor, order: Tensor) -> Tensor:
    """Algorithm 1 of Yu et al. on the vectors, before they are summed."""
    projected = []
    for row, others in enumerate(order.mT.tolist()):
        gradient = jacobian[row].clone()
        for other in others:
            inner = gradient @ jacobian[other]
            if inner < 0:
                gradient = gradient - inner / (jacobian[other] @ jacobian[other]) * jacobian[other]
        projected.append(gradient)
    return torch.stack(projected)


def orders(count: int, *batch: int, seed: int = 0) -> Tensor:
    """(K - 1, ..., K): for each row the others, mixed."""
    draws = torch.rand(*batch, count, count, generator=torch.Generator().manual_seed(seed))
    draws.diagonal(dim1=-2, dim2=-1).fill_(2.0)
    return draws.argsort(-1)[..., :-1].movedim(-1, 0)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 17])
@pytest.mark.parametrize("columns", [3, 40])
def test_project(count: int, columns: int) -> None:
    jacobian = gaussian(count, columns, seed=count)
    for seed in range(5):
        order = orders(count, seed=seed)
        coefficients = kernels.project(jacobian @ jacobian.mT, order)
        assert_near(coefficients @ jacobian, literal_projection(jacobian, order), 1e-9)


def test_project_batches() -> None:
    jacobians = gaussian(18, 7).view(2, 3, 3, 7)
    order = orders(3, 2, 3)
    found = kernels.project(jacobians @ jacobians.mT, order) @ jacobians
    for first in range(2):
        for second in range(3):
            expected = literal_projection(jacobians[first, second], order[:, first, second])
            assert_near(found[first, second], expected, 1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
def test_sum_of_projections_on_the_host(count: int, batch: tuple[int, ...]) -> None:
    jacobians = gaussian(math.prod(batch) * count, 6, seed=count).view(*batch, count, 6)
    jacobians[..., -1, :] *= 1e-6
    gramians, order = jacobians @ jacobians.mT, orders(count, *batch)
    found = kernels.sum_of_projections(gramians.numpy(), order.numpy())
    assert found.shape == (*batch, count)
    assert_near(found, kernels.project(gramians, order).sum(-2), 1e-12)


def test_sum_of_projections_passes_over_zero_rows() -> None:
    jacobian = gaussian(4, 3)
    jacobian[1] = 0.0
    gramian, order = jacobian @ jacobian.mT, orders(4)
    found = kernels.sum_of_projections(gramian.numpy(), order.numpy())
    assert_near(found, kernels.project(gramian, order).sum(-2), 1e-12)
    assert found[1] == 1.0


def test_project_depends_on_the_order() -> None:
    jacobian = gaussian(4, 3)
    gramian = jacobian @ jacobian.mT
    one, other = (kernels.project(gramian, orders(4, seed=seed)) for seed in (0, 1))
    assert float((one - other).abs().max()) > 1e-3


def test_project_passes_over_zero_rows() -> None:
    jacobian = gaussian(4, 6)
    jacobian[1] = 0.0
    coefficients = kernels.project(jacobian @ jacobian.mT, orders(4))
    assert bool(coefficients.isfinite().all())
    assert_same_bits(coefficients[1], torch.eye(4, dtype=torch.float64)[1])
    assert_same_bits(coefficients[:, 1], torch.eye(4, dtype=torch.float64)[1])
