"""Training steps on a GPU, recorded once in a CUDA graph and replayed: one launch in place of hundreds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

# As many as torch itself takes before it captures anything.
WARM_UP = 3


class Recorder(Protocol):
    """Records what is computed, to compute it again."""

    def aside(self) -> AbstractContextManager[None]:
        """Where everything takes place that is to be recorded, and what leads up to it."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Returns what does again, with the same tensors, all that ``function`` does to them; does nothing yet."""


class CudaGraphs:
    """Records in CUDA graphs.

    Args:
        device: The GPU.
        generators: All that is drawn from, on that GPU.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self.stream = torch.cuda.Stream(device)
        self.generators = list(generators)

    @contextmanager
    def aside(self) -> Iterator[None]:
        # One stream for all: what autograd keeps of a step on the default stream could not be captured.
        outside = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            yield
        outside.wait_stream(self.stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions do it on the first draw, and say so
            for generator in self.generators:
                graph.register_generator_state(generator)
        with torch.cuda.graph(graph, stream=self.stream):
            function()
        return graph.replay


class CapturedStep:
    """Takes steps: the first few as they are, then replays of one that was recorded.

    Batches of another size than the first one are never recorded.

    Args:
        step: Takes one step on rows ``(S, N)``. What it leaves behind must be in tensors that it changes in place, no
            autograd graph among it; what it reads beside tensors must be the same in every step of a phase.
        recorder: How they are recorded.
    """

    def __init__(self, step: Callable[[Tensor], None], recorder: Recorder) -> None:
        self.step, self.recorder = step, recorder
        self._rows: Tensor | None = None
        self._replay: Callable[[], None] | None = None
        self._phase: float | None = None
        self._taken = 0

    def take(self, batches: Iterable[Tensor], phase: float) -> None:
        """Takes a step on each batch; what was recorded in another phase is recorded anew."""
        if phase != self._phase:
            self._replay, self._phase = None, phase
        with self.recorder.aside():
            for rows in batches:
                self._take(rows)

    def forget(self) -> None:
        """Starts over: tensors that the step changes have been replaced."""
        self._replay, self._taken = None, 0

    def _take(self, rows: Tensor) -> None:
        if self._rows is None:
            self._rows = torch.empty_like(rows)
        static = self._rows
        if rows.shape != static.shape or self._taken < WARM_UP:
            self.step(rows)
            self._taken += rows.shape == static.shape
            return
        static.copy_(rows)
        if self._replay is None:
            self._replay = self.recorder.record(lambda: self.step(static))
        self._replay()
