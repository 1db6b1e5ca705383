"""The solvers for a GPU: as exact as those on the host, by operations that a CUDA graph can capture.

What needs a GPU is skipped without one. The rest runs on the CPU, where the same operations give the numbers, and on
the meta device, which shows what the operations are.
"""

import copy
import math
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from certificates import certified_min_norm, certified_projection
from hypothesis import HealthCheck, assume, given, settings, strategies
from numpy.typing import NDArray
from precise import aligned_direction, equal_cosine_directions, well_posed
from references import exact_dual_cone_projections, exact_min_norm
from support import (
    DIFFICULT,
    assert_near,
    assert_no_host_sync,
    assert_same_bits,
    condition_of,
    gaussian,
    jacobians,
    norms_of,
    of_rank,
    state_of,
    with_cosine,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradsurgery as gs
from gradsurgery import aggregators
from gradsurgery.aggregators import CONTRACTS, IMTLG, MGDA, AlignedMTL, ConFIG, DualProj, GramianAggregator, UPGrad
from gradsurgery.aggregators import host as placement
from gradsurgery.aggregators.pcgrad import order_on_device
from gradsurgery.generators import draws_there
from gradsurgery.kernels import project
from gradsurgery.solvers import aligned_weights, device
from gradsurgery.solvers.device import descent, graded, jacobi, nnls

Array = NDArray[np.float64]
Build = Callable[[], GramianAggregator]

METHODS: dict[str, Build] = {
    "MGDA": MGDA,
    "MGDA of unit rows": lambda: MGDA("l2"),
    "UPGrad": UPGrad,
    "DualProj": DualProj,
    "IMTLG": IMTLG,
    "ConFIG": ConFIG,
    "AlignedMTL": AlignedMTL,
    "AlignedMTL, median": lambda: AlignedMTL("median"),
    "AlignedMTL, rmse": lambda: AlignedMTL("rmse"),
}
CAPTURABLE = [
    method
    for method, contract in CONTRACTS.items()
    if "no_host_sync" in contract.guarantees and contract.kind == "gramian"
]


@contextmanager
def on_the_device() -> Iterator[None]:
    """Tensors on the CPU take the way of those on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "_stays", lambda gramian: True)
        yield


def direction(build: Build, jacobian: Tensor) -> Tensor:
    with on_the_device():
        found: Tensor = build()(jacobian)
    return found


def min_norm(jacobian: Array) -> Array:
    return device.min_norm_weights(torch.from_numpy(jacobian @ jacobian.T)[None])[0].numpy()


def projections(jacobian: Array, starts: Array | None = None) -> Array:
    """The weights of the projections of the rows, or of other combinations."""
    starts = np.eye(len(jacobian)) if starts is None else starts
    gramian = torch.from_numpy(jacobian @ jacobian.T)[None]
    return device.project_on_dual_cone(gramian, torch.from_numpy(starts)[None])[0].numpy()


def degenerate(size: int, seed: int) -> dict[str, Array]:
    """Ties, repeats, opposed rows and dependent rows."""
    source = np.random.default_rng(seed)
    base = source.standard_normal((max(1, size // 3), size))
    closed = source.standard_normal((size, size + 2))
    closed[-1] = -closed[:-1].sum(0)
    return {
        "ties": source.integers(-1, 2, (size, max(1, size // 3))).astype(float),
        "repeats": base[source.integers(0, len(base), size)] * source.choice([-1.0, 1.0], (size, 1)),
        "repeats of any length": base[source.integers(0, len(base), size)] * 10.0 ** source.uniform(-3, 3, (size, 1)),
        "rank two": of_rank(2, size, size, seed=seed).numpy(),
        "closed": closed,
    }


# --- the conditions that only the optimum fulfils ----------------------------------------------------------------


def assert_shortest(jacobian: Array, weights: Array, slack: float = 1e-10) -> None:
    norms = np.linalg.norm(jacobian, axis=1)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    if norms.any():
        assert (weights[norms == 0] == 0).all()
        shortest = weights @ jacobian
        longest_used = norms[weights > 0].max()
        progress = jacobian @ shortest - shortest @ shortest
        assert (progress[norms > 0] >= -slack * norms[norms > 0] * longest_used).all()
        assert abs(weights @ progress) <= slack * longest_used**2


def assert_projected(jacobian: Array, weights: Array, slack: float = 1e-10) -> None:
    norms = np.linalg.norm(jacobian, axis=1)
    multipliers = weights - np.eye(len(jacobian))
    products = weights @ jacobian @ jacobian.T
    assert multipliers.min() >= 0
    assert (multipliers[:, norms == 0] == 0).all()
    allowed = slack * norms[:, None] * norms
    assert (products >= -allowed).all()
    assert (products * (multipliers > 0) <= allowed).all()


@pytest.mark.parametrize("wrong", [-0.01, 0.01])
def test_conditions_can_fail(wrong: float) -> None:
    jacobian = DIFFICULT["two in conflict"].numpy()
    change = wrong * np.array([1.0, -1.0])
    with pytest.raises(AssertionError):
        assert_shortest(jacobian, min_norm(jacobian) + change)
    with pytest.raises(AssertionError):
        assert_projected(jacobian, projections(jacobian) + wrong)


@pytest.mark.parametrize("size", [2, 5, 8, 9, 16, 33])
@pytest.mark.parametrize("seed", range(3))
def test_conditions_on_degenerate_problems(size: int, seed: int) -> None:
    for jacobian in degenerate(size, seed).values():
        assert_shortest(jacobian, min_norm(jacobian))
        assert_projected(jacobian, projections(jacobian))


@pytest.mark.parametrize("size", [3, 8, 9, 20, 64])
def test_conditions_at_every_size(size: int) -> None:
    shapes = [gaussian(size, 2 * size), gaussian(size, 3), with_cosine(size, -0.9999, columns=70)]
    shapes.append(10.0 ** torch.linspace(-3, 3, size).double().unsqueeze(1) * shapes[2])
    for jacobian in shapes:
        assert_shortest(jacobian.numpy(), min_norm(jacobian.numpy()))
        if size < 64:
            assert_projected(jacobian.numpy(), projections(jacobian.numpy()))


LAWS = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@LAWS
@given(jacobians(max_rows=12))
def test_conditions_hold_for_any_jacobian(jacobian: Tensor) -> None:
    rows = jacobian.double().numpy()
    assert_shortest(rows, min_norm(rows), 1e-8)
    assert_projected(rows, projections(rows), 1e-7)  # multipliers of rows that are nearly opposed reach a million


@settings(LAWS, max_examples=15)
@given(jacobians(max_rows=64, max_columns=80))
def test_conditions_hold_for_many_rows(jacobian: Tensor) -> None:
    rows = jacobian.double().numpy()
    assert_shortest(rows, min_norm(rows), 1e-8)


@LAWS
@given(
    size=strategies.integers(1, 11),
    seed=strategies.integers(0, 2**31),
    condition=strategies.floats(0, 5),
    spread=strategies.floats(0, 6),
    scale=strategies.integers(-12, 12),
)
def test_as_on_the_host_up_to_a_condition_of_a_million(
    size: int, seed: int, condition: float, spread: float, scale: int
) -> None:
    source = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(source.standard_normal((size, size)))
    rows = rotation * np.logspace(0, -condition / 2, size) @ source.standard_normal((size, size + 2))
    jacobian = torch.from_numpy(10.0**scale * source.permutation(np.logspace(0, -spread, size))[:, None] * rows)
    assume(condition_of(jacobian) <= 1e6)
    for build in METHODS.values():
        assert_near(direction(build, jacobian), build()(jacobian), 1e-9)


# --- exact solutions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFICULT)
def test_exact_in_rational_arithmetic(name: str) -> None:
    jacobian = DIFFICULT[name].numpy()
    lengths = np.linalg.norm(jacobian, axis=1)
    assert_near(min_norm(jacobian) @ jacobian, exact_min_norm(jacobian), 1e-10, 1e-12 * lengths.max())
    expected = exact_dual_cone_projections(jacobian, np.eye(len(jacobian)))
    for found, row, length in zip(projections(jacobian) @ jacobian, expected, lengths, strict=True):
        assert_near(found, row, 1e-10, 1e-12 * length)


@pytest.mark.parametrize("count", [2, 3, 8, 9, 17, 40])
@pytest.mark.parametrize("kind", well_posed(2))
def test_certified(kind: str, count: int) -> None:
    jacobian = well_posed(count)[kind]
    weights = min_norm(jacobian)
    assert_near(weights @ jacobian, certified_min_norm(jacobian, weights), 1e-9)
    starts = np.stack([np.full(count, 1 / count), *np.eye(count)[:3]])
    for start, found in zip(starts, projections(jacobian, starts), strict=True):
        assert_near(found @ jacobian, certified_projection(jacobian, start, found), 1e-9)


@pytest.mark.parametrize("count", [2, 3, 8, 16, 40])
@pytest.mark.parametrize("kind", well_posed(2))
def test_in_extended_precision(kind: str, count: int) -> None:
    jacobian = well_posed(count)[kind]
    rows = torch.from_numpy(jacobian)
    expected_of_imtlg, expected_of_config = equal_cosine_directions(jacobian)
    assert_near(direction(IMTLG, rows), expected_of_imtlg, 1e-9)
    assert_near(direction(ConFIG, rows), expected_of_config, 1e-9)
    for scale in ("min", "median", "rmse") if count <= 8 else ("min",):
        expected = aligned_direction(jacobian, scale, np.full(count, 1 / count))
        assert_near(direction(lambda scale=scale: AlignedMTL(scale), rows), expected, 1e-9)  # type: ignore[misc]


# --- the same as on the host -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 24])
@pytest.mark.parametrize("kind", well_posed(2))
@pytest.mark.parametrize("name", METHODS)
def test_as_on_the_host(name: str, kind: str, count: int) -> None:
    jacobian = torch.from_numpy(well_posed(count)[kind] if count > 1 else gaussian(1, 4).numpy())
    assert_near(direction(METHODS[name], jacobian), METHODS[name]()(jacobian), 1e-9)


@pytest.mark.parametrize("difficulty", DIFFICULT)
@pytest.mark.parametrize("name", METHODS)
def test_as_on_the_host_where_it_is_difficult(name: str, difficulty: str) -> None:
    jacobian = DIFFICULT[difficulty]
    longest = float(norms_of(jacobian).max())
    assert_near(direction(METHODS[name], jacobian), METHODS[name]()(jacobian), 1e-9, 1e-12 * longest)


@pytest.mark.parametrize("ratio", [1e3, 1e6, 1e12, 1e18])
@pytest.mark.parametrize(("count", "rank"), [(3, 2), (8, 7), (8, 3), (5, 5), (4, 1), (20, 13)])
def test_aligned_rows_of_very_different_length(count: int, rank: int, ratio: float) -> None:
    spread = np.random.default_rng(count).permutation(np.geomspace(1.0, ratio, count))
    jacobian = spread[:, None] * gaussian(count, rank, seed=rank).numpy()
    gramian = (jacobian @ jacobian.T)[None]
    preference = np.linspace(0.5, 1.5, count)
    for scale in ("min", "median", "rmse"):
        found = device.aligned_weights(torch.from_numpy(gramian), torch.from_numpy(preference), scale)[0].numpy()
        assert_near(found @ jacobian, aligned_weights(gramian, preference, scale)[0] @ jacobian, 1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_preferences_and_batches(name: str) -> None:
    problems = torch.stack([DIFFICULT[key][:4] @ DIFFICULT[key][:4].mT for key in ("five", "zero row", "one column")])
    problems = torch.stack([problems, problems.flip(0)])
    build = METHODS[name]
    with on_the_device():
        together = build().solve(problems)
        alone = torch.stack([build().solve(gramian) for gramian in problems.flatten(0, 1)])
        assert build().solve(problems[:0]).shape == (0, 3, 4)
    assert_near(together.flatten(0, 1), alone, 1e-12)
    for method in (UPGrad, DualProj, AlignedMTL):
        preferring = method(preference=[1.0, 0.25, 0.0, 3.0, 2.0])
        expected = preferring.solve(problems, rows=[3, 0, 4, 2])
        with on_the_device():
            assert_near(preferring.solve(problems, rows=[3, 0, 4, 2]), expected, 1e-10)


@pytest.mark.parametrize("size", [4, 12])
@pytest.mark.parametrize("name", METHODS)
def test_powers_of_two_change_nothing(name: str, size: int) -> None:
    gramian = gaussian(size, 7) @ gaussian(size, 7).mT
    with on_the_device():
        for power in (-40, 12, 40):
            scaled = METHODS[name]().solve(4.0**power * gramian)
            expected = METHODS[name]().solve(gramian)
            assert_same_bits(scaled if "unit rows" not in name else scaled * 2.0**power, expected)


def test_nonfinite_problems_leave_the_rest_of_a_batch() -> None:
    gramians = torch.stack([torch.eye(3), torch.full((3, 3), torch.nan), torch.eye(3)]).double()
    with on_the_device():
        for build in METHODS.values():
            assert build().solve(gramians).isfinite().all(-1).tolist() == [True, False, True]


# --- how the answer is found does not matter ---------------------------------------------------------------------


@pytest.mark.parametrize("setting", [("_MOST_FOR_FACES", 0), ("_LARGEST_BLOCK", 1)])
def test_all_ways_agree(setting: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [matrix.numpy() for matrix in DIFFICULT.values()]
    problems += [matrix for seed in range(4) for matrix in degenerate(7, seed).values()]
    expected = [(min_norm(rows) @ rows, projections(rows) @ rows) for rows in problems]
    monkeypatch.setattr(nnls, *setting)
    for rows, (shortest, projected) in zip(problems, expected, strict=True):
        longest = float(np.linalg.norm(rows, axis=1).max())
        assert_near(min_norm(rows) @ rows, shortest, 1e-8, 1e-11 * longest)
        assert_near(projections(rows) @ rows, projected, 1e-8, 1e-10 * longest)


def test_steps_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    jacobian = well_posed(16)["nearly dependent"]
    assert_projected(jacobian, projections(jacobian))
    monkeypatch.setattr(descent, "_step", lambda regular, right, x, face: (x, face, torch.zeros_like(face)))
    with pytest.raises(AssertionError):
        assert_projected(jacobian, projections(jacobian))


def test_a_gramian_of_low_precision_gets_a_larger_ridge() -> None:
    rows = of_rank(3, 7, 40).numpy()
    gramian = torch.from_numpy(rows @ rows.T).float().double()[None]  # an eigenvalue of about -1e-7
    weights = device.min_norm_weights(gramian)[0].numpy()
    longest = np.linalg.norm(rows, axis=1).max()
    assert_near(weights @ rows, exact_min_norm(rows), 0.0, 1e-3 * longest)


# --- eigenvalues -------------------------------------------------------------------------------------------------


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "random": lambda size: gaussian(size, 2 * size),
    "rank half": lambda size: of_rank(max(1, size // 2), size, size),
    "one dimension": lambda size: gaussian(size, 1),
    "orthogonal": lambda size: torch.eye(size, dtype=torch.float64),
    "alike": lambda size: 1.0 + gaussian(size, size + 1) / 4,
    "two camps": lambda size: with_cosine(size, -0.9999, columns=size + 1),
    "chain": lambda size: torch.linalg.cholesky(
        (1.0 + 1e-12) * torch.eye(size).double()
        - torch.ones(size - 1).double().diag_embed(1).add(0).mul(0.5)
        - torch.ones(size - 1).double().diag_embed(-1).mul(0.5)
    ),
    "graded": lambda size: torch.logspace(0, -6, size).double().unsqueeze(1) * gaussian(size, size),
}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 17, 64])
@pytest.mark.parametrize("kind", SPECTRA)
def test_spectrum_against_lapack(kind: str, size: int) -> None:
    rows = SPECTRA[kind](size)
    gramian = (rows @ rows.mT)[None]
    cosines, norms, _ = device.unit_gramian(gramian)
    values, vectors = device.spectrum(cosines, norms)
    largest = float(values.max())
    assert bool((values.diff() >= 0).all())
    assert_near(values, torch.linalg.eigvalsh(gramian), 0.0, 1e-13 * largest)
    assert_near(vectors * values.unsqueeze(1) @ vectors.mT, gramian, 0.0, 1e-13 * largest)
    present = vectors[0, :, values[0] > 0]
    assert_near(present.mT @ present, torch.eye(present.shape[1]), 0.0, 1e-14 * size)


@LAWS
@given(strategies.integers(2, 24), strategies.integers(0, 2**31), strategies.integers(0, 9))
def test_small_eigenvalues_are_exact_too(size: int, seed: int, decades: int) -> None:
    source = np.random.default_rng(seed)
    unit = torch.linalg.qr(torch.from_numpy(source.standard_normal((size, size)))).Q  # C is exactly the identity
    lengths = torch.from_numpy(source.permutation(np.logspace(0, -decades, size)))
    cosines = torch.eye(size, dtype=torch.float64) + 0.1 * (unit + unit.mT - 2 * unit.diag().diag()) / size
    values = device.spectrum(cosines[None], lengths[None]).values[0]
    inverse = torch.linalg.inv(cosines) / lengths / lengths.unsqueeze(1)
    assert float(values[0]) == pytest.approx(1 / float(torch.linalg.eigvalsh(inverse)[-1]), rel=1e-12)


@pytest.mark.parametrize("size", [3, 8, 33, 64])
@pytest.mark.parametrize("kind", SPECTRA)
def test_sweeps_are_enough(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = SPECTRA[kind](size)
    cosines, norms, _ = device.unit_gramian((rows @ rows.mT)[None])
    once = device.spectrum(cosines, norms)
    columns = once.vectors * once.values.sqrt().unsqueeze(1)
    monkeypatch.setattr(jacobi, "graded_factor", lambda *_: columns / norms.unsqueeze(-1))
    again = device.spectrum(cosines, norms)
    assert_near(again.values, once.values, 1e-14)


def test_rows_that_depend_on_others_add_no_column() -> None:
    rows = of_rank(3, 8, 20)
    cosines, _, _ = device.unit_gramian((rows @ rows.mT)[None])
    found = graded.graded_factor(cosines, 10.0 ** torch.arange(8).double()[None], 1e-12)
    assert found.ne(0).any(1).tolist() == [[True] * 3 + [False] * 5]
    assert_near(found @ found.mT, cosines, 1e-14)


# --- what a GPU is asked to do -----------------------------------------------------------------------------------


class _Operations(TorchDispatchMode):
    """Counts what is launched on the meta device, and raises where a tensor is on the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launched: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        flat = torch.utils._pytree.tree_leaves((args, kwargs, result))
        if any(isinstance(leaf, Tensor) and not leaf.is_meta for leaf in flat):
            raise RuntimeError(f"{func} has a tensor on the host")
        name = func.overloadpacket.__name__
        if not func.is_view and name not in {"_unsafe_view", "empty", "squeeze_"}:
            self.launched[name] += 1
        return result


CAPTURED = set(
    re.findall(
        r"\w+",
        """__rshift__ _softmax _to_copy abs add addcmul addcmul_ all amax amin any arange argmax argmin
        bitwise_and bitwise_and_ bitwise_not bitwise_or bmm cat clamp clone constant_pad_nd copysign
        diag_embed div eq exp eye fill_ floor_divide full_like gather ge gt hypot index_select le
        linalg_vector_norm lt mean mm mul ne neg new_full new_ones ones_like pow rand randn reciprocal
        remainder rsqrt rsub scalar_tensor scatter_add_ sort sqrt stack sub sum where zeros_like""",
    )
)
"""None of them waits for a GPU, asks for errors, has a shape that depends on data or allocates outside of torch."""


def launches(call: Callable[[], object]) -> int:
    with assert_no_host_sync(), _Operations() as operations:
        call()
    assert set(operations.launched) <= CAPTURED, set(operations.launched) - CAPTURED
    return sum(operations.launched.values())


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device="meta")


