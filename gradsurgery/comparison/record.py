"""The file of a comparison: written after every training, read by the next call, which trains what is missing."""

import json
from collections.abc import Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any

from ..whole_file import write_whole
from .trial import Trial

FORMAT = 1
_MAY_GROW = "seeds"
_MAY_BE_CLOSE = {"first_losses": 1e-3}  # sums on another number of threads, or on a GPU


class Record:
    """The trainings that are done.

    Args:
        path: The file. ``None``: nothing is written.
        settings: What all of them have in common.

    Raises:
        ValueError: The file is of another comparison, or of none.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings = dict(settings)
        self.trials: dict[tuple[object, ...], Trial] = {}
        if self.path is not None and self.path.exists():
            self._take_up(self.path)

    def _take_up(self, path: Path) -> None:
        settings, trials = read(path, "compare", "out")
        for name in {**settings, **self.settings}:
            old, new = settings.get(name), self.settings.get(name)
            if name == _MAY_GROW:  # candidates are tuned on the first one
                old, new = list(old or ())[:1], list(new or ())[:1]
            if not _alike(old, new, _MAY_BE_CLOSE.get(name, 0.0)):
                raise ValueError(
                    f"compare: `out` must be a new file or hold the same comparison, got {path} with {name} = {old} "
                    f"where it is {new} now. Remove it, or choose another path."
                )
        self.settings[_MAY_GROW] = list(dict.fromkeys([*self.settings[_MAY_GROW], *settings[_MAY_GROW]]))
        self.trials = {trial.key: trial for trial in trials}

    def forget(self, label: str, method: str) -> None:
        """Drops what another method did under a label."""
        self.trials = {
            key: trial for key, trial in self.trials.items() if trial.label != label or trial.method == method
        }

    def done(self, key: tuple[object, ...]) -> Trial | None:
        """A training that has been done and did not fail."""
        trial = self.trials.get(key)
        return None if trial is None or trial.error is not None else trial

    def add(self, trial: Trial) -> None:
        """Keeps a training, and writes the file."""
        self.trials[trial.key] = trial
        if self.path is not None:
            write(self.path, self.settings, list(self.trials.values()))


def _alike(old: Any, new: Any, tolerance: float) -> bool:
    if not tolerance or not isinstance(old, dict) or old.keys() != new.keys():
        return bool(old == new)
    pairs = [(float(old[name]), float(new[name])) for name in new]
    return all(isclose(one, other, rel_tol=tolerance) or (one != one and other != other) for one, other in pairs)


def write(path: str | Path, settings: Mapping[str, Any], trials: Sequence[Trial]) -> None:
    """Writes a file, whole or not at all."""
    content = {"format": FORMAT, "settings": dict(settings), "trials": [trial.as_json() for trial in trials]}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))


def read(path: str | Path, caller: str, argument: str) -> tuple[dict[str, Any], list[Trial]]:
    """Reads a file.

    Raises:
        ValueError: It is no file of a comparison.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        settings: dict[str, Any] = content["settings"]
        return settings, [Trial.from_json(trial) for trial in content["trials"]]
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{caller}: `{argument}` must be a file that gs.compare has written, got {path} ({error})."
        ) from error


__all__ = ["Record", "read", "write"]
