"""How the cost of a step grows with the losses, the width and the batch, and the least it could be.

A trunk of four equal linear layers with ReLU and small heads, UPGrad. Time is measured in pairs, in one process; peak
memory in a process for each point. The floor beside each curve is what its arithmetic takes at the rate of this
machine's matrix products of the same shape, and what its tensors occupy. Writes ``benchmarks/results/growth.json``
and ``docs/growth.png``.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from contenders import AUTO, PLAIN, builders
from memory import megabytes, run_on_one_thread
from models import DEPTH, Sizes, mlp
from recording import save
from step import Runner, able, measure

ROOT = Path(__file__).parent.parent
BASE = Sizes(width=512, batch=128, losses=8)
SWEEPS = {
    "losses": [2, 4, 8, 16, 32],
    "width": [64, 128, 256, 512, 1024],
    "batch": [16, 32, 64, 128, 256, 512],
}
LOOP = "gradsurgery, loop"
CURVES = {PLAIN: ("plain sum", "0.45"), AUTO: ("gradsurgery", "C0"), LOOP: ("one backward pass a loss", "C1")}


def rate(rows: int, width: int) -> float:
    """Operations a second of this machine's float32 matrix products of a layer with so many rows."""
    left, right = torch.randn(rows, width), torch.randn(width, width)
    operations = 2 * rows * width * width
    repeats = max(1, round(2e8 / operations))
    fastest = float("inf")
    for _ in range(15):
        start = time.perf_counter()
        for _ in range(repeats):
            left @ right
        fastest = min(fastest, (time.perf_counter() - start) / repeats)
    return operations / fastest


def floors(sizes: Sizes) -> dict[str, dict[str, float]]:
    """The least that each way can take: milliseconds of arithmetic, and megabytes in use at once.

    One product with every weight matrix forwards; backwards for each gradient that is carried down to the first
    layer one product less, and one for each gradient of the weights. The Gramian of a layer comes from whichever is
    least: per-loss gradients; the inner products of what the layer received and of its inputs; or per-loss gradients
    with the inputs replaced by a square factor of theirs. For the last two no gradient but the direction is formed,
    all losses go down together, and what is held of that is one layer's.
    """
    width, rows, count = sizes.width, sizes.batch, sizes.losses
    weights, activations = DEPTH * width * width, DEPTH * rows * width
    product, down = 2 * rows * weights, 2 * rows * weights * (DEPTH - 1) / DEPTH
    from_gradients = product * count + count**2 * weights
    from_received = DEPTH * width * ((count * rows) ** 2 + rows**2)
    from_factors = DEPTH * (width * rows**2 * (1 + count) + rows**3 / 3 + count**2 * rows * width)
    gramian = min(from_gradients, from_received, from_factors)
    alone, together = rate(rows, width), rate(count * rows, width)
    seconds = {
        PLAIN: (2 * product + down) / alone,
        AUTO: 2 * product / alone + (count * down + gramian) / together,
        LOOP: (product + count * (down + product) + (count**2 + 2 * count) * weights) / alone,
    }
    numbers = {
        PLAIN: activations + weights,
        AUTO: activations + max(weights, count * rows * width),
        LOOP: activations + (count + 1) * weights,
    }
    return {name: {"milliseconds": 1e3 * seconds[name], "megabytes": 4 * numbers[name] / 2**20} for name in CURVES}


def point(sizes: Sizes, rounds: int, *, with_memory: bool) -> dict[str, Any]:
    """One network: what was measured and the floors."""
    problem = mlp(sizes)
    built = {name: builder for name, builder in builders(problem).items() if name in CURVES}
    runners: dict[str, Runner] = able(built)[0]
    measured = measure(runners, rounds)
    lowest = floors(sizes)
    result: dict[str, Any] = {}
    for name in runners:
        result[name] = {"milliseconds": measured[name]["milliseconds"], "floor": lowest[name]}
        if with_memory:
            result[name]["megabytes"] = round(megabytes(sizes.name, name), 2)
    return result


def draw(record: dict[str, Any], path: Path) -> None:
    """Two rows, time and memory; three columns, what grows."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(9.5, 6), sharex="col", sharey="row", layout="constrained")
    labels = {"losses": "losses K", "width": "width of the four layers", "batch": "batch"}
    units = {"milliseconds": "milliseconds a step", "megabytes": "peak memory of a step, MB"}
    for column, (swept, points) in enumerate(record["sweeps"].items()):
        values = SWEEPS[swept]
        fixed = ", ".join(f"{name} {value}" for name, value in record["base"].items() if name != swept)
        axes[0, column].set_title(fixed, fontsize=10)
        axes[1, column].set_xlabel(labels[swept])
        for row, quantity in enumerate(units):
            axis = axes[row, column]
            for name, (label, color) in CURVES.items():
                if quantity not in points[0][name]:
                    continue
                axis.loglog(values, [each[name][quantity] for each in points], "o-", color=color, label=label, ms=3.5)
                lowest = [each[name]["floor"][quantity] for each in points]
                axis.loglog(values, lowest, ":", color=color, label=f"{label}, floor", lw=1.3)
            axis.set_xticks(values, [str(value) for value in values], minor=False)
            axis.minorticks_off()
            axis.grid(color="0.9")
    for row, unit in enumerate(units.values()):
        axes[row, 0].set_ylabel(unit)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="turns a point (default: 11)")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "growth.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "growth.png")
    options = parser.parse_args()
    run_on_one_thread()
    warnings.simplefilter("ignore")
    sweeps: dict[str, list[Any]] = {}
    for swept, values in SWEEPS.items():
        for value in values:
            sizes = BASE._replace(**{swept: value})
            found = point(sizes, options.rounds, with_memory=not options.no_memory)
            sweeps.setdefault(swept, []).append(found)
            times = ", ".join(f"{name} {row['milliseconds']:.2f} ms" for name, row in found.items())
            print(f"{swept} {value}: {times}", flush=True)
    record = {"rounds": options.rounds, "base": BASE._asdict(), "values": SWEEPS, "sweeps": sweeps}
    save(options.out, **record)
    draw(record, options.picture)


if __name__ == "__main__":
    main()
