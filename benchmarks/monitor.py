"""What watching costs: a step with a monitor against the same step without, alternately, in one process.

Two claims. Where a surgery has formed the Gramian, a monitor adds under 2% to a step (forward pass, surgery), with
``every=1``; measured in pairs of steps, and by itself, as microseconds of one recorded step. Only the latter includes
putting in order what was recorded, every 256 steps: it decides. Training on a plain sum, one sampled pass costs its K
backward passes divided by ``every``. Processor time, on one thread. Writes ``benchmarks/results/monitor.json``.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from memory import run_on_one_thread
from models import Sizes, Tasks, cnn, mlp
from recording import save
from torch import Tensor, nn

import gradsurgery as gs

AT_MOST = 0.02  # of a step
SHORTEST = 50e-3  # seconds that the timing of plain sums has to last
ALONE = 2000  # recorded steps whose time is averaged


class LastState(nn.Module):
    """What a GRU ends with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, sequence: Tensor) -> Tensor:
        state: Tensor = self.gru(sequence)[1][0]
        return state


def gru(width: int, batch: int, length: int, losses: int) -> Tasks:
    torch.manual_seed(0)
    return Tasks(LastState(width), width, torch.randn(batch, length, width), losses)


SURGERIES: dict[str, Callable[[], Tasks]] = {
    "trunk 4 x 64, batch 32, K = 8": partial(mlp, Sizes(64, 32, 8)),
    "trunk 4 x 1024, batch 128, K = 8": partial(mlp, Sizes(1024, 128, 8)),
    "GRU 64, batch 32, 20 steps, K = 4": partial(gru, 64, 32, 20, 4),
    "CNN with BatchNorm, batch 16, K = 4": partial(cnn, 16, 16, 32, 4),
}
SUMS: dict[str, Callable[[], Tasks]] = {
    f"trunk 4 x {width}, batch {batch}, K = {count}": partial(mlp, Sizes(width, batch, count))
    for width, batch in ((64, 32), (1024, 128))
    for count in (2, 8)
}


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Processor time of one call."""
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats


def of_surgeries(problem: Tasks, spend: float) -> dict[str, Any]:
    """With the Gramian there: steps with every=1 or every=10 against steps without, one after the other."""
    optimizer = gs.MultiObjectiveOptimizer(problem.optimizer, gs.UPGrad(), shared=problem.trunk)

    def step() -> None:
        optimizer.zero_grad()
        optimizer.backward(problem.losses())

    step()
    pairs = max(20, min(3000, round(spend / 4 / seconds(step, 3))))
    found = {every: paired(step, optimizer, every, max(12, pairs // every)) for every in (1, 10)}
    monitor, surgery = gs.ConflictMonitor(optimizer, every=1), optimizer.last_surgery
    alone = statistics.median(seconds(lambda: monitor._seen(surgery), ALONE) for _ in range(7))  # type: ignore[arg-type]
    plain = statistics.median(without for without, _ in found[1])
    return {
        "step_ms": round(1e3 * plain, 3),
        "recorded_step_us": round(1e6 * alone, 2),
        "share_of_step": round(alone / plain, 5),
        "required": AT_MOST,
        "pairs": pairs,
        "paired": {
            str(every): round(statistics.median(own / without for without, own in turns), 4)
            for every, turns in found.items()
        },
    }


def paired(
    step: Callable[[], None], optimizer: gs.MultiObjectiveOptimizer, every: int, pairs: int
) -> list[tuple[float, float]]:
    """Times of ``every`` steps without a monitor and with one, which is due once; which comes first, by turns."""
    times = []
    for turn in range(pairs):
        found = {}
        for watched in (turn % 2 == 0, turn % 2 == 1):
            monitor = gs.ConflictMonitor(optimizer, every=every) if watched else None
            found[watched] = seconds(step, every)
            if monitor is not None:
                monitor.close()
        times.append((found[False], found[True]))
    return times


def of_plain_sums(problem: Tasks, rounds: int) -> dict[str, Any]:
    """One sampled pass by itself, and steps with one in every so many against steps without."""
    model = nn.ModuleList([problem.trunk, problem.heads])

    def step(monitor: gs.ConflictMonitor | None = None) -> None:
        problem.optimizer.zero_grad()
        losses = problem.losses()
        if monitor is not None:
            monitor.record(losses)
        torch.stack(losses).sum().backward()

    step()
    usual = seconds(step, 5)
    monitors = {every: gs.ConflictMonitor(model, every=every) for every in (1, 10, 50)}
    never = gs.ConflictMonitor(model, every=10**9)
    losses = problem.losses()
    never.record(losses)
    skipped = statistics.median(seconds(lambda: never.record(losses), 100_000) for _ in range(5))
    ratios: dict[int, list[float]] = {every: [] for every in monitors}
    plains = []
    for _ in range(rounds):
        for every, monitor in monitors.items():
            repeats = every * max(1, round(SHORTEST / every / usual))
            plain = seconds(step, repeats)
            ratios[every].append(seconds(partial(step, monitor), repeats) / plain)
            plains.append(plain)
    above = {every: statistics.median(found) - 1 for every, found in ratios.items()}
    return {
        "step_ms": round(1e3 * statistics.median(plains), 3),
        "sampled_pass_in_steps": round(above[1], 3),
        "above_plain_sum": {str(every): round(share, 4) for every, share in above.items()},
        "expected": {str(every): round(above[1] / every, 4) for every in above},
        "step_that_is_not_due_us": round(1e6 * skipped, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each case with surgery, about (default: 20)")
    parser.add_argument("--rounds", type=int, default=9, help="turns a case with a plain sum (default: 9)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "monitor.json")
    options = parser.parse_args()
    run_on_one_thread()
    warnings.simplefilter("ignore")
    surgeries, sums = {}, {}
    for name, build in SURGERIES.items():
        if options.only in name:
            surgeries[name] = of_surgeries(build(), options.seconds)
            print(f"surgery, {name}: {surgeries[name]}", flush=True)
    for name, build in SUMS.items():
        if options.only in name:
            sums[name] = of_plain_sums(build(), options.rounds)
            print(f"plain sum, {name}: {sums[name]}", flush=True)
    save(options.out, rounds=options.rounds, surgeries=surgeries, plain_sums=sums)


if __name__ == "__main__":
    main()
