"""What a step would cost with each method, measured on the model at hand."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from ...aggregators import CONTRACTS, Aggregator, CrossBatch, GramianAggregator
from ...engines import PerLossGradients, Request, choose_engine
from ...engines.donation import donation_explained
from ...engines.workspace import Workspace
from ...scalarizers import CONTRACTS as SCALARIZERS
from ...sharing import Sharing
from .gradients import RowsByBatch

REPEATS = 50
SECONDS = 1.0
"""A measurement ends after so long, whatever the number of repeats."""
SECONDS_A_METHOD = 0.02
LARGE = 1 << 24
"""With more numbers in the Jacobian, methods over it are not timed one by one."""


@dataclass(frozen=True)
class Costs:
    """What steps take on one batch, forward pass included: seconds, the shortest of a few repeats each.

    The shortest is what other work on the machine has disturbed least.

    Args:
        plain: A step of the plain sum: forward and backward.
        gramian: Forward, per-loss gradients, their inner products, and the direction.
        jacobian: Forward, and the per-loss gradients themselves.
        engine: How the per-loss gradients were obtained for ``gramian``.
        memory: Bytes that all per-loss gradients take, K x P numbers.
        methods: What each method adds to that, by the name that :func:`gradsurgery.get` takes. Those that are
            scalarizers too, such as the sum, are left out: they add next to nothing.
        passes: By name, from how many batches a method needs gradients in a step, where that is not one.
    """

    plain: float
    gramian: float
    jacobian: float
    engine: str
    memory: int
    methods: dict[str, float] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)

    def extra(self, name: str) -> float:
        """What a method adds to a step of the plain sum, as a share of that; not below 0.

        Raises:
            ValueError: It was not measured.

        Example:
            >>> costs = Costs(1.0, 2.0, 2.5, "loop", 800, {"upgrad": 0.1, "sdmgrad": 0.1}, {"sdmgrad": 3})
            >>> round(costs.extra("upgrad"), 2), round(costs.extra("sdmgrad"), 2)
            (1.1, 5.1)
        """
        if name not in self.methods:
            raise ValueError(f"Costs.extra: `name` must be one of {sorted(self.methods)}, got {name!r}.")
        gradients = self.gramian if _KINDS[name] == "gramian" else self.jacobian
        return max((gradients * self.passes.get(name, 1) + self.methods[name]) / self.plain - 1, 0.0)


_KINDS = {cls.__name__.lower(): contract.kind for cls, contract in CONTRACTS.items()}
_TIMES = 3  # batches, for methods that learn from two and step on a third


def measure(source: RowsByBatch, number: int, gramian: Tensor, shared: Sequence[Tensor]) -> Costs:
    """Times steps on one batch; nothing is written to any ``.grad``.

    Args:
        source: Of the batches.
        number: Which batch.
        gramian: Inner products ``(K, K)`` of the gradients of its losses, on which the methods are timed.
        shared: The shared parameters.
    """
    steps = _Steps(source, number, list(shared))
    ways = (steps.plain, steps.by_gramian, steps.by_rows)
    for way in ways:  # the first calls plan, compile and allocate
        steps.prepare()
        way()
    started, seconds = time.perf_counter(), list[list[float]]()
    while len(seconds) < REPEATS and (not seconds or time.perf_counter() - started < SECONDS):
        seconds.append([_seconds(way, steps.prepare, steps.device) for way in ways])
    plain, by_gramian, by_rows = (min(column) for column in zip(*seconds, strict=True))
    steps.prepare()
    found = steps.by_rows()
    blocks = [part.rows for part in found.jacobian().parts()]
    memory = sum(block.numel() * block.element_size() for block in blocks)
    methods = _methods(gramian, found.values, blocks, steps.device)
    passes = {name: _TIMES for name in methods if issubclass(_CLASSES[name], CrossBatch)}
    return Costs(plain, by_gramian, by_rows, steps.engine, memory, methods, passes)


_CLASSES = {cls.__name__.lower(): cls for cls in CONTRACTS}
_SCALARIZERS = {cls.__name__.lower() for cls in SCALARIZERS}


class _Steps:
    """Steps that end before anything is written."""

    def __init__(self, source: RowsByBatch, number: int, shared: list[Tensor]) -> None:
        self._source, self._number = source, number
        self._parameters: list[Tensor] = [each for each in source.model.parameters() if each.requires_grad]
        self._sharing = Sharing(shared)
        self.device = shared[0].device
        self.engine = ""
        self._engine, self._workspace = choose_engine("auto"), Workspace()

    def prepare(self) -> None:
        self._source.rewind(self._number)

    def plain(self) -> None:
        total = reduce(torch.add, self._source.evaluate(self._number).values())
        torch.autograd.grad(total, self._parameters, allow_unused=True)

    def by_gramian(self) -> None:
        found = self._differentiate(rows=False)
        self.engine = found.engine
        with torch.no_grad():
            products = found.shared.gramian(None)
            found.shared.combine(torch.ones_like(products[:, 0]), None)

    def by_rows(self) -> PerLossGradients:
        return self._differentiate(rows=True)

    def _differentiate(self, *, rows: bool) -> PerLossGradients:
        losses = self._source.evaluate(self._number)
        request = Request(
            losses,
            None,
            self._parameters,
            self._sharing,
            lambda loss: loss,
            workspace=self._workspace,
            rows=rows,
            sticky=False,
        )
        with donation_explained():
            return self._engine.differentiate(request)


def _methods(gramian: Tensor, losses: Tensor, blocks: list[Tensor], device: torch.device) -> dict[str, float]:
    """Seconds of each method on its own.

    Without those that need to be told something about so many losses, and those with fixed or random weights, which
    are to be had as scalarizers, for one backward pass.
    """
    found = {}
    for name, contract in sorted((cls.__name__.lower(), contract) for cls, contract in CONTRACTS.items()):
        if name in _SCALARIZERS:
            continue
        method = contract.build()
        if isinstance(method, GramianAggregator) and not method.needs_jacobian:
            call = _solving(method, gramian.to(device), losses)
        elif sum(block.numel() for block in blocks) <= LARGE:
            call = _aggregating(method, blocks, losses)
        else:
            continue
        try:
            with warnings.catch_warnings():  # what a method has to say about this batch is said when it is used
                warnings.simplefilter("ignore")
                call()
                found[name] = _repeated(call, device)
        except (ValueError, RuntimeError):  # what a method cannot do with these losses is no reason to say nothing
            continue
    return found


def _solving(method: GramianAggregator, gramian: Tensor, losses: Tensor) -> Callable[[], object]:
    return lambda: method.solve(gramian, losses)


def _aggregating(method: Aggregator, blocks: list[Tensor], losses: Tensor) -> Callable[[], object]:
    return lambda: method(blocks, losses)


def _repeated(call: Callable[[], object], device: torch.device) -> float:
    started, seconds = time.perf_counter(), list[float]()
    while len(seconds) < REPEATS and (not seconds or time.perf_counter() - started < SECONDS_A_METHOD):
        seconds.append(_seconds(call, lambda: None, device))
    return min(seconds)


def _seconds(call: Callable[[], object], prepare: Callable[[], None], device: torch.device) -> float:
    prepare()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


__all__ = ["Costs", "measure"]
