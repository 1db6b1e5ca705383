"""How exact the methods are: the direction's error against 60-digit arithmetic, over the condition of the problem.

The condition number is that of the unit-diagonal Gramian of five rows, in two kinds: rows of one length, and rows
whose lengths span a factor of a million. Run with ``make bench``. Writes ``benchmarks/results/accuracy.json`` and,
with matplotlib, ``docs/accuracy.png``.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import torch
from mpmath import mp, mpf
from recording import save

import gradsurgery as gs
from gradsurgery.aggregators import Aggregator

ROOT = Path(__file__).parent.parent
ROWS, COLUMNS, SEEDS = 5, 7, 5
CONDITIONS = [10.0**power for power in range(15)]
mp.dps = 60

Matrix = Any  # of mpmath


# --- references: weights from the exact Gramian -------------------------------------------------------------------


def supports(count: int) -> list[list[int]]:
    """All sets of rows that can be active."""
    return [list(s) for size in range(count + 1) for s in itertools.combinations(range(count), size)]


def submatrix(gramian: Matrix, support: list[int]) -> Matrix:
    return mpmath.matrix([[gramian[i, j] for j in support] for i in support])


def scatter(values: Matrix, support: list[int], count: int) -> Matrix:
    full = mpmath.zeros(count, 1)
    for position, row in enumerate(support):
        full[row] = values[position]
    return full


def min_norm(gramian: Matrix) -> Matrix:
    """MGDA: the face of the simplex whose stationary point satisfies the optimality conditions."""
    count = gramian.rows
    for support in supports(count)[1:]:
        inside = mpmath.lu_solve(submatrix(gramian, support), mpmath.ones(len(support), 1))
        weights = scatter(inside / mpmath.fsum(inside), support, count)
        level = (weights.T * gramian * weights)[0]
        if min(weights) >= 0 and min(gramian * weights) >= level * (1 - mpf(10) ** -40):
            return weights
    raise ArithmeticError("no face of the simplex is optimal")


def on_dual_cone(gramian: Matrix, start: Matrix) -> Matrix:
    """The projection of one combination of the rows."""
    count = gramian.rows
    pull = gramian * start
    scale = max(abs(entry) for entry in pull)
    for support in supports(count):
        added = mpmath.zeros(count, 1)
        if support:
            right = mpmath.matrix([-pull[i] for i in support])
            added = scatter(mpmath.lu_solve(submatrix(gramian, support), right), support, count)
        if min(added) >= 0 and min(gramian * (start + added)) >= -scale * mpf(10) ** -40:
            return start + added
    raise ArithmeticError("no active set is optimal")


def upgrad(gramian: Matrix) -> Matrix:
    count = gramian.rows
    each = [on_dual_cone(gramian, mpmath.matrix([int(i == k) for i in range(count)])) for k in range(count)]
    return sum(each[1:], each[0]) / count


def dual_proj(gramian: Matrix) -> Matrix:
    return on_dual_cone(gramian, mpmath.ones(gramian.rows, 1) / gramian.rows)


def cagrad(gramian: Matrix, c: float = 0.4) -> Matrix:
    """For each support a quadratic in the worst progress; the one that satisfies the optimality conditions."""
    count = gramian.rows
    mean = mpmath.ones(count, 1) / count
    pull = gramian * mean
    radius = mpf(c) ** 2 * (mean.T * pull)[0]
    for support in supports(count)[1:]:
        inner = submatrix(gramian, support)
        own = mpmath.matrix([pull[i] for i in support])
        a, b = mpmath.lu_solve(inner, mpmath.ones(len(support), 1)), mpmath.lu_solve(inner, own)
        alpha, beta, gamma = mpmath.fsum(a), mpmath.fsum(b), (own.T * b)[0]
        root = beta**2 - alpha * (gamma - radius)
        for sign in (1, -1) if root >= 0 else ():
            level = (beta + sign * mpmath.sqrt(root)) / alpha
            added = scatter(level * a - b, support, count)
            slack = mpf(10) ** -40 * max(abs(entry) for entry in gramian)
            if min(added) >= 0 and mpmath.fsum(added) > 0 and min(gramian * (mean + added)) >= level - slack:
                return mean + added
    raise ArithmeticError("no support is optimal")


def equal_projections(gramian: Matrix) -> Matrix:
    """Weights of the rows, up to a factor, with equal projections on all unit rows."""
    norms = mpmath.matrix([mpmath.sqrt(gramian[i, i]) for i in range(gramian.rows)])
    return mpmath.lu_solve(gramian, norms)


def imtlg(gramian: Matrix) -> Matrix:
    weights = equal_projections(gramian)
    return weights / mpmath.fsum(weights)


def config(gramian: Matrix) -> Matrix:
    weights = equal_projections(gramian)
    length = mpmath.sqrt((weights.T * gramian * weights)[0])
    return weights / length * mpmath.fsum(gramian * weights) / length


def bargain(gramian: Matrix, exponent: Any) -> Matrix:
    """Newton's method for ``G w = w ** -exponent``, in the logarithms of the weights."""
    count = gramian.rows
    x = mpmath.matrix([-mpmath.log(gramian[i, i]) / (1 + exponent) for i in range(count)])
    for _ in range(300):
        weights = mpmath.matrix([mpmath.exp(entry) for entry in x])
        pull = gramian * weights
        target = mpmath.matrix([weight**-exponent for weight in weights])
        gap = pull - target
        hessian = gramian.copy()
        for i in range(count):
            hessian[i, i] += exponent * target[i] / weights[i]
        step = mpmath.lu_solve(hessian, gap)
        ratio = max(abs(step[i]) / weights[i] for i in range(count))
        damping = 1 if ratio < mpf("0.5") else mpf("0.5") / ratio
        x = mpmath.matrix([mpmath.log(weights[i] - damping * step[i]) for i in range(count)])
        if ratio < mpf(10) ** -45:
            return mpmath.matrix([mpmath.exp(entry) for entry in x])
    raise ArithmeticError("Newton's method did not converge")


