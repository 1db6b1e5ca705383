"""The K x K solvers against exact rational arithmetic, SciPy, and the conditions that only the optimum fulfils."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from references import exact_dual_cone_projections, exact_min_norm
from scipy.optimize import minimize, nnls
from support import DIFFICULT, assert_near, gaussian, norms_of, of_rank, with_cosine
from torch import Tensor

from gradsurgery.solvers import min_norm_weights, nonnegative_quadratic, project_on_dual_cone
from gradsurgery.solvers import nnls as nnls_module
from gradsurgery.solvers.scaling import RIDGE, unit_gramian

Array = NDArray[np.float64]

SIZES = [2, 3, 4, 5, 8, 13, 16, 17, 24, 32, 48, 64]


def min_norm_point(jacobian: Array) -> Array:
    direction: Array = min_norm_weights((jacobian @ jacobian.T)[None])[0] @ jacobian
    return direction


def projections(jacobian: Array) -> Array:
    combinations = np.eye(len(jacobian))[None]
    rows: Array = project_on_dual_cone((jacobian @ jacobian.T)[None], combinations)[0] @ jacobian
    return rows


def degenerate(seed: int) -> Iterator[Array]:
    """Jacobians on which active-set methods like to cycle: ties, repeats, opposed rows, dependent rows."""
    source = np.random.default_rng(seed)
    for size in (3, 6, 12, 24):
        columns = int(source.integers(1, 2 * size))
        yield source.integers(-1, 2, (size, max(1, columns // 3))).astype(float)
        base = source.standard_normal((max(1, size // 3), columns))
        yield base[source.integers(0, len(base), size)] * source.choice([-1.0, 1.0], (size, 1))
        yield base[source.integers(0, len(base), size)] * 10.0 ** source.uniform(-3, 3, (size, 1))
        yield source.standard_normal((size, 2)) @ source.standard_normal((2, columns))
        closed = source.standard_normal((size, columns))
        closed[-1] = -closed[:-1].sum(0)
        yield closed


# --- exact solutions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFICULT)
def test_min_norm_point_is_exact(name: str) -> None:
    jacobian = DIFFICULT[name]
    absolute = 1e-12 * float(norms_of(jacobian).max())
    assert_near(min_norm_point(jacobian.numpy()), exact_min_norm(jacobian.numpy()), 1e-8, absolute)


@pytest.mark.parametrize("name", DIFFICULT)
def test_projections_are_exact(name: str) -> None:
    jacobian = DIFFICULT[name].numpy()
    expected = exact_dual_cone_projections(jacobian, np.eye(len(jacobian)))
    for found, row, length in zip(projections(jacobian), expected, np.linalg.norm(jacobian, axis=1), strict=True):
        assert_near(found, row, 1e-8, 1e-12 * length)  # each relative to its own row


@pytest.mark.parametrize("seed", range(25))
def test_small_integers(seed: int) -> None:
    source = np.random.default_rng(seed)
    jacobian = source.integers(-3, 4, (source.integers(2, 6), source.integers(1, 5))).astype(float)
    assert_near(min_norm_point(jacobian), exact_min_norm(jacobian), 1e-12, 1e-14)
    expected = exact_dual_cone_projections(jacobian, np.eye(len(jacobian)))
    assert_near(projections(jacobian), expected, 1e-12, 1e-13)


@pytest.mark.parametrize("cosine", [0.5, 0.0, -0.5, -0.99, -0.9999])
@pytest.mark.parametrize("ratio", [1.0, 3.0, 1e6])
def test_closed_forms_for_two(cosine: float, ratio: float) -> None:
    jacobian = np.array([[1.0, 0.0], [ratio * cosine, ratio * np.sqrt(1.0 - cosine**2)]])
    first, second = jacobian
    difference = second - first
    share = np.clip(-first @ difference / (difference @ difference), 0.0, 1.0)  # of the longer row
    assert_near(min_norm_point(jacobian), first + share * difference, 1e-10)
    expected = [
        row - min(0.0, row @ other) / (other @ other) * other for row, other in ((first, second), (second, first))
    ]
    for found, row in zip(projections(jacobian), expected, strict=True):
        assert_near(found, row, 1e-10)


# --- SciPy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("columns", [3, 40])
def test_projections_against_scipy(size: int, columns: int) -> None:
    jacobian = gaussian(size, columns, seed=size).numpy()
    for row, found in zip(jacobian, projections(jacobian), strict=True):
        multipliers, _ = nnls(jacobian.T, -row)
        assert_near(found, row + multipliers @ jacobian, 1e-8, 1e-10 * float(np.linalg.norm(row)))


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_min_norm_point_against_scipy(size: int, shift: float) -> None:
    jacobian = gaussian(size, 40, seed=size).numpy() + shift
    gramian = jacobian @ jacobian.T
    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": np.ones_like}
    found = minimize(
        lambda w: 0.5 * w @ gramian @ w,
        np.full(size, 1.0 / size),
        jac=lambda w: gramian @ w,
        bounds=[(0.0, None)] * size,
        constraints=simplex,
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert found.success
    assert_near(min_norm_point(jacobian), found.x @ jacobian, 1e-5)  # as exact as SLSQP is
    ours = min_norm_point(jacobian)
    assert 0.5 * ours @ ours <= found.fun * (1 + 1e-12)


@pytest.mark.parametrize("size", [2, 8, 20, 32])
def test_quadratic_against_scipy(size: int) -> None:
    source = np.random.default_rng(size)
    matrix = source.standard_normal((3, 2 * size, size)) / np.sqrt(2 * size)
    targets = source.standard_normal((3, 4, 2 * size))
    found = nonnegative_quadratic(matrix.transpose(0, 2, 1) @ matrix, targets @ matrix, RIDGE)
    for factor, goals, rows in zip(matrix, targets, found, strict=True):
        for goal, row in zip(goals, rows, strict=True):
            assert_near(row, nnls(factor, goal)[0], 1e-9, 1e-12)


# --- optimality conditions, which prove the optimum --------------------------------------------------------------


def assert_min_norm_conditions(jacobian: Array) -> None:
    weights = min_norm_weights((jacobian @ jacobian.T)[None])[0]
    norms = np.linalg.norm(jacobian, axis=1)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    if not norms.any():
        return
    assert (weights[norms == 0] == 0).all()
    direction = weights @ jacobian
    longest_used = norms[weights > 0].max()
    progress = jacobian @ direction - direction @ direction
    assert (progress[norms > 0] >= -1e-10 * norms[norms > 0] * longest_used).all()
    assert abs(weights @ progress) <= 1e-10 * longest_used**2


def assert_dual_cone_conditions(jacobian: Array) -> None:
    norms = np.linalg.norm(jacobian, axis=1)
    weights = project_on_dual_cone((jacobian @ jacobian.T)[None], np.eye(len(jacobian))[None])[0]
    multipliers = weights - np.eye(len(jacobian))
    directions = weights @ jacobian
    products = directions @ jacobian.T
    assert (multipliers >= 0).all()
    assert (multipliers[:, norms == 0] == 0).all()
    assert (products >= -1e-8 * norms[:, None] * norms[None, :]).all()
    assert (np.abs(multipliers * products) <= 1e-8 * norms[:, None] ** 2).all()


@pytest.mark.parametrize("size", SIZES)
def test_conditions_at_every_size(size: int) -> None:
    shapes = [gaussian(size, 2 * size), gaussian(size, size + 1), gaussian(size, 1000), of_rank(size // 2, size, 99)]
    hard = [with_cosine(size, cosine, columns=70) for cosine in (-0.5, -0.99, -0.9999)]
    scaled = [10.0 ** torch.linspace(-3, 3, size).double().unsqueeze(1) * matrix for matrix in (shapes[0], hard[2])]
    for matrix in [*shapes, *hard, *scaled]:
        assert_min_norm_conditions(matrix.numpy())
        assert_dual_cone_conditions(matrix.numpy())


def assert_conditions_on_degenerate_problems(seed: int) -> None:
    for matrix in degenerate(seed):
        assert_min_norm_conditions(matrix)
        assert_dual_cone_conditions(matrix)


@pytest.mark.parametrize("seed", range(15))
def test_conditions_on_degenerate_problems(seed: int) -> None:
    assert_conditions_on_degenerate_problems(seed)


@pytest.mark.parametrize("wrong", [0.0, 0.5, 1.0])
def test_conditions_can_fail(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    jacobian = DIFFICULT["two in conflict"].numpy()
    weights = np.array([[wrong, 1.0 - wrong]])
    monkeypatch.setitem(globals(), "min_norm_weights", lambda gramian: weights)
    monkeypatch.setitem(globals(), "project_on_dual_cone", lambda gramian, start: start + wrong / 10)
    with pytest.raises(AssertionError):
        assert_min_norm_conditions(jacobian)
    with pytest.raises(AssertionError):
        assert_dual_cone_conditions(jacobian)


# --- how the answer is found does not matter ---------------------------------------------------------------------


@pytest.mark.parametrize(("well_conditioned", "rounds"), [(True, 0), (True, 1), (True, 8), (False, 0)])
@pytest.mark.parametrize("large", [1, 10**9])
def test_all_ways_agree(well_conditioned: bool, rounds: int, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [matrix.numpy() for matrix in DIFFICULT.values()] + list(degenerate(100))
    problems += [gaussian(size, 70, size).numpy() for size in (5, 30)]
    expected = [(min_norm_point(matrix), projections(matrix)) for matrix in problems]
    if not well_conditioned:
        monkeypatch.setattr(nnls_module, "is_well_conditioned", lambda hessian: False)
    monkeypatch.setattr(nnls_module, "_ROUNDS_OF_PIVOTING", rounds)
    monkeypatch.setattr(nnls_module, "_SMALL_ROUNDS", rounds)
    monkeypatch.setattr(nnls_module, "_LARGE", large)
    monkeypatch.setattr(nnls_module, "_WORTH_GATHERING", large)
    for matrix, (point, rows) in zip(problems, expected, strict=True):
        longest = float(np.linalg.norm(matrix, axis=1).max())
        assert_near(min_norm_point(matrix), point, 1e-8, 1e-11 * longest)
        assert_near(projections(matrix), rows, 1e-8, 1e-9 * longest)


def test_pivoting_alone_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnls_module, "is_well_conditioned", lambda hessian: True)
    solve = nnls_module._solve

    def with_ridge(matrix: Array, right: Array, passive: NDArray[np.bool_]) -> Array:
        return solve(matrix + RIDGE * np.eye(matrix.shape[2]), right, passive)

    monkeypatch.setattr(nnls_module, "_solve", with_ridge)
    monkeypatch.setattr(nnls_module, "_approach", lambda matrix, right, x, ridge: x)
    with pytest.raises(AssertionError):
        assert_conditions_on_degenerate_problems(seed=1)


@pytest.mark.parametrize("size", [3, 20])
def test_batch_is_a_loop(size: int) -> None:
    matrices = np.stack([gaussian(size, 30, seed).numpy() * 10.0**seed for seed in range(5)])
    gramians = matrices @ matrices.transpose(0, 2, 1)
    starts = np.random.default_rng(0).standard_normal((5, 4, size))
    weights, projected = min_norm_weights(gramians), project_on_dual_cone(gramians, starts)
    for index in range(5):
        assert_near(weights[index], min_norm_weights(gramians[index : index + 1])[0], 1e-10)
        alone = project_on_dual_cone(gramians[index : index + 1], starts[index : index + 1])[0]
        assert_near(projected[index], alone, 1e-10)


def test_inputs_are_left_alone() -> None:
    jacobian = gaussian(20, 30).numpy()
    gramian, start = (jacobian @ jacobian.T)[None], np.eye(20)[None]
    copies = gramian.copy(), start.copy()
    min_norm_weights(gramian)
    project_on_dual_cone(gramian, start)
    assert np.array_equal(gramian, copies[0])
    assert np.array_equal(start, copies[1])


# --- laws --------------------------------------------------------------------------------------------------------


def test_projection_of_a_point_inside_is_that_point() -> None:
    jacobian = gaussian(6, 10, seed=3).numpy()
    gramian = (jacobian @ jacobian.T)[None]
    once = project_on_dual_cone(gramian, np.eye(6)[None])
    assert_near(project_on_dual_cone(gramian, once), once, 1e-9)
    assert np.abs(once - np.eye(6)).max() > 0.01


def test_zero_rows_keep_their_entry() -> None:
    jacobian = DIFFICULT["zero and opposed"].numpy()
    start = np.arange(1.0, 5.0)[None, None]
    found = project_on_dual_cone((jacobian @ jacobian.T)[None], start)[0, 0]
    assert found[1] == 2.0
    assert_near(found @ jacobian, exact_dual_cone_projections(jacobian, start[0])[0], 1e-9, 1e-11)


def test_equal_weights_where_all_rows_are_zero() -> None:
    assert min_norm_weights(np.zeros((2, 4, 4))).tolist() == [[0.25] * 4] * 2


@pytest.mark.parametrize("scale", [1e-150, 1e-6, 1.0, 1e6, 1e150])
def test_unit_gramian(scale: float) -> None:
    jacobian = DIFFICULT["zero row"].numpy() * np.array([[1.0], [1e3], [1.0], [1e-3]])
    cosines, norms, nonzero = unit_gramian((scale * jacobian @ jacobian.T * scale)[None])
    assert nonzero.tolist() == [[True, True, False, True]]
    assert_near(norms[0], np.where(nonzero[0], scale * np.linalg.norm(jacobian, axis=1), 1.0), 1e-12)
    unit = jacobian / np.where(nonzero[0], np.linalg.norm(jacobian, axis=1), 1.0)[:, None]
    assert_near(cosines[0], unit @ unit.T + np.diag([0.0, 0.0, 1.0, 0.0]), 1e-12)


def _with_condition(condition: float, rows: int, columns: int, seed: int) -> Tensor:
    source = np.random.default_rng(seed)
    left, _ = np.linalg.qr(source.standard_normal((rows, rows)))
    right, _ = np.linalg.qr(source.standard_normal((columns, rows)))
    return torch.from_numpy(left * np.geomspace(1.0, condition**-0.5, rows) @ right.T)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("seed", range(6))
def test_accuracy_up_to_a_condition_of_a_million(condition: float, seed: int) -> None:
    jacobian = _with_condition(condition, 5, 7, seed).numpy()
    assert_near(min_norm_point(jacobian), exact_min_norm(jacobian), 1e-9)
    assert_near(projections(jacobian), exact_dual_cone_projections(jacobian, np.eye(5)), 1e-9)


@pytest.mark.parametrize("name", DIFFICULT)
def test_ridge_does_not_matter(name: str) -> None:
    jacobian = DIFFICULT[name].numpy()
    gramian = (jacobian @ jacobian.T)[None]
    longest = float(np.linalg.norm(jacobian, axis=1).max())
    point, rows = min_norm_point(jacobian), projections(jacobian)
    for ridge in (1e-14, 1e-12, 1e-11):
        assert_near(min_norm_weights(gramian, ridge)[0] @ jacobian, point, 1e-8, 1e-10 * longest)
        found = project_on_dual_cone(gramian, np.eye(len(jacobian))[None], ridge)[0] @ jacobian
        assert_near(found, rows, 1e-8, 1e-10 * longest)
