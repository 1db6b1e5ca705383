"""What one surgery costs: forward, backward and aggregation against the plain sum, in one process, in pairs.

Run with ``make bench``. With ``torchjd`` installed it takes part: every configuration in the first turns, the fastest
of them in all. Peak memory is measured in a process for each. Writes ``benchmarks/results/step.json``.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cases import CASES, Case
from contenders import NAIVE, PEER, PLAIN, Builder, Contender, builders
from memory import megabytes, run_on_one_thread
from models import Tasks
from recording import save
from tables import table

TRIAL = 2  # turns in which every configuration of the peer takes part
FEWEST = 3  # turns of a contender that is too slow for all
LONGEST = 6.0  # seconds for all turns of one contender
SHORTEST = 5e-3  # seconds that one timing has to last: fast steps are repeated


class Runner(NamedTuple):
    """A contender, and how often it has to be run in one timing."""

    contender: Contender
    repeats: int

    def seconds(self) -> float:
        """Seconds a step, gradients cleared before each."""
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.contender.run()
        return (time.perf_counter() - start) / self.repeats


def able(candidates: dict[str, Builder]) -> tuple[dict[str, Runner], dict[str, str]]:
    """The contenders that can do a step, and why others cannot."""
    runners, unable = {}, {}
    for name, builder in candidates.items():
        try:
            runner = Runner(builder(), 1)
            first = runner.seconds()
        except Exception as error:  # a peer's limits are a result
            if not name.startswith(PEER):
                raise
            unable[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            usual = first if first > 0.1 else runner.seconds()
            runners[name] = runner._replace(repeats=max(1, round(SHORTEST / usual)))
    return runners, unable


def measure(runners: dict[str, Runner], rounds: int) -> dict[str, dict[str, float]]:
    """Medians over turns; in each, everyone runs once and is compared with that turn's plain sum."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            spent = seconds[name]
            if len(spent) < FEWEST or sum(spent) * runner.repeats < LONGEST or name == PLAIN:
                spent.append(runner.seconds())
    return {
        name: {
            "milliseconds": round(1e3 * statistics.median(spent), 3),
            "relative_to_plain_sum": round(
                statistics.median(own / plain for own, plain in zip(spent, seconds[PLAIN], strict=False)), 3
            ),
            "turns": len(spent),
        }
        for name, spent in seconds.items()
    }


def best_of_peer(runners: dict[str, Runner]) -> tuple[str | None, dict[str, float]]:
    """The peer's fastest configuration, and how all of them did."""
    candidates = [name for name in runners if name.startswith(PEER)]
    if len(candidates) < 2:
        return (candidates[0] if candidates else None), {}
    found = measure({name: runners[name] for name in [PLAIN, *candidates]}, TRIAL)
    trial = {name: figures["relative_to_plain_sum"] for name, figures in found.items() if name != PLAIN}
    return min(trial, key=trial.__getitem__), trial


def trunk_gradient(contender: Contender, problem: Tasks) -> torch.Tensor:
    """What a step leaves behind in the trunk, whose parameters are the first."""
    contender.run()
    trunk = contender.parameters[: len(list(problem.trunk.parameters()))]
    return torch.cat([parameter.grad.flatten().double() for parameter in trunk if parameter.grad is not None])


def run(case: Case, rounds: int, *, with_memory: bool) -> dict[str, Any]:
    """Everything about one case."""
    problem = case.build()
    runners, unable = able(builders(problem))
    best, trial = best_of_peer(runners)
    kept = {name: runner for name, runner in runners.items() if not name.startswith(PEER) or name == best}
    figures: dict[str, dict[str, Any]] = dict(measure(kept, rounds))
    if isinstance(problem, Tasks):
        expected = trunk_gradient(kept[NAIVE].contender, problem)
        for name, runner in kept.items():
            if name not in (PLAIN, NAIVE):
                apart = (trunk_gradient(runner.contender, problem) - expected).norm() / expected.norm()
                figures[name]["difference_to_naive_loop"] = float(f"{float(apart):.1e}")
    if with_memory and best is not None:
        plain = megabytes(case.name, PLAIN)
        for name in (*case.ours, best):
            if name in kept:
                figures[name]["megabytes_above_plain_sum"] = round(megabytes(case.name, name) - plain, 1)
        figures[PLAIN]["megabytes"] = round(plain, 1)
    required = {"at_most": case.at_most, "times_faster": case.faster, "share_of_memory": case.share}
    return {
        "case": case.name,
        "ours": case.ours,
        "peer": best,
        "required": required,
        "figures": figures,
        "configurations_of_peer": trial,
        "unable": unable,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="turns a case (default: 15)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step.json")
    options = parser.parse_args()
    run_on_one_thread()
    warnings.simplefilter("ignore")
    results = []
    for case in CASES:
        if options.only in case.name:
            results.append(run(case, options.rounds, with_memory=not options.no_memory))
            show(results[-1])
    save(options.out, rounds=options.rounds, cases=results)
    print(table(results))


def show(result: dict[str, Any]) -> None:
    print(result["case"])
    for name, row in result["figures"].items():
        memory = row.get("megabytes_above_plain_sum")
        above = "" if memory is None else f"   {memory:7.1f} MB above"
        print(f"  {name:90s} {row['milliseconds']:9.2f} ms   {row['relative_to_plain_sum']:6.2f} x plain sum{above}")
    for name, reason in result["unable"].items():
        print(f"  {name:90s} {reason}", flush=True)


if __name__ == "__main__":
    main()
