"""What surgery costs on several ranks: steps with several losses beside those of plain data parallel training.

Ranks are processes of one machine that talk over gloo, one thread each; each has an equal part of the batch. A step
is a forward pass and ``.grad`` filled. All contenders take turns in the same processes, among them the same steps on
each rank alone, without a word to the others: what is between the two ratios is communication. Writes
``benchmarks/results/ranks.json``.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import tempfile
import time
import warnings
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from contenders import Contender
from memory import RETURNED, STEPS, _resident, run_on_one_thread
from models import Sizes, mlp
from rank_tables import ALONE, BLOCK, PLAIN, REPLICATED, SCALARIZER, SHARDED, SURGERY, Way, times, traffic
from recording import save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from wire import Wire

import gradsurgery as gs

TRUNKS = [(64, 32), (256, 64), (1024, 128)]  # width and batch of all ranks together
LOSSES = [2, 4, 8]
ENGINES = {ALONE: "loop", REPLICATED: "loop", SHARDED: "sharded"}
SHORTEST = 0.05  # seconds that one timing has to last: fast steps are repeated
WARM = 3  # steps before anything is measured: DistributedDataParallel settles in the second
PATIENCE = timedelta(minutes=5)


WAYS = [
    *(Way(where, method) for where in (REPLICATED, ALONE) for method in (PLAIN, SURGERY, BLOCK, SCALARIZER)),
    Way(SHARDED, PLAIN),
    Way(SHARDED, SURGERY),
]


class Network(nn.Module):
    """Trunk and heads as one module that returns the losses, with a block between them if there is one."""

    def __init__(self, trunk: nn.Module, heads: nn.ModuleList, block: gs.ImpartialityBlock | None) -> None:
        super().__init__()
        self.trunk, self.heads, self.block = trunk, heads, block

    def forward(self, inputs: Tensor) -> list[Tensor]:
        z = self.trunk(inputs)
        views = [z] * len(self.heads) if self.block is None else self.block(z)
        outputs = [head(view) for head, view in zip(self.heads, views, strict=True)]
        return [(output - k).square().mean() for k, output in enumerate(outputs)]


class Rank:
    """One of the processes."""

    def __init__(self, rank: int, size: int, store: str) -> None:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=PATIENCE)
        self.rank, self.size = rank, size
        self.alone, _ = dist.new_subgroups(group_size=1)

    def build(self, way: Way, sizes: Sizes) -> Contender:
        """One way to do a step on this rank's part of the batch."""
        problem = mlp(sizes)
        inputs = problem.inputs.chunk(self.size)[self.rank].clone()
        group = self.alone if way.where == ALONE else None
        block = gs.ImpartialityBlock(sizes.losses, gs.PCGrad(), process_group=group) if way.method == BLOCK else None
        network: nn.Module = Network(problem.trunk, problem.heads, block)
        model = placed(network, way.where)
        parameters: list[Tensor] = list(network.parameters())
        if way.method in (PLAIN, BLOCK):
            return Contender(lambda: torch.stack(model(inputs)).sum().backward(), parameters)
        plain = torch.optim.SGD(parameters, lr=0.0)
        options: dict[str, Any] = {"process_group": group}
        if way.method == SURGERY:
            options |= {"shared": network.trunk, "engine": ENGINES[way.where]}
        method = gs.UPGrad() if way.method == SURGERY else gs.scalarizers.UncertaintyWeighting()
        optimizer = gs.MultiObjectiveOptimizer(plain, method, **options)
        return Contender(lambda: optimizer.backward(model(inputs)), parameters)

    def slowest(self, seconds: list[float]) -> list[float]:
        """Each figure of the rank on which it is largest."""
        table = torch.tensor(seconds, dtype=torch.float64)
        dist.all_reduce(table, dist.ReduceOp.MAX)
        found: list[float] = table.tolist()
        return found

    def seconds(self, contender: Contender, repeats: int) -> float:
        """Seconds a step; the ranks start together."""
        dist.barrier()
        start = time.perf_counter()
        for _ in range(repeats):
            contender.run()
        return (time.perf_counter() - start) / repeats

    def measure(self, sizes: Sizes, rounds: int) -> dict[str, dict[str, float]]:
        """Medians over turns, in each of which every contender is compared with the plain sum in the same place."""
        contenders = {way: self.build(way, sizes) for way in WAYS}
        figures: dict[str, dict[str, float]] = {}
        repeats = {}
        for way, contender in contenders.items():
            warm = [self.seconds(contender, 1) for _ in range(WARM)]
            (usual,) = self.slowest([min(warm)])
            repeats[way] = max(1, round(SHORTEST / usual))
            with Wire(self.size) as wire:
                contender.run()
            figures[way.name] = {"collectives": wire.calls, "elements_sent": wire.elements}
        spent: dict[Way, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, contender in contenders.items():
                spent[way].append(self.seconds(contender, repeats[way]))
        spent = {way: self.slowest(own) for way, own in spent.items()}
        for way, own in spent.items():
            figures[way.name] |= {
                "milliseconds": round(1e3 * statistics.median(own), 3),
                "relative_to_plain_sum": _ratio(own, spent[way.plain]),
                "relative_to_plain_sum_replicated": _ratio(own, spent[Way(REPLICATED, PLAIN)]),
                "turns": rounds,
            }
        return figures

    def megabytes(self, way: Way, sizes: Sizes) -> float:
        """Peak memory above that without a model: model, buffers and steps; see ``memory.py``."""
        for warming in (Way(ALONE, PLAIN), way._replace(where=ALONE)):  # loads what is loaded on first use
            self.build(warming, sizes).run()
        self.build(way, sizes._replace(width=16)).run()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the highest value so far is forgotten
        contender = self.build(way, sizes)
        for _ in range(STEPS):
            contender.run()
        (found,) = self.slowest([(_resident("VmHWM") - before) / 1024])
        return round(found, 1)


def placed(network: nn.Module, where: str) -> nn.Module:
    """The network as it is trained; FSDP2 has one unit a layer of the trunk, and the heads in the root's."""
    if where == REPLICATED:
        return DistributedDataParallel(network)
    if where == SHARDED:
        from torch.distributed.fsdp import fully_shard

        for layer in network.trunk.children():
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        return fully_shard(network)
    return network


def numbers(sizes: Sizes, ranks: int) -> dict[str, float]:
    """How many parameters there are, and what one rank sends of them in a step, by formula."""
    problem = mlp(sizes)
    shared, specific = (
        sum(parameter.numel() for parameter in part.parameters()) for part in (problem.trunk, problem.heads)
    )
    share = (ranks - 1) / ranks
    return {
        "shared": shared,
        "task_specific": specific,
        "sent_by_formula": share * ((sizes.losses + 1) * shared + 2 * specific),
        "sent_for_one_gradient": share * 2 * (shared + specific),
    }


def work(rank: int, size: int, folder: str, cases: list[Sizes], rounds: int) -> None:
    """What one process does: times if there are rounds, otherwise peak memory."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    process = Rank(rank, size, f"{folder}/store")
    for position, sizes in enumerate(cases):
        if rounds:
            found: Any = process.measure(sizes, rounds)
        else:
            found = {way.name: {"megabytes": process.megabytes(way, sizes)} for way in WAYS}
        gc.collect()
        if rank == 0:
            Path(f"{folder}/{position}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@contextmanager
def environment(variables: dict[str, str]) -> Any:
    """Sets variables for processes that are started meanwhile."""
    kept = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def on_ranks(size: int, cases: list[Sizes], rounds: int) -> list[dict[str, dict[str, float]]]:
    """Figures by contender, for each case."""
    with tempfile.TemporaryDirectory() as folder, environment({} if rounds else RETURNED):
        torch.multiprocessing.spawn(work, (size, folder, cases, rounds), size)
        return [json.loads(Path(f"{folder}/{position}.json").read_text()) for position in range(len(cases))]


def run(size: int, cases: list[Sizes], rounds: int, *, with_memory: bool) -> list[dict[str, Any]]:
    """All cases on so many ranks."""
    results = []
    memory = on_ranks(size, cases, 0) if with_memory else [{} for _ in cases]
    for sizes, figures, more in zip(cases, on_ranks(size, cases, rounds), memory, strict=True):
        merged = {name: own | more.get(name, {}) for name, own in figures.items()}
        results.append({"case": sizes.name, "ranks": size, "numbers": numbers(sizes, size), "figures": merged})
    return results


def _ratio(own: list[float], plain: list[float]) -> float:
    return round(statistics.median(mine / theirs for mine, theirs in zip(own, plain, strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="turns a case (default: 11)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2], help="how many ranks (default: 2)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ranks.json")
    options = parser.parse_args()
    run_on_one_thread()
    cases = [Sizes(width, batch, losses) for width, batch in TRUNKS for losses in LOSSES]
    cases = [sizes for sizes in cases if options.only in sizes.name]
    before = os.getloadavg()[0]
    results = []
    for size in options.ranks:
        results += run(size, cases, options.rounds, with_memory=not options.no_memory)
    machine = {"backend": "gloo, one machine", "cores": os.cpu_count(), "load_before": round(before, 2)}
    save(options.out, **machine, threads_a_rank=1, rounds=options.rounds, cases=results)
    print(times(results), traffic(results), sep="\n\n")


if __name__ == "__main__":
    main()
