"""Processes that stay, so that a test with several ranks costs no start."""

import importlib
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

_PATIENCE = 120.0
"""Seconds after which ranks are taken to wait for each other for ever."""


class Crew:
    """Ranks of one gloo group that run functions of test modules together.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Calls ``function(rank, *arguments)`` on all ranks and returns what each returns; fails where one fails."""
        results = self.outcomes(function, *arguments)
        wrong = [f"rank {rank}:\n{result}" for rank, result in enumerate(results) if isinstance(result, _Failure)]
        if wrong:
            raise AssertionError("\n".join(wrong))
        return results

    def outcomes(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The same, with ``Failure`` in the place of the result where a rank fails."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((Path(function.__code__.co_filename).stem, function.__name__, arguments))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(_PATIENCE):
                self.stop()
                raise AssertionError(f"rank {rank} of {self.size} still waits after {_PATIENCE} seconds")
            try:
                results.append(pipe.recv())
            except EOFError:
                self.stop()
                raise AssertionError(f"rank {rank} of {self.size} has died") from None
        return results

    def stop(self) -> None:
        """Ends all processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._pipes, self._processes = [], []
        if self._folder is not None:
            self._folder.cleanup()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, self.size, f"{self._folder.name}/store", there), daemon=True
            )
            process.start()
            self._pipes.append(here)
            self._processes.append(process)


class _Failure(str):
    """What went wrong on a rank: the traceback."""


Failure = _Failure


def _work(rank: int, size: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=_PATIENCE)
    )
    while True:
        try:
            module, name, arguments = pipe.recv()
        except EOFError:
            return
        try:
            result = getattr(importlib.import_module(module), name)(rank, *arguments)
        except Exception:
            result = _Failure(traceback.format_exc())
        pipe.send(result)