def built_for(method: type[GramianAggregator], size: int) -> GramianAggregator:
    if method is aggregators.Constant:
        return aggregators.Constant(torch.linspace(0.5, 2.0, size))
    built = CONTRACTS[method].build()
    assert isinstance(built, GramianAggregator)
    return built


@pytest.mark.parametrize("size", [1, 2, 8, 9, 20])
@pytest.mark.parametrize("method", CAPTURABLE)
def test_methods_only_do_what_a_graph_can_capture(method: type[GramianAggregator], size: int) -> None:
    built = built_for(method, size)
    built.solve(meta(size, size), meta(size))  # Constant's weights are brought to the device once
    for shape in ((size, size), (3, size, size)):
        launches(lambda shape=shape: built.solve(meta(*shape), meta(size)))  # type: ignore[misc]


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("method", [gs.PCGrad, MGDA, UPGrad, IMTLG, AlignedMTL])
def test_a_whole_step_reads_nothing_on_the_host(method: Build, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device has none
    with torch.device("meta"):
        trunk, heads, inputs = nn.Linear(8, 5), [nn.Linear(5, 1) for _ in range(3)], torch.ones(4, 8)
    parameters = [*trunk.parameters(), *(parameter for head in heads for parameter in head.parameters())]
    wrapped = gs.MultiObjectiveOptimizer(torch.optim.SGD(parameters), method(), shared=trunk, engine=engine)
    for _ in range(2):  # the second one adds to gradients that are there
        losses = [head(trunk(inputs)).square().mean() for head in heads]
        with assert_no_host_sync():
            wrapped.backward(losses)
    assert all(parameter.grad is not None for parameter in parameters)


@pytest.mark.parametrize(
    "wrong", [torch.nonzero, torch.linalg.inv, lambda x: x + torch.ones(2, 2), torch.Tensor.tolist]
)
def test_what_a_graph_cannot_capture_is_found(wrong: Callable[[Tensor], object]) -> None:
    with pytest.raises(AssertionError):
        launches(lambda: wrong(meta(2, 2)))


@pytest.mark.parametrize("size", [2, 3, 8, 9, 17, 33])
def test_launches_are_as_many_as_stated(size: int) -> None:
    gramian, rows = meta(1, size, size), meta(1, size)
    even, sweeps = size + size % 2, 4 + math.ceil(math.log2(size + size % 2))
    spectrum = 15 * (even - 1) * sweeps + 12 * size + 20
    descending = (size + size // 2 + 8) * (2 * size + 83) + 500
    nonnegative = 4 * size + 190 if size <= 8 else descending + 2 * size + 30
    stated: list[tuple[Callable[[], object], int]] = [
        (lambda: device.spectrum(gramian, rows), spectrum),
        (lambda: device.aligned_weights(gramian, rows[0], "median"), spectrum + 45),
        (lambda: graded.graded_factor(gramian, rows, 1e-12), 12 * size + 2),
        (lambda: device.equal_projections(gramian, rows, approximate=False), 14 * size + 40),
        (lambda: device.nonnegative_quadratic(gramian, gramian, 1e-13), nonnegative),
    ]
    for call, number in stated:
        assert 0.8 * number <= launches(call) <= number


# --- randomness --------------------------------------------------------------------------------------------------


def test_orders_drawn_on_the_device_are_orders() -> None:
    gramian = gaussian(5, 9) @ gaussian(5, 9).mT
    order = order_on_device(gramian.expand(2, 3, 5, 5), gs.PCGrad(generator=torch.Generator().manual_seed(3)))
    assert order.shape == (4, 2, 3, 5)
    own = torch.arange(5).expand(1, 2, 3, 5)
    assert torch.cat([order, own]).sort(0).values.equal(torch.arange(5).view(5, 1, 1, 1).expand(5, 2, 3, 5))
    assert len(order.flatten(1).unique(dim=1).T) > 5
    here = gs.PCGrad(generator=torch.Generator().manual_seed(3))
    again = order_on_device(gramian, gs.PCGrad(generator=torch.Generator().manual_seed(3)))
    assert_near(project(gramian, again).sum(-2), here.weights(gramian), 1e-13)


@contextmanager
def gpu_whose_stream_is_captured(captured: bool = True) -> Iterator[torch.device]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captured)
        yield torch.device("cuda", 0)


def test_a_capture_needs_a_generator_on_the_device() -> None:
    with gpu_whose_stream_is_captured() as gpu:
        message = r"^PCGrad: `generator` must be on cuda:0 while .*generator=torch.Generator\('cuda:0'\).*register"
        with pytest.raises(RuntimeError, match=message):
            gs.PCGrad().looks_back(gpu)
        with pytest.raises(RuntimeError, match=message):
            gs.Chain(gs.Mean(), gs.PCGrad()).looks_back(gpu)
        with pytest.raises(RuntimeError, match="^Random: `generator`"):
            draws_there(torch.Generator(), gpu, True, "Random")
        with pytest.raises(RuntimeError, match=r"^GradDrop: `generator` .* call it outside of the graph\.$"):
            gs.GradDrop().looks_back(gpu)  # which takes no generator on a GPU
        assert not gs.MGDA().looks_back(gpu)
    with gpu_whose_stream_is_captured(False) as gpu:
        assert gs.PCGrad().looks_back(gpu)


def test_what_remembers_cannot_be_captured() -> None:
    with (
        gpu_whose_stream_is_captured() as gpu,
        pytest.raises(RuntimeError, match=r"^GradNorm: gradients must not be captured .* cuda:0\."),
    ):
        gs.GradNorm().looks_back(gpu)
    with gpu_whose_stream_is_captured(False) as gpu:
        assert gs.GradNorm().looks_back(gpu)


def test_what_is_solved_on_the_host_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "is_captured", lambda place: place.type == "meta")
    with pytest.raises(
        RuntimeError, match=r"^conflict_averse_weights: `gramian` must not be captured .*no_host_sync"
    ):
        gs.CAGrad().solve(meta(3, 3))


