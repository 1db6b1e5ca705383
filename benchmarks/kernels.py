"""What the fused kernels reach on a GPU: bytes a second against a copy on the device, and one launch of a projection.

Run by hand on a machine with a GPU: ``python benchmarks/kernels.py``. Writes ``benchmarks/results/kernels.json``;
without a GPU it says so and writes nothing.
"""

import argparse
import importlib.metadata
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from recording import save
from torch import Tensor

from gradsurgery import kernels

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COPIED = 1 << 30  # bytes


def blocks_of(losses: int, parameters: int, tensors: int, dtype: torch.dtype) -> list[Tensor]:
    """A Jacobian in equal blocks with an odd number of columns, as sizes of layers are."""
    columns = parameters // tensors | 1
    return [torch.randn(losses, columns, device="cuda", dtype=dtype) for _ in range(tensors)]


def milliseconds(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians over rounds in which every step runs once, after three that warm up."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 3):
        for name, step in steps.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            step()
            end.record()
            end.synchronize()
            if turn >= 3:
                found[name].append(start.elapsed_time(end))
    return {name: statistics.median(values) for name, values in found.items()}


def passes(losses: int, parameters: int, tensors: int, dtype: str, rounds: int) -> dict[str, object]:
    """Bandwidths of the two passes over the Jacobian, relative to that of a copy."""
    blocks = blocks_of(losses, parameters, tensors, DTYPES[dtype])
    out = [torch.zeros_like(block[0]) for block in blocks]
    weights = torch.rand(1, losses, device="cuda", dtype=torch.float64)
    source = torch.zeros(COPIED, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    times = milliseconds(
        {
            "copy": lambda: target.copy_(source),
            "gramian": lambda: kernels.gramian(blocks, fused=True),
            "combine": lambda: kernels.combine(blocks, weights, fused=True, out=out),
            "both": lambda: (
                kernels.gramian(blocks, fused=True),
                kernels.combine(blocks, weights, fused=True, out=out),
            ),
            "gramian, not fused": lambda: kernels.gramian(blocks, fused=False),
        },
        rounds,
    )
    read = sum(block.numel() * block.element_size() for block in blocks)
    written = read // losses
    moved = {"copy": 2 * COPIED, "gramian": read, "combine": read + written, "both": 2 * read + written}
    speeds = {name: amount / times[name] / 1e6 for name, amount in moved.items()}  # GB/s
    return {
        "losses": losses,
        "parameters": sum(block[0].numel() for block in blocks),
        "tensors": tensors,
        "dtype": dtype,
        "milliseconds": {name: round(value, 4) for name, value in times.items()},
        "gigabytes_per_second": {name: round(value) for name, value in speeds.items()},
        "relative_to_copy": {name: round(value / speeds["copy"], 3) for name, value in speeds.items()},
    }


def projections(losses: int, problems: int, rounds: int) -> dict[str, object]:
    """One launch for all problems against the definition's K - 1 steps of several launches."""
    rows = torch.randn(problems, losses, losses, device="cuda", dtype=torch.float64)
    gramians = rows @ rows.mT
    draws = torch.rand(problems, losses, losses, device="cuda")
    draws.diagonal(dim1=-2, dim2=-1).fill_(2.0)
    order = draws.argsort(-1)[..., :-1].movedim(-1, 0).contiguous()
    times = milliseconds(
        {
            "fused": lambda: kernels.project(gramians, order, fused=True),
            "not fused": lambda: kernels.project(gramians, order, fused=False),
        },
        rounds,
    )
    return {"losses": losses, "problems": problems, "milliseconds": {k: round(v, 4) for k, v in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=1 << 27, help="shared parameters P (default: 2^27)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds a case (default: 20)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernels.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU here: the fused kernels were not measured, and nothing was written.")
        return
    results, left_out = [], []
    for dtype in DTYPES:
        for losses in (2, 4, 8, 16):
            needed = (losses + 1) * options.parameters * DTYPES[dtype].itemsize + 2 * COPIED
            if needed > 0.9 * torch.cuda.mem_get_info()[0]:
                left_out.append(f"K = {losses}, {dtype}: {needed / 1e9:.1f} GB do not fit")
                continue
            for tensors in (1, 200):
                row = passes(losses, options.parameters, tensors, dtype, options.rounds)
                torch.cuda.empty_cache()
                results.append(row)
                print(f"K = {losses:2d}, {dtype}, {tensors:3d} tensors: {row['relative_to_copy']}")
    projected = [projections(64, problems, options.rounds) for problems in (1, 200)]
    for row in projected:
        print(f"project, K = {row['losses']}, B = {row['problems']}: {row['milliseconds']} ms")
    save(
        options.out,
        device=f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}",
        triton=importlib.metadata.version("triton"),
        rounds=options.rounds,
        passes=results,
        left_out=left_out,
        projections=projected,
    )


if __name__ == "__main__":
    main()
