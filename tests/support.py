"""What the tests share: Jacobians that are hard to aggregate, and comparisons that are able to fail.

Every helper whose name starts with ``assert_`` is shown to fail in ``test_support.py``.
"""

import importlib.util
import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradsurgery.aggregators import Aggregator, Randomized

Array = NDArray[np.float64]

# --- Jacobians ---------------------------------------------------------------------------------------------------


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Independent rows, half of the pairs in mild conflict."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns)))


def with_cosine(rows: int, cosine: float, columns: int = 12, seed: int = 0) -> Tensor:
    """Unit rows in two camps: cosine ``-cosine`` within a camp, ``cosine`` (negative) across."""
    orthonormal, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((columns, rows + 1)))
    camps = np.where(np.arange(rows) % 2, -1.0, 1.0)[:, None]
    common, own = orthonormal[:, 0], orthonormal[:, 1:].T
    return torch.from_numpy(camps * math.sqrt(-cosine) * common + math.sqrt(1.0 + cosine) * own)


def of_rank(rank: int, rows: int, columns: int, seed: int = 0) -> Tensor:
    """Rows that span only ``rank`` dimensions."""
    return gaussian(rows, rank, seed) @ gaussian(rank, columns, seed + 1)


def _spread(jacobian: Tensor, ratio: float) -> Tensor:
    return jacobian * torch.logspace(0.0, -math.log10(ratio), len(jacobian), dtype=jacobian.dtype).unsqueeze(1)


def _with_zero_rows(jacobian: Tensor, *rows: int) -> Tensor:
    changed = jacobian.clone()
    changed[list(rows)] = 0.0
    return changed


def _repeated(jacobian: Tensor, *factors: float) -> Tensor:
    return torch.cat([jacobian, *(factor * jacobian[:1] for factor in factors)])


DIFFICULT: dict[str, Tensor] = {
    "one row": gaussian(1, 5),
    "two in conflict": torch.tensor([[4.0, 2.0], [-2.0, 0.0]], dtype=torch.float64),
    "two in harmony": torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5]], dtype=torch.float64),
    "orthogonal": torch.diag(torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)),
    "three": gaussian(3, 4, seed=1),
    "five": gaussian(5, 9, seed=2),
    "six, wide": gaussian(6, 50, seed=3),
    "more rows than columns": gaussian(6, 3, seed=4),
    "one column": gaussian(4, 1, seed=5),
    "rank two": of_rank(2, 5, 8, seed=6),
    "strong conflict": with_cosine(5, -0.9),
    "cosine -.99": with_cosine(2, -0.99),
    "cosine -.9999": with_cosine(2, -0.9999),
    "six at cosine -.99": with_cosine(6, -0.99),
    "six at cosine -.9999": with_cosine(6, -0.9999),
    "norms a million apart": _spread(gaussian(5, 8, seed=7), 1e6),
    "norms a million apart, cosine -.9999": _spread(with_cosine(4, -0.9999), 1e6),
    "zero row": _with_zero_rows(gaussian(4, 6, seed=8), 2),
    "zero rows first and last": _with_zero_rows(gaussian(5, 6, seed=9), 0, 4),
    "all zero": torch.zeros(3, 4, dtype=torch.float64),
    "duplicates": _repeated(gaussian(3, 6, seed=10), 1.0),
    "parallel": _repeated(gaussian(3, 6, seed=11), 2.0, 1e-3),
    "exactly opposed": _repeated(gaussian(1, 6, seed=12), -1.0),
    "opposed, norms differ": _repeated(gaussian(1, 6, seed=13), -1e-4),
    "opposed, and others": _repeated(gaussian(4, 6, seed=14), -1.0, -3.0),
    "zero and opposed": _with_zero_rows(_repeated(gaussian(3, 6, seed=15), -0.5), 1),
    "nearly parallel": gaussian(1, 6, seed=16) + 1e-2 * gaussian(4, 6, seed=17),
}
"""Float64, K <= 6, so that ``references.py`` has the exact answers."""


@strategies.composite
def jacobians(
    draw: strategies.DrawFn, max_rows: int = 8, max_columns: int = 40, dtypes: tuple[torch.dtype, ...] = ()
) -> Tensor:
    """Any K, P, rank, scale and dtype, with zero, duplicate, opposed, near-singular and badly scaled rows."""
    count = draw(strategies.integers(1, max_rows), label="K")
    columns = draw(strategies.integers(1, max_columns), label="P")
    rank = draw(strategies.integers(1, min(count, columns)), label="rank")
    source = np.random.default_rng(draw(strategies.integers(0, 2**32 - 1), label="seed"))
    matrix = source.standard_normal((count, rank)) @ source.standard_normal((rank, columns))
    kinds = strategies.sampled_from(["as it is", "zero", "duplicate", "opposed", "nearly opposed", "tiny", "huge"])
    for row, kind in enumerate(draw(strategies.lists(kinds, min_size=count, max_size=count), label="rows")):
        other = matrix[(row + 1) % count]
        matrix[row] = {
            "as it is": matrix[row],
            "zero": 0.0 * other,
            "duplicate": other,
            "opposed": -other,
            "nearly opposed": -other + 1e-4 * matrix[row],
            "tiny": 1e-3 * matrix[row],
            "huge": 1e3 * matrix[row],
        }[kind]
    scale = 10.0 ** draw(strategies.integers(-6, 6), label="scale")
    dtype = draw(strategies.sampled_from(dtypes or (torch.float32, torch.float64)), label="dtype")
    return torch.from_numpy(scale * matrix).to(dtype)


