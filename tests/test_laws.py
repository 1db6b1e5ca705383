"""Laws that hold for every Jacobian, whatever hypothesis comes up with."""

import numpy as np
import torch
from hypothesis import given, settings, strategies
from support import (
    assert_harms_none,
    assert_near,
    assert_same_bits,
    jacobians,
    losses_of,
    norms_of,
)
from torch import Tensor

import gradsurgery as gs
from gradsurgery import kernels
from gradsurgery.aggregators import CONTRACTS
from gradsurgery.solvers import min_norm_weights, project_on_dual_cone

PROMISING = {
    flag: [contract for contract in CONTRACTS.values() if flag in contract.guarantees]
    for flag in ("non_conflicting", "one_loss_is_identity", "scale_equivariant", "equals_mean_without_conflict")
}


def rounding(jacobian: Tensor) -> float:
    """What the dtype of the direction alone may change."""
    return 4 * torch.finfo(jacobian.dtype).eps


# --- flags -------------------------------------------------------------------------------------------------------


@given(jacobian=jacobians(), contract=strategies.sampled_from(list(CONTRACTS.values())))
@settings(max_examples=150)
def test_finite_gradients_give_a_finite_direction_of_their_kind(jacobian: Tensor, contract: object) -> None:
    method = contract.build()
    for _ in range(2):
        direction = method(jacobian, losses_of(jacobian))
        assert direction.shape == jacobian.shape[1:]
        assert direction.dtype == jacobian.dtype
        assert bool(direction.isfinite().all())


@given(jacobian=jacobians(), contract=strategies.sampled_from(PROMISING["non_conflicting"]))
@settings(max_examples=150)
def test_no_loss_gets_worse(jacobian: Tensor, contract: object) -> None:
    direction = contract.build()(jacobian, losses_of(jacobian))
    assert_harms_none(jacobian, direction, relative=max(1e-8, rounding(jacobian)))


