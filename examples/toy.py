"""Two losses on a plane with ravines, five starts: which methods reach the Pareto front?

The toy problem of CAGrad (Liu et al., NeurIPS 2021) and Nash-MTL (Navon et al., ICML 2022), in float64: Adam follows
each method's direction from each start. Drawing needs matplotlib: pip install gradsurgery[plots].

    python examples/toy.py --methods sum mgda pcgrad --out toy.png

Without --methods, all of them take part: ten to fifteen minutes on one core.
"""

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import gradsurgery as gs

STARTS = torch.tensor([[-8.5, 7.5], [0.0, 0.0], [9.0, 9.0], [-7.5, -0.5], [9.0, -1.0]], dtype=torch.float64)
SIDE = torch.tensor([1.0, -1.0], dtype=torch.float64)  # the second loss mirrors the first
SCALE = torch.tensor([0.1, 1.0], dtype=torch.float64)
LOWEST = -20 * SCALE  # no loss gets below
REACHED = 0.1  # a path that ends this close to the front has reached it

OPTIONS: dict[str, Any] = {  # what has no default; Nash-MTL clipped at the published length
    "chain": {"methods": ["gradnorm", "pcgrad"]},
    "constant": {"weights": [10.0, 1.0]},
    "crmogm": {"method": "mgda"},
    "nashmtl": {"max_norm": 1.0},
}
Method = gs.Aggregator | gs.scalarizers.Scalarizer


