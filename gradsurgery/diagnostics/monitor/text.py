"""The averages of a monitor as text and as numbers for loggers."""

from collections.abc import Sequence

from ..similarity import pairs
from ..wording import share
from .averages import Averages

MOST_ROWS = 20  # pairs that are shown, those in conflict first


def described(averages: Averages) -> str:
    """Two tables: pairs of losses that were ever compared, most conflicting first, and the losses themselves."""
    several = len(averages.groups) > 1
    between = [(place, i, j) for place in range(len(averages.groups)) for i, j in pairs(len(averages.names))]
    cosines = averages.cosines
    between = [pair for pair in between if float(cosines[pair]) == float(cosines[pair])]  # those ever compared
    between.sort(key=lambda pair: float(cosines[pair]))
    columns = (cosines, averages.conflicts, averages.magnitude_ratios, averages.magnitude_similarities)
    rows = [["pair", "cosine", "conflicting", "length ratio", "magnitude similarity"]]
    for place, i, j in between[:MOST_ROWS]:
        cosine, conflict, ratio, similarity = (float(column[place, i, j]) for column in columns)
        group = f"{averages.groups[place]}: " if several else ""
        label = f"{group}{averages.names[i]} - {averages.names[j]}"
        rows.append([label, f"{cosine:.2f}", share(conflict), f"{ratio:.3g}", f"{similarity:.2f}"])
    text = _aligned(rows) if between else "No two gradients could be compared."
    if len(between) > MOST_ROWS:
        text += f"\nand {len(between) - MOST_ROWS} more that conflict less"
    return f"{text}\n\n{_aligned(_losses(averages))}"


def averaged_metrics(averages: Averages, prefix: str, *, max_losses: int) -> dict[str, float]:
    """Averaged cosines and share of conflicts under ``{prefix}mean/``, means over groups; nothing that is unknown."""
    names = averages.names
    if len(names) < 2:
        return {}
    cosines, numbers = averages.cosines.nanmean(0), dict[str, float]()
    if len(names) <= max_losses:
        numbers = {f"cosine/{names[i]}-{names[j]}": float(cosines[i, j]) for i, j in pairs(len(names))}
    numbers["lowest_cosine"] = float(cosines.nan_to_num(2.0).min())
    numbers["conflicting"] = float(averages.conflicting_share.nanmean())
    known = numbers["conflicting"] == numbers["conflicting"]
    return {f"{prefix}mean/{name}": value for name, value in numbers.items() if known and value == value}


def _losses(averages: Averages) -> list[list[str]]:
    weights = averages.weights
    if weights is not None and weights.ndim == 2:
        weights = weights.nanmean(0)
    columns = {"value": averages.losses, "gradient": averages.norms.nanmean(0)}
    if weights is not None:
        columns["weight"] = weights
    columns = {name: values for name, values in columns.items() if not bool(values.isnan().all())}
    rows = [["loss", *columns]]
    for k, name in enumerate(averages.names):
        numbers = [float(values[k]) for values in columns.values()]
        rows.append([name, *(f"{number:.3g}" if number == number else "-" for number in numbers)])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        numbers = (text.rjust(width) for text, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)


__all__ = ["averaged_metrics", "described"]
