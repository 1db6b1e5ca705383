"""Who pulled against whom in the training, and how hard."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradsurgery.diagnostics.page import escaped

from . import text
from .charts import NUMBERED_FROM, Series, heat_map, over_training
from .comparison import Arm, Comparison, imbalance
from .conflicts import Conflicts

PAIRS_NAMED = 5
MILD = -0.1
NAME_LENGTH = 30
# Where the blocks of the models with two of them are, by the name of the block.
PLACES = {
    "dreg": {"block": "the pass that trains the decoder", "encoder_block": "the pass that trains the encoder"},
    "hivae": {"block": "the latent vector z", "s_block": "the latent classes s"},
}


def conflict_maps(comparison: Comparison) -> str:
    """Matrices of cosines in the first, the middle and the last stage of each training, block by block."""
    names = comparison.table.schema.names
    limit = _limit(comparison)
    parts = [
        f'<p class="ramp">opposed {text.cosine(-limit)} <i></i> {text.cosine(limit)} agreeing</p>',
    ]
    for arm in comparison.arms:
        for block, conflicts in arm.conflicts.items():
            at = f", {escaped(place(comparison, block))}" if len(arm.conflicts) > 1 else ""
            parts.append(f'<h3><span class="swatch {kind_of(arm, comparison)}"></span>{escaped(arm.label)}{at}</h3>')
            parts.append(f"<p>{_strongest(conflicts, names)}</p>")
            parts.append(f'<div class="maps">{_maps(arm, conflicts, comparison, limit)}</div>')
    if len(names) >= NUMBERED_FROM:
        parts.append('<p class="note">The numbers are those of the columns in the table of errors.</p>')
    return "".join(parts)


def place(comparison: Comparison, block: str) -> str:
    """Where in the model a block is, in words."""
    return PLACES.get(comparison.settings["model"], {}).get(block, block.replace("_", " "))


def where(comparison: Comparison) -> str:
    """At which of several blocks the pulls that the page gives a single number of are; nothing to say of one."""
    first, *others = comparison.plain.conflicts
    return f", at {escaped(place(comparison, first))}" if others else ""


def kind_of(arm: Arm, comparison: Comparison) -> str:
    """The class of a training in the style sheet."""
    return "plain" if arm is comparison.plain else "surgery"


def _shown(stages: Sequence[int]) -> list[int]:
    """The first stage, one in the middle, the last."""
    return sorted({0, (len(stages) - 1) // 2, len(stages) - 1})


def _limit(comparison: Comparison) -> float:
    """The largest cosine between two columns on any of the maps, rounded up to a multiple of .05."""
    largest = 0.0
    for arm in comparison.arms:
        for conflicts in arm.conflicts.values():
            shown = conflicts.cosines[_shown(comparison.stages)].nan_to_num(0.0).abs()
            largest = max(largest, float((shown * (1 - torch.eye(shown.shape[-1]))).max()))
    return max(1, math.ceil(20 * largest)) / 20


def _maps(arm: Arm, conflicts: Conflicts, comparison: Comparison, limit: float) -> str:
    names, stages = comparison.table.schema.names, comparison.stages
    figures = []
    for stage in _shown(stages):
        when = stage_name(stages, stage)
        label = f"cosines between the columns' gradients in {when}, {arm.label}"
        drawn = heat_map(conflicts.cosines[stage], names, label, limit)
        figures.append(f"<figure>{drawn}<figcaption>{when}</figcaption></figure>")
    return "".join(figures)


def stage_name(stages: Sequence[int], stage: int) -> str:
    """Which epochs a stage covers.

    Example:
        >>> stage_name((1, 5, 9), 0), stage_name((1, 5, 9), 2)
        ('epoch 1', 'epochs 6–9')
    """
    first = 1 if stage == 0 else stages[stage - 1] + 1
    return f"epoch {first}" if first == stages[stage] else f"epochs {first}–{stages[stage]}"


def _strongest(conflicts: Conflicts, names: Sequence[str]) -> str:
    """The pairs that are most opposed, averaged over the stages."""
    mean = conflicts.cosines.nanmean(0)
    rows, columns = torch.triu_indices(len(names), len(names), 1)
    found = mean[rows, columns].nan_to_num(math.inf)
    order = found.argsort(stable=True)[:PAIRS_NAMED].tolist()
    pairs = [
        f"{_name(names[int(rows[i])])} and {_name(names[int(columns[i])])} ({text.cosine(float(found[i]))})"
        for i in order
        if float(found[i]) <= -0.005
    ]
    if not pairs:
        return "Averaged over the training, no two columns oppose each other."
    mild = " That is mild: directions hardly conflict on average." if float(found.min()) > MILD else ""
    return f"Most opposed, averaged over the training: {', '.join(pairs)}.{mild}"


def _name(name: str) -> str:
    return escaped(text.shortened(name, NAME_LENGTH))


def pull_lines(comparison: Comparison) -> str:
    """How unequal the lengths of the gradients were, over the training."""
    middles = _middles(comparison.stages)
    plain, surgery = (next(iter(arm.conflicts.values())) for arm in comparison.arms)
    raw = Series("raw", _points(middles, surgery.norms))
    series = [Series("plain", _points(middles, plain.norms)), raw, Series("surgery", _points(middles, surgery.pulls))]
    chart = over_training(
        series, comparison.stages[-1], "largest by smallest gradient over the epochs", logarithmic=True
    )
    label = escaped(comparison.surgery.label)
    return (
        f"<figure>{chart}<figcaption>Length of the longest gradient by that of the shortest, logarithmic"
        f"{where(comparison)}. "
        f'<span><i class="key plain"></i>plain sum</span> <span><i class="key raw"></i>{label}, before its weights'
        f'</span> <span><i class="key surgery"></i>{label}, after them</span></figcaption></figure>'
    )


def _middles(stages: Sequence[int]) -> list[float]:
    """The epoch in the middle of each stage."""
    return [(first + last) / 2 for first, last in zip((0, *stages[:-1]), stages, strict=True)]


def _points(epochs: Sequence[float], lengths: Tensor) -> list[tuple[float, float]]:
    return list(zip(epochs, imbalance(lengths), strict=True))


def validation_lines(comparison: Comparison) -> str:
    """The validation error after each epoch, and which epoch was kept."""
    series, marks = [], []
    for arm in comparison.arms:
        points = [(index + 1.0, epoch.validation_error) for index, epoch in enumerate(arm.run.history)]
        series.append(Series(kind_of(arm, comparison), points))
        marks.append(points[arm.run.best_epoch])
    chart = over_training(
        series, comparison.stages[-1], "validation error over the epochs", logarithmic=False, marks=marks
    )
    return (
        f"<figure>{chart}<figcaption>Mean error of the validation rows. The dot is the epoch that was kept: the one "
        "with the smallest error.</figcaption></figure>"
    )
