"""What seeds trained together cost, and surgery in them: a step of the tables' models on randhie, in CPU time.

Five seeds in steps of one seed, and a step with surgery in plain steps, for each model and method. Run with
``make bench``. Writes ``benchmarks/results/seeds.json``.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from recording import save

from gradsurgery.integrations.vae import Table
from gradsurgery.integrations.vae.cli.tables import read_table
from gradsurgery.integrations.vae.models.registry import MODELS
from gradsurgery.integrations.vae.stacked.loop import StackedLoop
from gradsurgery.integrations.vae.training.methods import build_method
from gradsurgery.integrations.vae.training.preparation import Settings, prepare

ROOT = Path(__file__).parent.parent
METHODS = ("sum", "lossbalancer", "gradnorm", "upgrad", "pcgrad", "lossbalancer+pcgrad", "graddrop")
ROWS = 3000


def build(table: Table, model: Any, method: str, seeds: int) -> StackedLoop:
    settings = Settings(model=model)
    built = [prepare(table, build_method(method, seed), settings, seed) for seed in range(seeds)]
    return StackedLoop("benchmark", built, range(seeds), settings)


def measure(table: Table, model: Any, turns: int) -> dict[str, Any]:
    """Medians over the turns of the ratios within a turn."""
    loops = {(method, seeds): build(table, model, method, seeds) for method in METHODS for seeds in (1, 5)}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in loops}
    for turn in range(turns + 1):  # the first warms up
        for key, loop in loops.items():
            start = time.process_time()
            loop.train_epoch()
            if turn:
                times[key].append(time.process_time() - start)
    steps = -(-loops["sum", 1].rows // loops["sum", 1].batch_size)

    def ratio(one: tuple[str, int], other: tuple[str, int]) -> float:
        return round(statistics.median(a / b for a, b in zip(times[one], times[other], strict=True)), 3)

    return {
        method: {
            "milliseconds_one_seed": round(1e3 * statistics.median(times[method, 1]) / steps, 3),
            "five_seeds_in_one": ratio((method, 5), (method, 1)),
            "in_plain_steps_one_seed": ratio((method, 1), ("sum", 1)),
            "in_plain_steps_five_seeds": ratio((method, 5), ("sum", 5)),
        }
        for method in METHODS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole = Table.from_frame(read_table("randhie"))
    table = Table(whole.schema, whole.values[:ROWS])
    results = {}
    for model in MODELS:
        results[model] = measure(table, model, options.turns)
        print(f"{model:6} {'method':20} {'ms':>7}  5 seeds  plain steps (1 seed, 5 seeds)")
        for method, row in results[model].items():
            ms, five, one, many = row.values()
            print(f"{'':6} {method:20} {ms:7.2f}  {five:7.2f}  {one:7.2f} {many:7.2f}", flush=True)
    save(ROOT / "benchmarks/results/seeds.json", table="randhie", rows=ROWS, turns=options.turns, results=results)


if __name__ == "__main__":
    main()
