"""What one surgery costs: forward, backward and aggregation against the plain sum, in one process, in pairs.

Run with ``make bench``. With ``torchjd`` installed it is measured in the same rounds. Writes
``benchmarks/results/step.json``.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from recording import save
from torch import Tensor, nn

import gradsurgery as gs

CASES = [
    # layers, width, batch, losses
    (4, 64, 32, 8),
    (4, 256, 64, 2),
    (4, 256, 64, 8),
    (4, 1024, 128, 2),
    (4, 1024, 128, 8),
]


class Problem:
    """A trunk of equal layers and K small heads."""

    def __init__(self, layers: int, width: int, batch: int, losses: int) -> None:
        torch.manual_seed(0)
        self.trunk = nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())])
        self.heads = nn.ModuleList(nn.Linear(width, 4) for _ in range(losses))
        self.inputs = torch.randn(batch, width)
        self.parameters = [*self.trunk.parameters(), *self.heads.parameters()]

    def losses(self) -> list[Tensor]:
        z = self.trunk(self.inputs)
        return [(head(z) - k).square().mean() for k, head in enumerate(self.heads)]

    def clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def contenders(problem: Problem) -> dict[str, Callable[[], object]]:
    """What is measured; each does one forward pass and fills ``.grad``."""
    found: dict[str, Callable[[], object]] = {
        "plain sum": lambda: torch.stack(problem.losses()).sum().backward(),
    }
    plain = torch.optim.SGD(problem.parameters, lr=0.0)
    for engine in ("loop", "func"):
        wrapped = gs.MultiObjectiveOptimizer(plain, gs.UPGrad(), shared=problem.trunk, engine=engine)
        found[f"gradsurgery, {engine}, UPGrad"] = wrapped_step(wrapped, problem)
    if importlib.util.find_spec("torchjd"):
        found["torchjd, mtl_backward, UPGrad"] = torchjd_step(problem)
    return found


def wrapped_step(wrapped: gs.MultiObjectiveOptimizer, problem: Problem) -> Callable[[], object]:
    return lambda: wrapped.backward(problem.losses)


def torchjd_step(problem: Problem) -> Callable[[], object]:
    from torchjd.aggregation import UPGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregator = UPGrad()

    def step() -> None:
        z = problem.trunk(problem.inputs)
        losses = [(head(z) - k).square().mean() for k, head in enumerate(problem.heads)]
        mtl_backward(losses, features=z)
        jac_to_grad(problem.trunk.parameters(), aggregator)

    return step


def measure(steps: dict[str, Callable[[], object]], problem: Problem, rounds: int) -> dict[str, dict[str, float]]:
    """Medians over rounds; in each round every contender runs once, and is compared with that round's plain sum."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 3):
        for name, step in steps.items():
            problem.clear()
            start = time.perf_counter()
            step()
            if turn >= 3:  # the first rounds warm up
                seconds[name].append(time.perf_counter() - start)
    reference = seconds["plain sum"]
    return {
        name: {
            "milliseconds": round(1e3 * statistics.median(values), 3),
            "relative_to_plain_sum": round(
                statistics.median(v / r for v, r in zip(values, reference, strict=True)), 2
            ),
        }
        for name, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="rounds a case (default: 25)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for layers, width, batch, losses in CASES:
        problem = Problem(layers, width, batch, losses)
        figures = measure(contenders(problem), problem, options.rounds)
        results.append({"layers": layers, "width": width, "batch": batch, "losses": losses, "figures": figures})
        print(f"{layers} x {width}, batch {batch}, K = {losses}")
        for name, row in figures.items():
            print(f"  {name:32s} {row['milliseconds']:9.2f} ms   {row['relative_to_plain_sum']:5.2f} x plain sum")
    save(options.out, rounds=options.rounds, cases=results)


if __name__ == "__main__":
    main()