def losses_of(jacobian: Tensor) -> Tensor:
    """Positive loss values, one a row, all different."""
    return torch.linspace(0.5, 2.0, jacobian.shape[-2], dtype=torch.float64)


def norms_of(jacobian: Tensor) -> Tensor:
    """The norms of the rows, in float64."""
    return jacobian.double().norm(dim=-1)


def condition_of(jacobian: Tensor) -> float:
    """The condition number of the unit-diagonal Gramian; infinite with a zero row."""
    norms = norms_of(jacobian)
    if not bool((norms > 0).all()):
        return math.inf
    singular = torch.linalg.svdvals(jacobian.double() / norms.unsqueeze(1))
    if singular[-1] <= 1e-15 * singular[0] or len(singular) < len(jacobian):
        return math.inf
    return float((singular[0] / singular[-1]) ** 2)


# --- comparisons -------------------------------------------------------------------------------------------------


def assert_near(actual: Tensor | Array, expected: Tensor | Array, relative: float, absolute: float = 0.0) -> None:
    """Fails unless the norm of the difference is within ``relative`` times the expected norm plus ``absolute``."""
    found, wanted = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).detach().double()
    assert found.shape == wanted.shape, f"shape {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    assert bool(wanted.isfinite().all()), f"the expected values are not finite: {wanted}"
    error, allowed = float((found - wanted).norm()), relative * float(wanted.norm()) + absolute
    assert error <= allowed, f"off by {error:.3e}, allowed {allowed:.3e}: got {found}, expected {wanted}"


def assert_parallel(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Fails unless both are non-zero and point the same way."""
    found, wanted = actual.double().flatten(), expected.double().flatten()
    assert float(found.norm()) > 0, "the direction is zero"
    assert float(wanted.norm()) > 0, "the expected direction is zero"
    assert_near(found / found.norm(), wanted / wanted.norm(), relative)


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Fails unless two tensors, or nested lists, tuples and dicts of tensors, are equal bit by bit."""
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor), f"got {type(actual).__name__}, expected a tensor"
        assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
        assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        assert _bytes(actual) == _bytes(expected), f"got {actual}, expected {expected}"
    elif isinstance(expected, Mapping):
        assert set(actual) == set(expected), f"keys {set(actual)}, expected {set(expected)}"
        for key, value in expected.items():
            assert_same_bits(actual[key], value)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), f"{len(actual)} entries, expected {len(expected)}"
        for first, second in zip(actual, expected, strict=True):
            assert_same_bits(first, second)
    else:
        assert actual == expected


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()


def assert_harms_none(jacobian: Tensor, direction: Tensor, relative: float) -> None:
    """Fails if a step along ``-direction`` makes a loss worse, beyond rounding.

    Allowed is ``relative`` times the product of both norms, and the rounding of the sum that made the direction.
    """
    wide, step, norms = jacobian.double(), direction.double(), norms_of(jacobian)
    assert bool(step.isfinite().all()), f"the direction is not finite: {step}"
    rounding = 64 * torch.finfo(torch.float64).eps * float(norms.max())
    slack = wide @ step + norms * (relative * float(step.norm()) + rounding)
    assert bool((slack >= 0).all()), f"a loss gets worse: {wide @ step}"


# --- properties of programs --------------------------------------------------------------------------------------


class _NoHostSync(TorchDispatchMode):
    """Raises when data moves between the meta device, which stands for a GPU, and the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if len({tensor.device.type for tensor in _tensors((args, kwargs, result)) if tensor.ndim > 0}) > 1:
            raise RuntimeError(f"{func} moves data between the host and the device")
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _tensors(item)


@contextmanager
def assert_no_host_sync() -> Iterator[None]:
    """Fails if the code inside reads a tensor of the meta device, or copies between it and the host.

    A meta tensor has no data: ``item``, ``tolist``, ``numpy``, ``bool``, ``nonzero`` and ``cpu`` all raise on it.
    """
    try:
        with _NoHostSync():
            yield
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise AssertionError(f"a value is needed on the host: {error}") from error


def state_of(aggregator: Aggregator) -> dict[str, Any]:
    """A copy of the state, through a file that holds only tensors."""
    file = io.BytesIO()
    torch.save(aggregator.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def share_draws(aggregators: list[Aggregator]) -> None:
    """Makes all of them draw from the first one's generators."""
    for members in zip(*(aggregator.modules() for aggregator in aggregators), strict=True):
        if isinstance(members[0], Randomized):
            for member in members[1:]:
                member.generator = members[0].generator


# --- examples ----------------------------------------------------------------------------------------------------


def load_example(name: str) -> Any:
    """The module ``examples/{name}.py``, not run as a program."""
    path = Path(__file__).parent.parent / "examples" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
