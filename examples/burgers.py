"""Burgers' equation by a physics-informed network: the equation pulls against the initial values.

u_t + u u_x = 0.01/pi u_xx for x in [-1, 1] and t in [0, 1], with u(0, x) = -sin(pi x) and zero at the walls: a front
forms in the middle. Three losses: the initial values, the walls, the equation itself. The setting is that of ConFIG
(Liu et al., ICLR 2025, arXiv:2408.11104); docs/burgers.md has what came out, beside the published figures. Drawing
needs matplotlib: pip install "gradsurgery[plots]".

    python examples/burgers.py                 # the plain sum and four methods, one seed: about three minutes
    python examples/burgers.py --full --record burgers.json    # eight, tuned, three seeds: about twenty minutes
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.comparison import Arm, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NU = 0.01 / math.pi
METHODS = ("lossbalancer", "upgrad", "pcgrad", "config")
FULL = ("lossbalancer", "upgrad", "pcgrad", "imtlg", "config", "mconfig")
WEIGHTS = ([1, 1, 1], [10, 10, 1], [100, 100, 1])  # of the initial values, the walls and the equation
EPOCHS = 50  # parts of a training, each followed by a look at the error
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#8C6D31")  # after Okabe, Ito


def reference(x: np.ndarray, t: np.ndarray, nodes: int = 100) -> np.ndarray:
    """The solution where x and t broadcast to, by the Cole-Hopf transform: a ratio of two Gaussian integrals.

    u = -E[sin(pi y) f(y)] / E[f(y)] over y normal around x with variance 2 nu t, f(y) = exp(-cos(pi y) / (2 pi nu)).
    Gauss-Hermite quadrature is exact to rounding from 100 nodes on; f spans 43 orders of magnitude, so its largest
    value is divided out.
    """
    places, weights = np.polynomial.hermite.hermgauss(nodes)
    x, t = np.broadcast_arrays(x, t)
    y = x[..., None] - np.sqrt(4 * NU * t)[..., None] * places
    exponents = -np.cos(np.pi * y) / (2 * np.pi * NU)
    f = weights * np.exp(exponents - exponents.max(axis=-1, keepdims=True))
    return -(np.sin(np.pi * y) * f).sum(axis=-1) / f.sum(axis=-1)


X, T = np.linspace(-1 + 1 / 256, 1 - 1 / 256, 256), np.linspace(0, 1, 100)
TRUTH = torch.tensor(reference(X[None], T[:, None]), dtype=torch.float32)  # (100, 256)
GRID = torch.stack(torch.meshgrid(torch.tensor(T), torch.tensor(X), indexing="ij"), dim=-1).float()


class Network(nn.Module):
    """Five layers of 50 units, from (..., 2), t and x, to u (...)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [2, 50, 50, 50, 50, 50, 1]
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        for layer in self.layers:
            nn.init.xavier_normal_(layer.weight)
            nn.init.constant_(layer.bias, 0.001)

    def forward(self, points: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            points = torch.tanh(layer(points))
        return self.layers[-1](points).squeeze(-1)


def initial_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    points = batch["start"]
    return (model(points) + torch.sin(math.pi * points[:, 1])).square().mean()


def boundary_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["walls"]).square().mean()


def residual_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """How far the network is from solving the equation.

    Two nested backward passes: carrying the derivatives forward through the layers by hand takes as long.
    """
    points = batch["inside"].detach().requires_grad_()
    u = model(points)
    u_t, u_x = torch.autograd.grad(u.sum(), points, create_graph=True)[0].unbind(-1)
    u_xx = torch.autograd.grad(u_x.sum(), points, create_graph=True)[0][:, 1]
    return (u_t + u * u_x - NU * u_xx).square().mean()


LOSSES = {"initial": initial_loss, "boundary": boundary_loss, "residual": residual_loss}


def losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: loss(model, batch) for name, loss in LOSSES.items()}


def stratified(count: int, dimensions: int) -> Tensor:
    """Points of the unit cube, (count, dimensions), one in each of `count` equal slices of every axis."""
    slices = torch.stack([torch.randperm(count) for _ in range(dimensions)], dim=-1)
    return (slices + torch.rand(count, dimensions)) / count


def draw_points(count: int) -> dict[str, Tensor]:
    """New points (t, x) for a step: `count` inside, 50 at the start, 25 at each wall."""
    to_domain = torch.tensor([0.0, -1.0]), torch.tensor([1.0, 2.0])
    start = torch.cat([torch.zeros(50, 1), stratified(50, 1)], dim=-1)
    walls = torch.cat([stratified(50, 1), torch.arange(50)[:, None] % 2], dim=-1)
    points = {"inside": stratified(count, 2), "start": start, "walls": walls}
    return {name: to_domain[0] + own * to_domain[1] for name, own in points.items()}


def arm(name: str) -> Arm:
    """The method of a name, "chain" as the diagnosis advises it; M-ConFIG differentiates one loss a step, in turn."""
    if name == "chain":
        return Arm(lambda: gs.Chain(gs.LossBalancer(), gs.PCGrad()))
    return Arm(name, one_loss_a_step=name == "mconfig")


class Grid:
    """Measures networks on the grid, and keeps what each of them solved when it was last measured."""

    def __init__(self) -> None:
        self.solved: dict[nn.Module, tuple[float, Tensor]] = {}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        solution = model(GRID)
        error = (solution - TRUTH).square().mean().item()
        self.solved[model] = error, solution
        return {"error": error}

    def solution(self, error: float) -> Tensor | None:
        """The solution with this very error, (100, 256)."""
        return next((solution for known, solution in self.solved.values() if known == error), None)


