"""The contenders of ``ranks.py`` and its tables for the README."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

PLAIN, SURGERY, BLOCK, SCALARIZER = "plain sum", "UPGrad", "block, PCGrad", "UncertaintyWeighting"
ALONE, REPLICATED, SHARDED = "alone", "DistributedDataParallel", "FSDP2"


class Way(NamedTuple):
    """Where the parameters are, and what is done with the losses."""

    where: str
    method: str

    @property
    def name(self) -> str:
        return f"{self.where}, {self.method}"

    @property
    def plain(self) -> "Way":
        return self._replace(method=PLAIN)


def times(results: list[dict[str, Any]]) -> str:
    """Milliseconds of the plain sums and the others in plain sums; in brackets, each rank alone."""
    head = ["ranks", "case", "DDP", SURGERY, BLOCK, SCALARIZER, "FSDP2", f"{SURGERY}, FSDP2"]
    lines = []
    for result in results:
        figures = result["figures"]
        own = {name: each["relative_to_plain_sum"] for name, each in figures.items()}
        plain, sharded = (
            f"{figures[Way(where, PLAIN).name]['milliseconds']:.3g} ms" for where in (REPLICATED, SHARDED)
        )
        methods = [
            f"{own[Way(REPLICATED, method).name]:.2f} ({own[Way(ALONE, method).name]:.2f})"
            for method in (SURGERY, BLOCK, SCALARIZER)
        ]
        surgery = f"{own[Way(SHARDED, SURGERY).name]:.2f}"
        lines.append([str(result["ranks"]), result["case"], plain, *methods, sharded, surgery])
    return _markdown(head, lines)


def traffic(results: list[dict[str, Any]]) -> str:
    """Thousands of numbers that a rank sends in a step, in brackets its collectives; peak memory in MB."""
    ways = {
        "DDP": Way(REPLICATED, PLAIN),
        SURGERY: Way(REPLICATED, SURGERY),
        BLOCK: Way(REPLICATED, BLOCK),
        SCALARIZER: Way(REPLICATED, SCALARIZER),
        "FSDP2": Way(SHARDED, PLAIN),
        f"{SURGERY}, FSDP2": Way(SHARDED, SURGERY),
    }
    lines = []
    for result in results:
        cells = [str(result["ranks"]), result["case"], f"{result['numbers']['sent_by_formula'] / 1e3:.1f}"]
        for way in ways.values():
            own = result["figures"][way.name]
            memory = f", {own['megabytes']:.0f} MB" if "megabytes" in own else ""
            cells.append(f"{own['elements_sent'] / 1e3:.1f} ({own['collectives']}){memory}")
        lines.append(cells)
    return _markdown(["ranks", "case", f"formula, {SURGERY}", *ways], lines)


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "ranks.json"
    found = json.loads(out.read_text())["cases"]
    print(times(found), traffic(found), sep="\n\n")