def losses_at(x: Tensor) -> Tensor:
    """Both losses at points (..., 2): above x2 = 0 the logarithm of the distance to a curve, below it a bowl."""
    x1, x2 = x[..., :1], x[..., 1:]
    ravine = (-x1 / 2 - SIDE * (3.5 - x2.tanh())).abs().clamp_min(5e-6).log() + 6
    bowl = ((x1 - 7 * SIDE) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20
    height = (x2 / 2).tanh()
    return SCALE * (ravine * height.clamp_min(0) + bowl * (-height).clamp_min(0))


def jacobians_at(x: Tensor) -> tuple[Tensor, Tensor]:
    """Losses above their lowest values, (..., K), and Jacobians (..., K, 2): row k is the gradient of loss k."""
    x = x.detach().requires_grad_()
    losses = losses_at(x)
    rows = [torch.autograd.grad(loss.sum(), x, retain_graph=True)[0] for loss in losses.unbind(-1)]
    return losses.detach() - LOWEST, torch.stack(rows, dim=-2)  # some methods want positive losses


def pareto_front(count: int = 1401) -> Tensor:
    """Points (count, 2) of the front, from the minimum of the second loss to that of the first.

    Below x2 = 0 the losses are tanh(-x2 / 2) times a bowl. Weights that leave no slope along x1 add the bowls up to
    0.01 (x2 + 8)^2 - depth. On the front the slope along x2 is zero too; it changes sign once below x2 = -8.
    """
    x1 = torch.linspace(-7.0, 7.0, count, dtype=torch.float64)
    depth = 15.1 + x1**2 / 10
    low, high = torch.full_like(x1, -20.0), torch.full_like(x1, -8.0)
    for _ in range(60):
        x2 = (low + high) / 2
        height = (-x2 / 2).tanh()
        slope = 0.02 * (x2 + 8) * height - (0.01 * (x2 + 8) ** 2 - depth) * (1 - height**2) / 2
        low, high = torch.where(slope < 0, x2, low), torch.where(slope < 0, high, x2)
    return torch.stack([x1, (low + high) / 2], dim=-1)


def distance_to_front(x: Tensor) -> Tensor:
    """Distances (...) of points (..., 2) to the front."""
    return (x.unsqueeze(-2) - pareto_front()).norm(dim=-1).amin(dim=-1)


def direction(method: Method, jacobian: Tensor, losses: Tensor) -> Tensor:
    """The direction (2,) of one problem, or (S, 2) of a batch."""
    if isinstance(method, gs.Aggregator):
        if hasattr(method, "observe"):  # learns from two batches, which are the same here
            method.observe(jacobian, jacobian)
        return method(jacobian, losses)
    method.update(losses)  # some look at the losses once more after the step
    losses = losses.clone().requires_grad_()
    return torch.autograd.grad(method(losses), losses)[0] @ jacobian


def directions(methods: Sequence[Method], jacobians: Tensor, losses: Tensor) -> Tensor:
    """The directions (S, 2) from S starts, by one method for all of them or by one for each."""
    if len(methods) == 1:
        return direction(methods[0], jacobians, losses)
    return torch.stack([direction(*own) for own in zip(methods, jacobians, losses, strict=True)])


def prepare(name: str) -> list[Method]:
    """Builds one method for all starts, or one for each; raises if the method cannot take part."""
    made: list[Method] = [gs.get(name, **OPTIONS.get(name, {})) for _ in STARTS]
    batched = isinstance(made[0], gs.GramianAggregator) and not made[0].needs_jacobian
    methods = made[:1] if batched else made
    losses, jacobians = jacobians_at(STARTS)
    directions(copy.deepcopy(methods), jacobians, losses)
    return methods


def descend(groups: Sequence[Sequence[Method]], starts: Tensor, steps: int, lr: float = 1e-3) -> Tensor:
    """Follows M methods from S starts; returns the paths (T, M, S, 2), thinned out to at most 1,000 points each."""
    x = starts.repeat(len(groups), 1, 1).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    paths = [x.detach().clone()]
    for step in range(1, steps + 1):
        losses, jacobians = jacobians_at(x)
        x.grad = torch.stack([directions(*own) for own in zip(groups, jacobians, losses, strict=True)])
        optimizer.step()
        if step == steps or step % (steps // 998 + 1) == 0:
            paths.append(x.detach().clone())
    return torch.stack(paths)


def draw(paths: dict[str, Tensor], out: str) -> None:
    """One panel a method: its paths (T, S, 2) over the mean of the losses, with the front; a PNG of few colours."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from PIL import Image

    rows, columns = -(-len(paths) // 7), 7
    figure = Figure(figsize=(10, 1.57 * rows + 0.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.02)
    x1, x2 = torch.meshgrid(*[torch.linspace(-11, 11, 331, dtype=torch.float64)] * 2, indexing="xy")
    mean = losses_at(torch.stack([x1, x2], dim=-1)).mean(dim=-1)
    levels = mean.quantile(torch.linspace(0, 1, 10, dtype=torch.float64))
    greys = [str(0.99 - 0.013 * level) for level in range(len(levels))]
    front, blue, orange = pareto_front(), "#1f63ad", "#d8602a"
    for panel, (name, path) in enumerate(paths.items(), start=1):
        axis = figure.add_subplot(rows, columns, panel, xlim=(-11, 11), ylim=(-11, 11), aspect=1)
        axis.set_axis_off()
        axis.contourf(x1, x2, mean, levels=levels, colors=greys, antialiased=False)  # fewer colours: a smaller file
        axis.plot(*front.T, color="black", linewidth=2.5)
        reached = distance_to_front(path[-1]) < REACHED
        for line, arrived in zip(path.unbind(1), reached, strict=True):
            style = {"color": blue if arrived else orange, "linewidth": 1.1, "markersize": 4}
            axis.plot(*line.T, **style)
            axis.plot(*line[0], "o", **style)
            axis.plot(*line[-1], "o", **style, markerfacecolor="white")
        axis.set_title(name, fontsize=8, pad=3)
        axis.text(0, 9, f"{reached.sum()}/{len(reached)}", fontsize=9, ha="center", va="center")
    legend = [Line2D([], [], color="black", linewidth=2.5, label="Pareto front")]
    for color, label in ((blue, "path that ends on it"), (orange, "path that ends elsewhere")):
        legend.append(Line2D([], [], color=color, marker="o", markersize=4, markevery=[0], label=label))
    figure.legend(handles=legend, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(out, dpi=140)
    Image.open(out).convert("RGB").quantize(256).save(out, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", help="names as gs.available() lists them; default: all")
    parser.add_argument("--steps", type=int, default=35_000, help="steps of Adam")
    parser.add_argument("--out", default="toy.png", help="where the figure goes, a PNG")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    groups = {}
    for name in options.methods or dict.fromkeys(name for names in gs.available().values() for name in names):
        try:
            group = prepare(name)
            groups[type(group[0]).__name__] = group
        except (TypeError, ValueError) as error:
            print(f"left out {name}: {error}")
    paths = dict(zip(groups, descend(list(groups.values()), STARTS, options.steps).unbind(1), strict=True))
    distances = {name: distance_to_front(path[-1]) for name, path in paths.items()}
    reached = {name: int((distance < REACHED).sum()) for name, distance in distances.items()}
    order = sorted(paths, key=lambda name: -reached[name])
    for name in order:
        shown = " ".join(f"{distance:7.3f}" for distance in distances[name])
        print(f"{name:20s} {reached[name]}/{len(STARTS)}   distance to the front: {shown}")
    draw({name: paths[name] for name in order}, options.out)


if __name__ == "__main__":
    main()