class Experiment:
    """The training that all methods share.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.grid = options, Grid()
        self.epochs = min(EPOCHS, options.steps)

    def compare(self, methods: Sequence[str], **others: object) -> Comparison:
        """The methods and the plain sum, trained alike."""
        return gs.compare(
            Network,
            lambda model, batch: {name: partial(loss, model, batch) for name, loss in LOSSES.items()},
            self.batches,
            self.grid,
            methods={name: arm(name) for name in methods},
            epochs=self.epochs,
            scheduler=None if self.options.constant else self.schedule,
            single_task=False,
            **others,
        )

    def batches(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """New points for every step."""
        return (draw_points(self.options.points) for _ in range(self.options.steps // self.epochs))

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """100 steps of warm-up, then half a cosine down to a tenth."""

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / 100) * (0.55 + 0.45 * math.cos(math.pi * step / self.options.steps))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def solution(self, comparison: Comparison, label: str) -> Tensor:
        """What a method's network of median error solved, (100, 256); trained again if it is from a record."""
        trials = sorted(comparison.chosen(label), key=lambda trial: trial.metrics["error"])
        trial = trials[len(trials) // 2]
        solution = self.grid.solution(trial.metrics["error"])
        if solution is None:
            self.compare(
                [label] if label in FULL else [],
                learning_rates=[trial.learning_rate],
                static_weights=[] if trial.weights is None else [trial.weights],
                seeds=[trial.seed],
            )
            solution = self.grid.solution(trial.metrics["error"])
        return solution


def draw(experiment: Experiment, comparison: Comparison, out: str) -> None:
    """The reference, what the plain sum and the best method made of it, where they are wrong, errors over steps."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 3)
    best = next((row.label for row in comparison.rows if row.label not in ("sum", "tuned weights")), "sum")
    solution = experiment.solution(comparison, best)  # where it is trained again, so is the plain sum beside it
    solved = {"sum": experiment.solution(comparison, "sum"), best: solution}
    place = {"extent": (0, 1, -1, 1), "origin": "lower", "aspect": "auto"}
    for panel, (title, field) in zip(panels[0], {"reference": TRUTH, **solved}.items(), strict=False):
        shown = panel.imshow(field.T.numpy(), vmin=-1, vmax=1, cmap="RdBu_r", **place)
        panel.set_title(f"u, {title}", fontsize=10, loc="left")
    figure.colorbar(shown, ax=panels[0])
    for panel, (label, field) in zip(panels[1, 1:], solved.items(), strict=False):
        wrong = (field - TRUTH).abs()
        shown = panel.imshow(wrong.T.numpy(), norm=LogNorm(1e-4, 1, clip=True), cmap="magma_r", **place)
        panel.set_title(f"|error|, {label}; mean square {wrong.square().mean():.2g}", fontsize=10, loc="left")
    figure.colorbar(shown, ax=panels[1])
    for panel in panels.flat[[0, 1, 2, 4, 5]]:
        panel.set(xlabel="t", ylabel="x")
    draw_errors(panels[1, 0], experiment, comparison)
    figure.savefig(out, dpi=100)
    if out.endswith(".png"):  # a fifth of the size; thin lines keep their colours
        Image.open(out).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=5).save(out, optimize=True)


def draw_errors(panel: "Axes", experiment: Experiment, comparison: Comparison) -> None:
    """The error of each method over the steps, the median of its seeds."""
    for row, colour in zip(comparison.rows, itertools.cycle(COLOURS)):
        curves = [[point["error"] for point in trial.curve] for trial in comparison.chosen(row.label)]
        steps = np.arange(1, experiment.epochs + 1) * (experiment.options.steps // experiment.epochs)
        whole = [curve for curve in curves if len(curve) == len(steps)]  # the others diverged
        if whole:
            style = {"color": "black", "linewidth": 2} if row.label == "sum" else {"color": colour, "linewidth": 1}
            panel.plot(steps, np.median(whole, axis=0), label=row.label, **style)
    panel.set(yscale="log", xlabel="step", ylabel="mean squared error")
    panel.figure.legend(loc="outside lower center", ncols=8, frameon=False, fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def main(arguments: Sequence[str] | None = None) -> Comparison:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", help=f"default: {' '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, help="default: 1")
    parser.add_argument("--steps", type=int, default=5000, help="of Adam; a multiple of 50")
    parser.add_argument("--points", type=int, default=500, help="inside, drawn anew in each step")
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", help="the grid they are chosen from; default: 3e-3"
    )
    parser.add_argument("--constant", action="store_true", help="no warm-up and no decay of the learning rate")
    parser.add_argument(
        "--full", action="store_true", help="more methods, tuned weights, two learning rates, 3 seeds"
    )
    parser.add_argument("--record", type=Path, help="a JSON file from which an interrupted run goes on")
    parser.add_argument("--out", default="burgers.png", help="where the figure goes")
    options = parser.parse_args(arguments)
    experiment = Experiment(options)
    comparison = experiment.compare(
        options.methods or (FULL if options.full else METHODS),
        learning_rates=options.learning_rates or ([1e-3, 3e-3] if options.full else [3e-3]),
        static_weights=WEIGHTS if options.full else [],
        seeds=options.seeds or (3 if options.full else 1),
        out=options.record,
    )
    print(comparison)
    draw(experiment, comparison, options.out)
    return comparison


if __name__ == "__main__":
    main()
