"""What a comparison came to: every training, and the standings they add up to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import record
from .arms import SINGLE, SUM
from .row import Row
from .standings import changes, directions, mean_ranks, spread
from .trial import Trial
from .tuning import best_trial

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Comparison:
    r"""The same training under several methods, as :func:`compare` returns it.

    Printed, it is a table. ``rows`` has its numbers, ``trials`` every single training.

    .. math:: \Delta = \frac{100}{M} \sum_m s_m \frac{M_m - B_m}{|B_m|}, \quad
        s_m = -1 \text{ where higher is better, else } 1

    where :math:`M_m` is a metric averaged over the seeds and :math:`B_m` that of the single-task networks, or of the
    plain sum where there are none. Metrics without a baseline, or with one that is zero or changes its sign from seed
    to seed, do not count; where none is left it is NaN.

    Args:
        settings: What all trainings have in common.
        trials: The trainings.

    Example:
        >>> comparison = compare(
        ...     lambda: nn.Linear(1, 1), lambda model, batch: [model.weight.sum() ** 2, model.bias.sum() ** 2],
        ...     [None] * 3, lambda model: {"0": 1.0, "1": 2.0}, methods=["upgrad"], static_weights=[],
        ...     seeds=1, progress=False,
        ... )
        >>> comparison, comparison.rows[1].means
        (Comparison(sum, upgrad, single task; 4 trainings), {'0': 1.0, '1': 2.0})
    """

    def __init__(self, settings: Mapping[str, Any], trials: Sequence[Trial]) -> None:
        self.settings = dict(settings)
        self.trials = tuple(trials)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return tuple(self.settings["metrics"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds; candidates were tuned on the first one."""
        return tuple(self.settings["seeds"])

    @property
    def labels(self) -> tuple[str, ...]:
        """Who takes part, in the order given."""
        return tuple(dict.fromkeys(trial.label for trial in self.trials))

    @property
    def reference(self) -> str:
        """What changes in percent are against, single-task networks where there are any, else the plain sum."""
        return SINGLE if SINGLE in self.labels else SUM

    def chosen(self, label: str, task: str | None = None) -> list[Trial]:
        """The trainings of the chosen candidate, in the order of the seeds."""
        own = {trial.key: trial for trial in self.trials if trial.label == label and trial.task == task}
        best = self._best(label, task)
        if best is None:  # all of them failed, and are heard of
            return [trial for trial in own.values() if trial.seed == self.seeds[0]][:1]
        found = [own.get((label, task, seed, best.learning_rate, best.weights)) for seed in self.seeds]
        return [trial for trial in found if trial is not None]

    def is_incomplete(self, label: str) -> bool:
        """Whether trainings of the chosen candidate are still to come, as in a file that grows."""
        tasks = dict.fromkeys(trial.task for trial in self.trials if trial.label == label)
        arrived = [task for task in tasks if self._best(label, task) is not None]
        return any(len(self.chosen(label, task)) < len(self.seeds) for task in arrived)

    def values(self, label: str) -> Tensor:
        """The metrics of the chosen candidate by seed, ``(S, M)``, NaN where there are none."""
        result = torch.full((len(self.seeds), len(self.metrics)), torch.nan, dtype=torch.float64)
        tasks = dict.fromkeys(trial.task for trial in self.trials if trial.label == label)
        for task in tasks:
            wanted = self._metrics_of(task)
            for trial in self.chosen(label, task):
                for column, metric in enumerate(self.metrics):
                    if metric in wanted:
                        result[self.seeds.index(trial.seed), column] = trial.metrics.get(metric, math.nan)
        return result

    @property
    def counted(self) -> tuple[str, ...]:
        """The metrics that changes are taken of: those whose baseline is finite, not zero and of one sign."""
        return tuple(metric for metric, known in zip(self.metrics, ~self._baseline.isnan(), strict=True) if known)

    @property
    def fair(self) -> bool:
        """Whether in each seed all started from the same weights and saw the same batches, by their checksums."""
        whole = [trial for trial in self.trials if len(trial.curve) == self.settings["epochs"]]
        return len({(trial.seed, trial.start, trial.order) for trial in whole}) == len({one.seed for one in whole})

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """One row for each that takes part, by mean rank, then by change; the single-task networks come first."""
        rows = [self._row(label) for label in self.labels]
        deltas = {row.label: math.inf if math.isnan(row.delta) else row.delta for row in rows}
        return tuple(sorted(rows, key=lambda row: (row.label != SINGLE, row.rank, deltas[row.label])))

    def _row(self, label: str) -> Row:
        tasks = list(dict.fromkeys(trial.task for trial in self.trials if trial.label == label))
        chosen = [trial for task in tasks for trial in self.chosen(label, task)]
        values = self.values(label)
        counted = self._counted(label)
        complete = values[:, counted].isfinite().all(-1) if bool(counted.any()) else torch.zeros(len(values)) > 0
        means = values[complete].mean(0) if bool(complete.any()) else values.new_full(values.shape[1:], torch.nan)
        deltas = self._changes(values)[:, counted & ~self._baseline.isnan()].mean(-1)
        ranks = self._ranks.get(label)
        spreads = spread(values[complete]) if bool(complete.any()) else means
        return Row(
            label=label,
            learning_rates=tuple(dict.fromkeys(trial.learning_rate for trial in chosen)),
            weights=chosen[0].weights if chosen else None,
            means=dict(zip(self.metrics, means.tolist(), strict=True)),
            deviations=dict(zip(self.metrics, spreads.tolist(), strict=True)),
            finished=int(complete.sum()),
            delta=float(deltas.mean()),
            delta_deviation=float(spread(deltas)),
            rank=math.nan if ranks is None else float(ranks[0]),
            rank_deviation=math.nan if ranks is None else float(spread(ranks[1:])),
            cost=self._seconds(label) / self._seconds(SUM),
            error=next((trial.error for trial in chosen if trial.error is not None), None),
        )

    @cached_property
    def _ranks(self) -> dict[str, Tensor]:
        """Mean ranks of all but the single-task networks: of the means, then seed by seed."""
        labels = [label for label in self.labels if label != SINGLE]
        values = torch.stack([self.values(label) for label in labels], 1)  # (S, A, M)
        higher = directions(self.metrics, self.settings["higher_is_better"])
        # A mean over seeds is NaN where one of them is: who does not always arrive ranks last.
        both = mean_ranks(torch.cat([values.mean(0, keepdim=True), values]), higher)
        return dict(zip(labels, both.unbind(1), strict=True))

    @cached_property
    def _baseline(self) -> Tensor:
        """The reference's metrics, averaged over the seeds, NaN where they have no one sign, ``(M,)``."""
        values = self.values(self.reference)
        steady = (values > 0).all(0) | (values < 0).all(0)
        return torch.where(steady, values.mean(0), torch.nan)

    def _changes(self, values: Tensor) -> Tensor:
        return changes(values, self._baseline, directions(self.metrics, self.settings["higher_is_better"]))

    def changes_of(self, label: str, against: str = SUM) -> Tensor:
        """The change of each metric against another's mean in percent, by seed, ``(S, M)``; negative is better."""
        higher = directions(self.metrics, self.settings["higher_is_better"])
        return changes(self.values(label), self.values(against).mean(0), higher)

    def _counted(self, label: str) -> Tensor:
        """The metrics that one that takes part can have, ``(M,)``."""
        if label != SINGLE:
            return torch.ones(len(self.metrics), dtype=torch.bool)
        tasks = self.settings["tasks"]
        return torch.tensor([tasks.get(metric) is not None for metric in self.metrics])

    def _best(self, label: str, task: str | None) -> Trial | None:
        tried = [one for one in self.trials if (one.label, one.task, one.seed) == (label, task, self.seeds[0])]
        return best_trial(tried, self._metrics_of(task), self.settings["higher_is_better"])

    def _metrics_of(self, task: str | None) -> list[str]:
        tasks = self.settings["tasks"]
        return [metric for metric in self.metrics if task is None or tasks.get(metric) == task]

    def _seconds(self, label: str) -> float:
        """Seconds a step, the median over trainings, of the networks of all tasks together."""
        total = 0.0
        for task in dict.fromkeys(trial.task for trial in self.trials if trial.label == label):
            own = [trial for trial in self.trials if (trial.label, trial.task) == (label, task) and trial.steps]
            total += median(trial.seconds / trial.steps for trial in own) if own else math.nan
        return total

    def __str__(self) -> str:
        from .table import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.labels)}; {len(self.trials)} trainings)"

    def to_pandas(self) -> pd.DataFrame:
        """A row for each that takes part, as printed.

        Raises:
            ImportError: pandas is not installed.
        """
        from .frame import as_frame

        return as_frame(self)

    def save(self, path: str | Path) -> Path:
        """Writes settings and trainings as JSON, which :meth:`load` reads back exactly."""
        record.write(path, self.settings, self.trials)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Reads what :meth:`save` or :func:`compare` has written.

        Raises:
            ValueError: The file holds something else.
            FileNotFoundError: There is none.
        """
        return cls(*record.read(path, "Comparison", "path"))

    def draw_trade_off(self, *, title: str = "") -> Figure:
        """Draws the change of each metric against the plain sum in percent.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from ..diagnostics.pictures import draw_trade_off

        # Drawn so that better is to the right.
        shown = {row.label: -self.changes_of(row.label) for row in self.rows if row.label != SUM}
        return draw_trade_off(shown, self.metrics, title=title)

    def draw_front(self, first: str, second: str, *, title: str = "") -> Figure:
        """Draws two metrics against each other, a point a seed, and joins those that no other beats in both.

        Args:
            first: A metric.
            second: Another one.
            title: Above the figure.

        Raises:
            ValueError: There is no such metric.
            ImportError: matplotlib is not installed.
        """
        from ..diagnostics.pictures import draw_front

        pair = first, second
        for name, metric in zip(("first", "second"), pair, strict=True):
            if metric not in self.metrics:
                raise ValueError(f"Comparison: `{name}` must be one of {list(self.metrics)}, got {metric!r}.")
        columns = [self.metrics.index(metric) for metric in pair]
        points = {row.label: self.values(row.label)[:, columns] for row in self.rows}
        return draw_front(points, pair, higher_is_better=self.settings["higher_is_better"], title=title)

    def report(self, path: str | Path) -> Path:
        """Writes the table and the pictures as one page, which needs nothing but a browser.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .page import write_page

        return write_page(self, path)


__all__ = ["Comparison"]