def aligned(gramian: Matrix) -> Matrix:
    values, vectors = mpmath.eigsy(gramian)
    factors = mpmath.diag([mpmath.sqrt(min(values) / value) for value in values])
    return vectors * factors * vectors.T * mpmath.ones(gramian.rows, 1) / gramian.rows


METHODS: dict[str, tuple[Callable[[], Aggregator], Callable[[Matrix], Matrix]]] = {
    "MGDA": (gs.MGDA, min_norm),
    "UPGrad": (gs.UPGrad, upgrad),
    "DualProj": (gs.DualProj, dual_proj),
    "CAGrad": (lambda: gs.CAGrad(c=0.4), cagrad),
    "IMTLG": (gs.IMTLG, imtlg),
    "ConFIG": (gs.ConFIG, config),
    "NashMTL": (lambda: gs.NashMTL(normalize=False), lambda gramian: bargain(gramian, 1)),
    "FairGrad": (lambda: gs.FairGrad(alpha=2.0), lambda gramian: bargain(gramian, mpf(1) / 2)),
    "AlignedMTL": (gs.AlignedMTL, aligned),
}


# --- measuring ---------------------------------------------------------------------------------------------------


def jacobian(condition: float, seed: int, spread: float) -> np.ndarray:
    """Rows of one length whose Gramian has this condition number, then stretched by up to ``spread``."""
    source = np.random.default_rng(seed)
    left, _ = np.linalg.qr(source.standard_normal((ROWS, ROWS)))
    right, _ = np.linalg.qr(source.standard_normal((COLUMNS, ROWS)))
    for _ in range(200):  # unit rows change the spectrum, and the spectrum the length of the rows
        rows = left * np.geomspace(1.0, condition**-0.5, ROWS) @ right.T
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        left, _, _ = np.linalg.svd(rows)
    return rows * np.geomspace(1.0, spread, ROWS)[source.permutation(ROWS), None]


def error(found: np.ndarray, rows: np.ndarray, reference: Callable[[Matrix], Matrix]) -> float:
    """Of a direction, relative to the exact one for exactly these rows."""
    exact = mpmath.matrix(rows.tolist())
    weights = reference(exact * exact.T)
    direction = exact.T * weights
    actual = mpmath.matrix(found.tolist())
    return float(mpmath.norm(actual - direction) / mpmath.norm(direction))


