"""What a method costs: from a K x K Gramian to weights, every method beside the same one of torchjd, in one process.

Both libraries get the same Gramians in turns, each in the precision in which it forms them itself: float64 here,
float32 there. Compared is a method's own function, ``weights``; ``checked`` is the call around it that the wrapper
makes, with all checks and the rollback. Methods that need the gradients themselves, here or there, get a Jacobian in
both. Run with ``make bench``; with ``torchjd`` and ``cvxpy`` installed it takes part. Writes
``benchmarks/results/weights.json``.
"""

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import save
from torch import Tensor

import gradsurgery as gs
from gradsurgery.aggregators import CONTRACTS, Aggregator, GramianAggregator

SIZES = (2, 4, 8, 16, 32, 64)
COLUMNS = 256  # more than K: the rows are independent
SHORTEST = 1e-3  # seconds that one timing has to last: fast calls are repeated

# With the same options as the peer has below, where those of the registry differ.
OURS: dict[str, Callable[[int], Aggregator]] = {
    "Constant": lambda k: gs.aggregators.Constant(torch.linspace(0.5, 1.5, k)),
    "Krum": lambda k: gs.aggregators.Krum(1),
    "SDMGrad": lambda k: gs.aggregators.SDMGrad(lr=10.0),
    "TrimmedMean": lambda k: gs.aggregators.TrimmedMean(1),
}
FEWEST = {"Krum": 4, "TrimmedMean": 4}  # losses, with these options
# How torchjd builds the same method, where it has it, and what that needs.
PEERS: dict[str, tuple[str, Callable[[Any, int], Any]]] = {
    "Sum": ("gramian", lambda a, k: a.SumWeighting()),
    "Mean": ("gramian", lambda a, k: a.MeanWeighting()),
    "Constant": ("gramian", lambda a, k: a.ConstantWeighting(torch.linspace(0.5, 1.5, k))),
    "Random": ("gramian", lambda a, k: a.RandomWeighting()),
    "MGDA": ("gramian", lambda a, k: a.MGDAWeighting()),
    "PCGrad": ("gramian", lambda a, k: a.PCGradWeighting()),
    "GradVac": ("gramian", lambda a, k: a.GradVacWeighting(beta=0.01)),
    "CAGrad": ("gramian", lambda a, k: a.CAGradWeighting(c=0.4)),
    "IMTLG": ("gramian", lambda a, k: a.IMTLGWeighting()),
    "FairGrad": ("gramian", lambda a, k: a.FairGradWeighting(alpha=2.0)),
    "AlignedMTL": ("gramian", lambda a, k: a.AlignedMTLWeighting()),
    "UPGrad": ("gramian", lambda a, k: a.UPGradWeighting()),
    "DualProj": ("gramian", lambda a, k: a.DualProjWeighting()),
    "Krum": ("gramian", lambda a, k: a.KrumWeighting(n_byzantine=1, n_selected=1)),
    "CRMOGM": ("gramian", lambda a, k: a.CRMOGMWeighting(a.MGDAWeighting())),
    "PCD": ("gramian", lambda a, k: a.PCDWeighting()),
    "NashMTL": ("root", lambda a, k: a.NashMTL(n_tasks=k)),
    "ConFIG": ("root", lambda a, k: a.ConFIG()),
    "MoDo": ("cross", lambda a, k: a.MoDoWeighting()),
    "SDMGrad": ("cross", lambda a, k: a.SDMGradWeighting()),
    "ExcessMTL": ("jacobian", lambda a, k: a.ExcessMTL()),
    "TrimmedMean": ("jacobian", lambda a, k: a.TrimmedMean(trim_number=1)),
    "GradDrop": ("jacobian", lambda a, k: a.GradDrop()),
}


@dataclass
class Problem:
    """One Gramian, and a Jacobian that has it."""

    rows: Tensor  # (K, 256), float64
    losses: Tensor

    def argument(self, needs: str, dtype: torch.dtype) -> Tensor:
        """The Gramian, a square Jacobian with that Gramian, or the Jacobian."""
        if needs in ("gramian", "cross"):
            return (self.rows @ self.rows.mT).to(dtype)
        if needs == "root":  # what its product with itself costs is nothing beside the method
            return torch.linalg.qr(self.rows.mT).R.mT.contiguous().to(dtype)
        return self.rows.to(dtype)


