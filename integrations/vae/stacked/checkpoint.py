"""The file that a training of several seeds goes on from when it was stopped."""

from __future__ import annotations

import dataclasses
import math
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

import gradsurgery as gs
from gradsurgery.whole_file import write_whole

from ..tables.table import Table
from ..training.identity import describe_method, table_digest
from ..training.preparation import Settings
from .state import StackedState

SECONDS_BETWEEN_WRITES = 30.0
SECONDS_BETWEEN_COPIES = 1.0
FORMAT = 1
PARTS = {"identity", "state", "seconds"}

Identity = dict[str, Any]


class Checkpoint:
    """Goes on from a file on entering, writes it now and then, and once more on leaving.

    An exception costs what was trained in the last second and the epoch that it comes in.

    Args:
        caller: Whom error messages are to name.
        path: The file. ``None``: there is none, nothing is read or written.
        state: The training.
        identity: What the training depends on, but for how long it lasts; see :func:`training_identity`.
        epochs: How long it lasts.
    """

    def __init__(
        self, caller: str, path: str | Path | None, state: StackedState, identity: Identity, epochs: int
    ) -> None:
        self.caller, self.path = caller, None if path is None else Path(path)
        self.state, self.identity, self.epochs = state, identity, epochs
        self._content: dict[str, Any] = {}
        self._started = self._written = time.monotonic()
        self._copied = -math.inf
        self._seconds = 0.0

    def __enter__(self) -> Checkpoint:
        if self.path is not None and self.path.exists():
            content = _read(self.caller, self.path)
            self._check(content)
            self.state.load_state_dict(content["state"])
            self._seconds = content["seconds"]
        self._started = time.monotonic()
        return self

    def update(self) -> None:
        """Is called after each epoch; copies the state and writes the file where the last time was long ago."""
        now = time.monotonic()
        if self.path is None or now - self._copied < SECONDS_BETWEEN_COPIES:
            return
        # A copy is at hand when an exception comes, which finds the next epoch half done.
        self._copy()
        if now - self._written >= SECONDS_BETWEEN_WRITES:
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is not None and kind is None:
            self._copy()
        if self._content:
            self._write()

    def _copy(self) -> None:
        self._copied = time.monotonic()
        self._content = {
            "format": FORMAT,
            "identity": self.identity,
            "state": self.state.state_dict(),
            "seconds": self._seconds + self._copied - self._started,
        }

    def _write(self) -> None:
        if self.path is not None:
            write_whole(self.path, self._save)
            self._written, self._content = time.monotonic(), {}

    def _save(self, path: Path) -> None:
        with path.open("wb") as file:  # torch refuses some names
            torch.save(self._content, file)

    def _check(self, content: dict[str, Any]) -> None:
        theirs = content["identity"]
        other = [name for name, value in self.identity.items() if theirs.get(name) != value]
        if other:
            differences = "; ".join(f"{name} {theirs.get(name)!r}, not {self.identity[name]!r}" for name in other)
            raise ValueError(
                f"{self.caller}: `checkpoint` must be of the same training, got one with {differences} in "
                f"{self.path}. Choose another path, or remove the file."
            )
        epoch = content["state"]["epoch"]
        if epoch > self.epochs:
            raise ValueError(
                f"{self.caller}: `checkpoint` must have at most {self.epochs} epochs, got {epoch} in {self.path}. "
                "Choose another path, or more `epochs`."
            )


def training_identity(
    settings: Settings, seeds: Sequence[int], tables: Sequence[Table], methods: Sequence[gs.Aggregator]
) -> Identity:
    """What the numbers of a training depend on, but for the machine and how many epochs it goes on."""
    options = dataclasses.asdict(settings)
    del options["epochs"]
    known = {id(table): table_digest(table) for table in tables}
    digests = [known[id(table)] for table in tables]
    return {
        **options,
        "batch_size": settings.rows_a_step,
        "device": None if settings.place.type == "cpu" else settings.place.type,
        "seeds": list(seeds),
        "tables": digests if len(known) > 1 else digests[:1],
        "methods": list(dict.fromkeys(describe_method(method) for method in methods)),
        "torch": str(torch.__version__),
    }


def training_seconds(path: str | Path) -> float:
    """How long the training of a checkpoint has taken, all times together."""
    return float(_read("training_seconds", Path(path))["seconds"])


def _read(caller: str, path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() >= PARTS:
        raise ValueError(
            f"{caller}: `checkpoint` must be a checkpoint of this version, got another file, {path}. Choose another "
            "path, or remove the file."
        )
    return content