def optimality_gap(rows: np.ndarray) -> float:
    """How far MGDA's weights are from optimal: ``w' G w - min (G w)_i`` over the square of the longest row in use."""
    gramian = torch.from_numpy(rows @ rows.T)
    weights = gs.MGDA().weights(gramian)
    exact = mpmath.matrix(rows.tolist())
    pull = exact * exact.T * mpmath.matrix(weights.tolist())
    level = mpmath.fsum(mpf(float(w)) * p for w, p in zip(weights, pull, strict=True))
    longest = max(np.linalg.norm(row) for row, w in zip(rows, weights, strict=True) if w > 0)
    return float((level - min(pull)) / mpf(float(longest)) ** 2)


def measure(
    build: Callable[[], Aggregator], reference: Callable[[Matrix], Matrix], spread: float
) -> dict[str, list[float]]:
    """The median and the worst error over the seeds, for each condition number and precision of the gradients."""
    figures: dict[str, list[float]] = {}
    for condition in CONDITIONS:
        for dtype in (torch.float64, torch.float32):
            errors = []
            for seed in range(SEEDS):
                rows = torch.from_numpy(jacobian(condition, seed, spread)).to(dtype)
                found = build().solve(gs.kernels.gramian([rows])[0]) @ rows.double()
                if dtype == torch.float32:
                    found = build()(rows).double()
                errors.append(error(found.numpy(), rows.double().numpy(), reference))
            name = str(dtype).removeprefix("torch.")
            figures.setdefault(f"{name}, median", []).append(float(f"{statistics.median(errors):.1e}"))
            figures.setdefault(f"{name}, worst", []).append(float(f"{max(errors):.1e}"))
    return figures


def draw(record: dict[str, Any], path: Path) -> None:
    """One panel a method: the worst error over the condition number."""
    import matplotlib.pyplot as plt

    methods = record["methods"]
    figure, axes = plt.subplots(3, 3, figsize=(9, 7.5), sharex=True, sharey=True, layout="constrained")
    styles = [("float64", "1.0", "C0", "-"), ("float64", "1000000.0", "C0", ":"), ("float32", "1.0", "C1", "-")]
    for axis, (name, cases) in zip(axes.flat, methods.items(), strict=True):
        axis.axvspan(1, 1e6, color="0.95")
        for dtype, spread, color, line in styles:
            label = f"{dtype} gradients" + (", lengths a million apart" if float(spread) > 1 else "")
            axis.loglog(
                record["conditions"], cases[spread][f"{dtype}, worst"], color=color, linestyle=line, label=label
            )
        axis.set_title(name, fontsize=10)
        axis.grid(color="0.9")
    figure.supxlabel("condition number of the unit-diagonal Gramian", fontsize=10)
    figure.supylabel("worst relative error of the direction, five problems", fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "accuracy.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "accuracy.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods: dict[str, Any] = {}
    for name, (build, reference) in METHODS.items():
        methods[name] = {str(spread): measure(build, reference, spread) for spread in (1.0, 1e6)}
        worst = {spread: methods[name][spread]["float64, worst"] for spread in ("1.0", "1000000.0")}
        up_to = [max(figures[:7]) for figures in worst.values()]
        print(f"{name:12s} up to 1e6: {up_to[0]:.1e}, stretched {up_to[1]:.1e}; at 1e14: {worst['1.0'][-1]:.1e}")
    gaps = [max(optimality_gap(jacobian(c, seed, 1.0)) for seed in range(SEEDS)) for c in CONDITIONS]
    print("MGDA's optimality gap:", " ".join(f"{gap:.0e}" for gap in gaps))
    record = {
        "rows": ROWS,
        "problems_a_point": SEEDS,
        "conditions": CONDITIONS,
        "methods": methods,
        "mgda_optimality_gap": gaps,
    }
    save(options.out, **record)
    draw(record, options.picture)


if __name__ == "__main__":
    main()
