"""The table of ``step.py`` for the README, the required figures beside the measured ones."""

import json
import sys
from pathlib import Path
from typing import Any

from contenders import PLAIN

HEAD = """\
| case | plain sum | ours | required | torchjd's best | times faster | required | MB above plain sum, ours | theirs |
|---|---|---|---|---|---|---|---|---|"""


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, one row for each case and contender of ours."""
    return "\n".join([HEAD, *(_row(result, ours) for result in results for ours in result["ours"])])


def _row(result: dict[str, Any], ours: str) -> str:
    figures, required, peer = result["figures"], result["required"], result["peer"]
    plain, own, theirs = figures[PLAIN], figures.get(ours, {}), figures.get(peer, {})
    name = result["case"] if len(result["ours"]) == 1 else f"{result['case']}, {ours.removeprefix('block, ')}"
    time, their_time = own.get("relative_to_plain_sum"), theirs.get("relative_to_plain_sum")
    faster = None if time is None or their_time is None else their_time / time
    memory, their_memory = own.get("megabytes_above_plain_sum"), theirs.get("megabytes_above_plain_sum")
    share = required["share_of_memory"]
    limit = None if share is None or their_memory is None else share * their_memory
    cells = [
        name,
        f"{plain['milliseconds']:.3g} ms",
        _marked(time, required["at_most"], most=True),
        _at("≤", required["at_most"]),
        "–" if their_time is None else f"{their_time:.2f} ({_short(peer)})",
        _marked(faster, required["times_faster"], most=False),
        _at("≥", required["times_faster"]),
        _marked(memory, limit, most=True, digits=0) + ("" if limit is None else f" (≤ {limit:.0f})"),
        "–" if their_memory is None else f"{their_memory:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _short(peer: str) -> str:
    """The configuration without the peer's name."""
    name = peer.split(", ", 1)[1]
    for option, abbreviation in (
        ("parallel_chunk_size=", "chunk "),
        ("optimize_gramian_computation=True", "optimized"),
    ):
        name = name.replace(option, abbreviation)
    return name


def _at(sign: str, value: float | None) -> str:
    return "–" if value is None else f"{sign} {value:g}"


def _marked(value: float | None, limit: float | None, *, most: bool, digits: int = 2) -> str:
    """The figure, in bold where it misses what is required."""
    if value is None:
        return "–"
    missed = limit is not None and (value > limit if most else value < limit)
    return f"**{value:.{digits}f}**" if missed else f"{value:.{digits}f}"


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "step.json"
    print(table(json.loads(out.read_text())["cases"]))