@given(
    jacobian=jacobians(max_rows=1),
    contract=strategies.sampled_from(PROMISING["one_loss_is_identity"]),
    dtype=strategies.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_one_loss_is_left_alone(jacobian: Tensor, contract: object, dtype: torch.dtype) -> None:
    row = jacobian.to(dtype)
    assert_same_bits(contract.build()(row, torch.ones(1)) + 0.0, row[0] + 0.0)


@given(
    jacobian=jacobians(dtypes=(torch.float64,)),
    contract=strategies.sampled_from(PROMISING["scale_equivariant"]),
    power=strategies.integers(-60, 60),
)
@settings(max_examples=150)
def test_a_power_of_two_passes_through_unchanged(jacobian: Tensor, contract: object, power: int) -> None:
    torch.manual_seed(0)
    losses = losses_of(jacobian)
    plain, scaled = contract.build(), contract.build()
    for _ in range(2):
        found = scaled(2.0**power * jacobian, losses) * 2.0**-power
        assert_same_bits(found + 0.0, plain(jacobian, losses) + 0.0)


@given(jacobian=jacobians(), contract=strategies.sampled_from(PROMISING["equals_mean_without_conflict"]))
def test_without_conflict_it_is_the_mean(jacobian: Tensor, contract: object) -> None:
    harmless = jacobian.abs()
    assert_near(contract.build()(harmless), harmless.double().mean(0), max(1e-12, rounding(jacobian)))


# --- solvers -----------------------------------------------------------------------------------------------------


@given(jacobian=jacobians(dtypes=(torch.float64,)))
@settings(max_examples=200)
def test_min_norm_weights_are_optimal(jacobian: Tensor) -> None:
    rows, norms = jacobian.numpy(), norms_of(jacobian).numpy()
    weights = min_norm_weights((rows @ rows.T)[None])[0]
    assert (weights >= 0).all()
    assert abs(weights.sum() - 1) < 1e-12
    direction = weights @ rows
    progress = rows @ direction - direction @ direction
    present = norms > 0
    if present.any():
        used = norms[weights > 0].max()
        assert (weights[~present] == 0).all()
        assert (progress[present] >= -1e-9 * norms[present] * used).all()
        assert abs(weights @ progress) <= 1e-9 * used**2


@given(jacobian=jacobians(dtypes=(torch.float64,)), seed=strategies.integers(0, 1000))
@settings(max_examples=200)
def test_projections_are_optimal(jacobian: Tensor, seed: int) -> None:
    rows, norms = jacobian.numpy(), norms_of(jacobian).numpy()
    start = np.random.default_rng(seed).standard_normal((1, 2, len(rows)))
    weights = project_on_dual_cone((rows @ rows.T)[None], start)[0]
    multipliers = weights - start[0]
    longest = np.abs(start[0] * norms).max(axis=1, keepdims=True)  # of what is projected
    products = weights @ rows @ rows.T
    assert (multipliers >= 0).all()
    assert (multipliers[:, norms == 0] == 0).all()
    assert (products >= -1e-7 * longest * norms).all()
    assert (products <= 1e-7 * longest * norms)[multipliers > 0].all()


# --- methods -----------------------------------------------------------------------------------------------------


@given(jacobian=jacobians(max_rows=2), seed=strategies.integers(0, 1000))
def test_pcgrad_of_two_harms_none(jacobian: Tensor, seed: int) -> None:
    direction = gs.PCGrad(generator=torch.Generator().manual_seed(seed))(jacobian)
    assert_harms_none(jacobian, direction, relative=max(1e-8, rounding(jacobian)))


@given(jacobian=jacobians(dtypes=(torch.float64,)), seed=strategies.integers(0, 1000))
def test_pcgrad_weights_are_at_least_one(jacobian: Tensor, seed: int) -> None:
    method = gs.PCGrad(generator=torch.Generator().manual_seed(seed))
    assert bool((method.weights(jacobian @ jacobian.mT) >= 1).all())


@given(jacobian=jacobians())
def test_upgrad_weights_are_at_least_those_of_the_mean(jacobian: Tensor) -> None:
    weights = gs.UPGrad().solve(kernels.gramian([jacobian])[0])
    assert bool((weights >= 1 / len(jacobian)).all())


@given(jacobian=jacobians())
def test_imtlg_weights_add_up_to_one_or_are_zero(jacobian: Tensor) -> None:
    weights = gs.IMTLG().solve(kernels.gramian([jacobian])[0])
    assert not weights.any() or abs(float(weights.sum()) - 1) <= 1e-9 * float(weights.abs().sum())
    assert bool((weights[norms_of(jacobian) == 0] == 0).all())


@given(jacobian=jacobians(dtypes=(torch.float64,)))
def test_graddrop_keeps_one_sign_in_every_coordinate(jacobian: Tensor) -> None:
    direction = gs.GradDrop()(jacobian)
    positive, negative = jacobian.clamp_min(0).sum(0), jacobian.clamp_max(0).sum(0)
    tolerance = 1e-12 * jacobian.abs().sum(0)
    assert bool((((direction - positive).abs() <= tolerance) | ((direction - negative).abs() <= tolerance)).all())


@given(jacobian=jacobians(), alpha=strategies.sampled_from([0.0, 0.5, 1.5]), calls=strategies.integers(1, 5))
def test_gradnorm_weights_are_positive_with_mean_one(jacobian: Tensor, alpha: float, calls: int) -> None:
    method = gs.GradNorm(alpha, progress="gradient", lr=0.5)
    for call in range(calls):
        weights = method.solve(kernels.gramian([jacobian.roll(call, 0)])[0])
        assert bool((weights > 0).all())
        assert abs(float(weights.mean()) - 1) < 1e-12


@given(
    jacobian=jacobians(max_rows=2, dtypes=(torch.float64,)),
    contract=strategies.sampled_from(list(CONTRACTS.values())),
    cut=strategies.integers(0, 40),
)
def test_one_matrix_or_blocks(jacobian: Tensor, contract: object, cut: int) -> None:
    if contract.kind != "gramian":
        return
    losses = losses_of(jacobian)
    whole = contract.build()(jacobian, losses)
    parts = contract.build()([jacobian[:, :cut], jacobian[:, cut:].unsqueeze(-1)], losses)
    absolute = 1e-9 * float(norms_of(jacobian).max())
    assert_near(torch.cat([part.flatten() for part in parts]), whole, 1e-7, absolute)


@given(jacobian=jacobians())
@settings(max_examples=100)
def test_gramian_is_that_of_the_rows(jacobian: Tensor) -> None:
    wide, norms = jacobian.double(), norms_of(jacobian)
    error = (kernels.gramian([jacobian])[0] - wide @ wide.mT).abs()
    assert bool((error <= 1e-13 * torch.outer(norms, norms)).all())


@given(jacobian=jacobians(), seed=strategies.integers(0, 1000))
@settings(max_examples=100)
def test_combine_is_rounded_once(jacobian: Tensor, seed: int) -> None:
    weights = torch.rand(1, len(jacobian), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    (found,) = kernels.combine([jacobian], weights)
    expected = (weights[0].unsqueeze(1) * jacobian.double()).sum(0)
    allowed = torch.finfo(jacobian.dtype).eps * expected.abs() + 1e-14 * float(norms_of(jacobian).max())
    assert bool(((found.double() - expected).abs() <= allowed).all())