def problems(count: int) -> dict[str, Problem]:
    """Two kinds: rows in mild conflict, and rows that nearly cancel, with norms up to ten apart."""
    source = np.random.default_rng(count)
    gaussian = source.standard_normal((count, COLUMNS))
    cancelling = (gaussian - 0.95 * gaussian.mean(0)) * np.geomspace(1.0, 10.0, count)[:, None]
    losses = torch.from_numpy(source.uniform(0.5, 2.0, count))
    return {
        "mild": Problem(torch.from_numpy(gaussian), losses),
        "cancelling": Problem(torch.from_numpy(cancelling), losses),
    }


def ours(method: Any, problem: Problem, needs: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """A method's own function, which is what is compared, and the call that adds all checks."""
    if needs == "cross":  # a product of two square matrices, a step, and what it led to
        root, gramian = problem.argument("root", torch.float64), problem.argument("gramian", torch.float64)
        return (lambda: (method.observe(root, root), method.weights(gramian)),) * 2
    if needs != "jacobian" and isinstance(method, GramianAggregator) and not method.needs_jacobian:
        gramian = problem.argument("gramian", torch.float64)
        return lambda: method.weights(gramian, problem.losses), lambda: method.solve(gramian, problem.losses)
    jacobian = problem.argument("jacobian", torch.float32)
    return lambda: method.direction([jacobian], problem.losses), lambda: method(jacobian, problem.losses)


def theirs(name: str, problem: Problem) -> Callable[[], object] | None:
    """A call of the same method of torchjd, or None if it has none for this K."""
    if name not in PEERS or importlib.util.find_spec("torchjd") is None:
        return None
    from torchjd import aggregation

    needs, build = PEERS[name]
    try:
        method = build(aggregation, len(problem.rows))
        argument = problem.argument(needs, torch.float32)
        method(argument)
    except (ImportError, ValueError) as error:
        print(f"  torchjd {name} at K = {len(problem.rows)}: {type(error).__name__}: {error}")
        return None
    return lambda: method(argument)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The time of one call, averaged over ``repeats``."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Medians over turns; in each turn all are called, and the ratios are taken within the turn."""
    repeats = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        repeats[name] = max(1, min(500, round(SHORTEST / max(1e-7, seconds(call, 3)))))
    timings = [{name: seconds(call, repeats[name]) for name, call in calls.items()} for _ in range(turns)]
    figures = {f"{name}_us": round(1e6 * statistics.median(row[name] for row in timings), 2) for name in calls}
    if "torchjd" in calls:
        for name in ("weights", "checked"):
            figures[f"torchjd_over_{name}"] = round(
                statistics.median(row["torchjd"] / row[name] for row in timings), 2
            )
    return figures


def batched(build: Callable[[], Aggregator], turns: int) -> float | None:
    """One call for 64 Gramians with K = 8, relative to a call for one of them."""
    method, single = build(), build()
    if not isinstance(method, GramianAggregator) or method.needs_jacobian:
        return None
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 8, COLUMNS)))
    gramians = rows @ rows.mT
    losses = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    pairs = []
    for turn in range(turns + 3):
        together = seconds(lambda: method.weights(gramians, losses), 3)
        alone = seconds(lambda: [single.weights(gramian, losses) for gramian in gramians], 1) / 64
        if turn >= 3:
            pairs.append(together / alone)
    return round(statistics.median(pairs), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15, help="turns a case (default: 15)")
    parser.add_argument("--methods", nargs="*", help="class names (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "weights.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a solver of the peer's warns
    results: dict[str, Any] = {}
    for cls, contract in CONTRACTS.items():
        name = cls.__name__
        if options.methods and name not in options.methods:
            continue
        needs = PEERS[name][0] if name in PEERS else contract.kind
        cases: dict[str, Any] = {}
        for count in SIZES:
            for kind, problem in problems(count).items() if count >= FEWEST.get(name, 0) else ():
                method = OURS[name](count) if name in OURS else contract.build()
                bare, checked = ours(method, problem, needs)
                calls = {"weights": bare, "checked": checked}
                peer = theirs(name, problem)
                if peer is not None:
                    calls["torchjd"] = peer
                cases[f"{count}, {kind}"] = measure(calls, options.turns)
        results[name] = {"needs": contract.kind, "cases": cases}
        factor = batched(contract.build, options.turns)
        if factor is not None:
            results[name]["64_gramians_over_one"] = factor
        line = "  ".join(
            f"{k}: {c['weights_us']:.0f} ({c.get('torchjd_over_weights', '-')})" for k, c in cases.items()
        )
        print(f"{name:20s} {line}  64 in one: {factor}", flush=True)
    save(options.out, turns=options.turns, methods=results)


if __name__ == "__main__":
    main()
