"""Aligned-MTL against extended precision, closed forms and the published formula."""

import math

import mpmath
import numpy as np
import pytest
import torch
from precise import aligned_direction, well_posed
from support import DIFFICULT, assert_near, condition_of, gaussian, norms_of
from torch import Tensor

from gradsurgery.aggregators import AlignedMTL
from gradsurgery.solvers.alignment import Scale, aligned_weights

SCALES: list[Scale] = ["min", "median", "rmse"]


def uniform(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


@pytest.mark.parametrize("kind", well_posed(2))
@pytest.mark.parametrize("count", [2, 3, 8, 16, 40])
def test_direction_is_exact(count: int, kind: str) -> None:
    jacobian = torch.from_numpy(well_posed(count)[kind])
    assert condition_of(jacobian) <= 1e6
    for scale in SCALES if count <= 8 else SCALES[:1]:
        assert_near(AlignedMTL(scale)(jacobian), aligned_direction(jacobian.numpy(), scale, uniform(count)), 1e-9)
    single = jacobian.float()
    expected = aligned_direction(single.double().numpy(), "min", uniform(count))
    assert_near(AlignedMTL()(single), expected, 1e-5)


def exact(jacobian: Tensor, scale: Scale, preference: np.ndarray) -> np.ndarray:
    """The same for rows that span all columns, from their orthogonal factor J (J^T J)^(-1/2), in 80 digits."""
    with mpmath.workdps(80):
        rows = mpmath.matrix(jacobian.tolist())
        values, vectors = mpmath.eigsy(rows.T * rows)
        lengths = sorted(mpmath.sqrt(value) for value in values)
        mean = mpmath.sqrt(sum(values) / len(values))
        size = {"min": lengths[0], "median": lengths[(len(lengths) - 1) // 2], "rmse": mean}[scale]
        inverse = vectors * mpmath.diag([1 / mpmath.sqrt(value) for value in values]) * vectors.T
        return np.array([float(x) for x in size * inverse * rows.T * mpmath.matrix(preference.tolist())])


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6, 1e9, 1e18])
@pytest.mark.parametrize(("count", "rank"), [(3, 2), (8, 7), (8, 3), (5, 5), (4, 1)])
def test_dependent_rows_of_different_length(count: int, rank: int, ratio: float) -> None:
    spread = np.random.default_rng(count).permutation(np.geomspace(1.0, ratio, count))
    jacobian = torch.from_numpy(spread[:, None]) * gaussian(count, rank, seed=rank)
    backwards = torch.arange(count).flip(0)
    for scale in SCALES:
        direction = AlignedMTL(scale)(jacobian)
        assert_near(direction, exact(jacobian, scale, uniform(count)), 1e-9)
        assert_near(AlignedMTL(scale)(jacobian[backwards]), direction, 1e-9)
        assert_near(AlignedMTL(scale)(3e-7 * jacobian) / 3e-7, direction, 1e-9)


def test_long_duplicates_do_not_drown_short_rows() -> None:
    row, other = gaussian(2, 6)
    jacobian = torch.stack([1e9 * row, math.pi * 1e9 * row, 1e-9 * other])
    single = torch.stack([math.hypot(1e9, math.pi * 1e9) * row, 1e-9 * other])
    share = torch.tensor([(1 + math.pi) / math.hypot(1.0, math.pi), 1.0]) / 3  # of the two together, at right angles
    expected = AlignedMTL(preference=share)(single)
    assert_near(AlignedMTL()(jacobian), expected, 1e-7)


@pytest.mark.parametrize("cosine", [0.9, 0.0, -0.5, -0.99, -0.9999])
@pytest.mark.parametrize("ratio", [1.0, 30.0, 1e6])
def test_two_losses(cosine: float, ratio: float) -> None:
    """The inverse square root of a 2 x 2 matrix: (tr G + 2 sqrt det G)^(-1/2) (I + sqrt det G G^-1)."""
    sine = math.sqrt(1 - cosine**2)
    jacobian = torch.tensor([[ratio, 0.0], [cosine, sine]], dtype=torch.float64)
    root = ratio * sine  # of the determinant
    trace = ratio**2 + 1
    smallest = root**2 / (trace / 2 + math.sqrt(trace**2 / 4 - root**2))
    inverse_times_root = (
        torch.tensor([[1.0, -ratio * cosine], [-ratio * cosine, ratio**2]], dtype=torch.float64) / root
    )
    inverse_root = (torch.eye(2).double() + inverse_times_root) / math.sqrt(trace + 2 * root)
    expected = math.sqrt(smallest) * (inverse_root @ torch.tensor([0.5, 0.5], dtype=torch.float64)) @ jacobian
    assert_near(AlignedMTL()(jacobian), expected, 1e-9)


def published(jacobian: Tensor, scale: str) -> Tensor:
    """The balance transformation of Senushkin et al., for moderate norms; their preferences are 1, ours 1 / K."""
    gramian = jacobian @ jacobian.mT
    values, vectors = torch.linalg.eigh(gramian)
    kept = values > 1e-10 * values.max()
    values, vectors = values[kept], vectors[:, kept]
    size = {"min": values.min(), "median": values.median(), "rmse": values.mean()}[scale].sqrt()
    transformation = size * vectors @ torch.diag(1 / values.sqrt()) @ vectors.mT
    return transformation.sum(1) / len(jacobian) @ jacobian


MODERATE = ["three", "five", "zero row", "more rows than columns", "one column", "rank two", "duplicates", "parallel"]
MODERATE += ["exactly opposed", "opposed, and others", "zero and opposed", "zero rows first and last"]


@pytest.mark.parametrize("name", MODERATE)
@pytest.mark.parametrize("scale", SCALES)
def test_is_the_published_transformation(scale: Scale, name: str) -> None:
    jacobian = DIFFICULT[name]
    assert_near(AlignedMTL(scale)(jacobian), published(jacobian, scale), 1e-9)


@pytest.mark.parametrize("spread", [1.0, 1e3, 1e6])
def test_aligned_gradients_are_orthogonal_and_equally_long(spread: float) -> None:
    jacobian = gaussian(5, 12, seed=1) * torch.logspace(0, math.log10(spread), 5, dtype=torch.float64).unsqueeze(1)
    aligned = torch.stack([AlignedMTL(preference=row)(jacobian) for row in torch.eye(5)])
    smallest = torch.linalg.svdvals(jacobian)[-1]
    assert_near(aligned @ aligned.mT / smallest**2, torch.eye(5), 1e-9)
    assert bool((jacobian * aligned).sum(1).gt(0).all())  # each on its gradient's side


def test_preferences_belong_to_objectives() -> None:
    jacobian = gaussian(3, 7)
    method = AlignedMTL("rmse", preference=[0.2, 0.0, 3.0, 1.0])
    numbers = np.array([3.0, 0.2, 1.0])
    assert_near(method(jacobian, rows=[2, 0, 3]), aligned_direction(jacobian.numpy(), "rmse", numbers), 1e-12)
    with pytest.raises(ValueError, match=r"^AlignedMTL: `preference` must have one entry a loss, got 4 for loss 4\."):
        method(jacobian, rows=[0, 1, 4])


@pytest.mark.parametrize("name", DIFFICULT)
@pytest.mark.parametrize("scale", SCALES)
def test_always_finite_and_zero_rows_have_no_weight(scale: Scale, name: str) -> None:
    jacobian = DIFFICULT[name]
    for matrix in (jacobian, jacobian.float().double(), jacobian * torch.logspace(6, -6, len(jacobian)).unsqueeze(1)):
        weights = AlignedMTL(scale).weights(matrix @ matrix.mT)
        assert bool(weights.isfinite().all())
        assert bool((weights[norms_of(matrix) == 0] == 0).all())


def test_a_batch_of_very_different_problems() -> None:
    names = ["norms a million apart, cosine -.9999", "opposed, and others", "zero row", "strong conflict"]
    problems = [DIFFICULT[name][:4] for name in names] + [torch.zeros(4, 2).double()]
    gramians = np.stack([(rows @ rows.mT).numpy() for rows in problems])
    for scale in SCALES:
        together = aligned_weights(gramians, uniform(4), scale)
        for weights, rows in zip(together, problems, strict=True):
            assert_near(weights @ rows.numpy(), AlignedMTL(scale)(rows), 1e-9)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AlignedMTL("max"), r"AlignedMTL: `scale` must be one of \['min', 'median', 'rmse'\], got 'max'"),
        (lambda: AlignedMTL(preference=[]), r"AlignedMTL: `preference` must be finite numbers >= 0, .*, got \[\]"),
        (lambda: AlignedMTL(preference=[1.0, -1.0]), r"AlignedMTL: `preference` must be .*, got \[1.0, -1.0\]"),
        (lambda: AlignedMTL(preference=[math.nan]), r"AlignedMTL: `preference` must be .*, got \[nan\]"),
    ],
)
def test_invalid_options(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build()
