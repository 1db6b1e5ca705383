"""Trains all that take part, each tuned on the first seed; what is known already is not trained again."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from traceback import clear_frames

from .arms import SUM, TUNED, Candidate, Entry
from .record import Record
from .training import Preview, Training
from .trial import Trial
from .tuning import best_trial


class Runner:
    """Trains what is not in the record yet.

    Args:
        training: What all trainings have in common.
        preview: What was seen of it beforehand.
        record: What is known already.
        progress: Whether each training is reported on standard error.
    """

    def __init__(self, training: Training, preview: Preview, record: Record, progress: bool) -> None:
        self._training, self._preview, self._record, self._progress = training, preview, record, progress
        self._settings = record.settings
        self._expected = self._count = 0
        self._first_error: Exception | None = None
        for trial in record.trials.values():
            if trial.error is None and trial.seed == record.settings["seeds"][0] and trial.start != preview.start:
                raise ValueError(
                    f"compare: `out` must hold trainings that started from the weights that `build` makes, got "
                    f"{record.path} with others. Remove it, or choose another path."
                )

    def run(self, entries: Sequence[Entry], seeds: Sequence[int]) -> list[Trial]:
        """Trains all that take part.

        Raises:
            Exception: What the first training raised, if every one has.
        """
        self._expected = sum(len(entry.candidates) + len(seeds) - 1 for entry in entries)
        trials = [trial for entry in entries for trial in self._enter(entry, seeds)]
        if self._first_error is not None and all(trial.error is not None for trial in trials):
            raise self._first_error
        return trials

    def _enter(self, entry: Entry, seeds: Sequence[int]) -> list[Trial]:
        """Tunes one that takes part on the first seed, and trains it on all of them."""
        self._record.forget(entry.label, entry.words)
        tasks = self._settings["tasks"]
        every = self._settings["metrics"]
        metrics = [name for name in every if entry.task is None or tasks.get(name) == entry.task]
        tried = [self._trial(entry, candidate, seeds[0], metrics) for candidate in entry.candidates]
        best = best_trial(tried, metrics, self._settings["higher_is_better"])
        if best is None:
            return tried
        chosen = Candidate(best.learning_rate, best.weights)
        return [*tried, *(self._trial(entry, chosen, seed, metrics) for seed in seeds[1:])]

    def _trial(self, entry: Entry, candidate: Candidate, seed: int, metrics: Sequence[str]) -> Trial:
        key = (entry.label, entry.task, seed, candidate.learning_rate, candidate.weights)
        self._count += 1
        known = self._record.done(key)
        if known is not None:
            return known
        same = self._as_sum(entry, candidate, seed)
        if same is not None:
            self._record.add(same)
            return same
        try:
            trial = self._training.run(entry, candidate, seed, self._preview, metrics)
        except Exception as error:  # the others go on
            self._first_error = self._first_error or error
            _let_go(error)
            trial = _failed(entry, candidate, seed, error)
        self._record.add(trial)
        if self._progress:
            print(f"{self._count:3d}/{self._expected}  {_report(trial)}", file=sys.stderr, flush=True)
        return trial

    def _as_sum(self, entry: Entry, candidate: Candidate, seed: int) -> Trial | None:
        """The plain sum's training, where equal weights ask for the same one."""
        if entry.label != TUNED or set(candidate.weights or ()) != {1.0}:
            return None
        same = self._record.done((SUM, None, seed, candidate.learning_rate, None))
        return None if same is None else replace(same, label=TUNED, weights=candidate.weights)


def _let_go(error: BaseException | None) -> None:
    """Frees what the frames of an error hold: a model and its graph, which the others may have no room beside."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _failed(entry: Entry, candidate: Candidate, seed: int, error: Exception) -> Trial:
    return Trial(
        label=entry.label,
        task=entry.task,
        seed=seed,
        learning_rate=candidate.learning_rate,
        weights=candidate.weights,
        method=entry.words,
        metrics={},
        curve=(),
        seconds=0.0,
        steps=0,
        error=f"{type(error).__name__}: {error}",
    )


def _report(trial: Trial) -> str:
    """One line about a training."""
    who = trial.label if trial.task is None else f"{trial.label} {trial.task}"
    weights = "" if trial.weights is None else f"  weights {', '.join(f'{weight:.3g}' for weight in trial.weights)}"
    came = trial.error or "  ".join(f"{name} {value:.4g}" for name, value in trial.metrics.items())
    return (
        f"{who:<24}  seed {trial.seed}  learning rate {trial.learning_rate:g}{weights}  {trial.seconds:.3g} s  {came}"
    )


__all__ = ["Runner"]