def test_a_generator_goes_back_where_it_was() -> None:
    method = gs.PCGrad(generator=torch.Generator().manual_seed(1))
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert_same_bits(other.generator.get_state(), method.generator.get_state())
        assert other.generator.device == torch.device("cpu")
    with pytest.raises(ValueError, match=r"^PCGrad: `state` must be that of a generator on cpu, got 16 bytes"):
        method.set_extra_state(torch.zeros(16, dtype=torch.uint8))
    with pytest.raises(
        TypeError, match=r"^PCGrad: `generator` must be a torch.Generator on the CPU or a GPU, got 3\."
    ):
        gs.PCGrad(generator=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^GradDrop: `generator` must be a torch.Generator on the CPU, got 3\."):
        gs.GradDrop(generator=3)  # type: ignore[arg-type]


def test_a_loss_that_is_unknown_leaves_no_weights() -> None:
    """Where losses are on a GPU, NaN stands for those that are not positive, wherever the Gramian is."""
    for normalization in ("loss", "loss+"):
        losses = torch.tensor([1.0, 2.0, math.nan], dtype=torch.float64)
        assert bool(MGDA(normalization).weights(torch.eye(3, dtype=torch.float64), losses).isnan().all())


# --- on a GPU ----------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def built_for_gpu(method: type[GramianAggregator], size: int) -> GramianAggregator:
    if issubclass(method, gs.Randomized):
        return method(generator=torch.Generator("cuda").manual_seed(0))
    return built_for(method, size)


@needs_gpu
@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("method", CAPTURABLE)
def test_nothing_waits_for_a_gpu(method: type[GramianAggregator], size: int) -> None:
    built = built_for_gpu(method, size)
    gramian, losses = (gaussian(size, 9) @ gaussian(size, 9).mT).cuda(), torch.ones(size).cuda()
    built.solve(gramian, losses)
    torch.cuda.set_sync_debug_mode("error")
    try:
        weights = built.solve(gramian, losses)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert weights.is_cuda
    if not built.stateful:
        assert_near(weights.cpu(), built.solve(gramian.cpu(), losses.cpu()), 1e-9)


@needs_gpu
@pytest.mark.parametrize("size", [8, 20])
@pytest.mark.parametrize("method", CAPTURABLE)
def test_a_graph_solves_what_it_is_given(method: type[GramianAggregator], size: int) -> None:
    built = built_for_gpu(method, size)
    gramian, losses = torch.eye(size, dtype=torch.float64).cuda(), torch.ones(size).cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        built.solve(gramian @ gramian, losses)  # the first product creates what products need
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    if isinstance(built, gs.Randomized):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions register on first use
            graph.register_generator_state(built.generator)
    with torch.cuda.graph(graph):
        weights = built.solve(gramian, losses)
    seen = []
    for seed in range(3):
        rows = gaussian(size, size + 4, seed)
        gramian.copy_(rows @ rows.mT)
        graph.replay()
        seen.append(weights.cpu())
        if not built.stateful:
            assert_near(weights.cpu() @ rows, built.solve(rows @ rows.mT, losses.cpu()) @ rows, 1e-9)
    gramian.copy_(with_cosine(size, -0.5, columns=size + 1) @ with_cosine(size, -0.5, columns=size + 1).mT)
    if isinstance(built, gs.Randomized):
        draws = []
        for _ in range(4):
            graph.replay()
            draws.append(tuple(weights.tolist()))
        assert len(set(draws)) > 1


@needs_gpu
@pytest.mark.parametrize("method", [gs.PCGrad, aggregators.Random])
def test_generators_on_a_gpu_are_state_too(method: type[gs.PCGrad]) -> None:
    gramian = (with_cosine(6, -0.5) @ with_cosine(6, -0.5).mT).cuda()
    original = method(generator=torch.Generator("cuda").manual_seed(2))
    original.solve(gramian)
    loaded = method(generator=torch.Generator("cuda"))
    loaded.load_state_dict(state_of(original))
    copies = [loaded, copy.deepcopy(original), pickle.loads(pickle.dumps(original))]
    for _ in range(3):
        expected = original.solve(gramian)
        assert_same_bits([other.solve(gramian).cpu() for other in copies], [expected.cpu()] * 3)
    with pytest.raises(ValueError, match="`state` must be that of a generator on cuda"):
        loaded.load_state_dict(state_of(method()))


@needs_gpu
def test_losses_that_are_not_positive_give_nan_on_a_gpu() -> None:
    gramian = torch.eye(3, dtype=torch.float64).cuda()
    assert bool(MGDA("loss").solve(gramian, torch.tensor([1.0, 2.0, 0.0]).cuda()).isnan().all())
    assert bool(MGDA("loss").solve(gramian, torch.tensor([1.0, 2.0, 0.5]).cuda()).isfinite().all())
