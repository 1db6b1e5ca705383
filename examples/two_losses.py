"""Is one of two losses overlooked, and what helps? A first look in seconds, on a table that comes with scikit-learn.

From twelve measurements of a wine a network predicts the thirteenth, the proline in mg/l, by squared error, and the
cultivar, by cross-entropy: one loss starts at 650,000, the other at 1. gs.diagnose() says what that does to the
gradients; then two lines of the training change, and both ways are tried on five splits of the table.

    python examples/two_losses.py --out two-losses.png

Here one may as well divide the proline by its spread, which helps even more. With ten losses, or one that
shrinks as the others do not, there is no such number to divide by. Needs: pip install gradsurgery[plots] scikit-learn
"""

import argparse

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_wine
from torch import Tensor, nn
from torch.nn import functional

import gradsurgery as gs
from gradsurgery.diagnostics.pictures import COLOURS, save_figure

table, cultivars = (torch.tensor(array) for array in load_wine(return_X_y=True))  # 178 wines
inputs, proline = table[:, :-1].float(), table[:, -1].float()
inputs = (inputs - inputs.mean(0)) / inputs.std(0)


class Wine(nn.Module):
    """One trunk, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.proline, self.cultivar = nn.Linear(32, 1), nn.Linear(32, 3)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        z = self.trunk(inputs)
        return self.proline(z).squeeze(1), self.cultivar(z)


def losses(model: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    level, scores = model(inputs[rows])
    return {
        "proline": functional.mse_loss(level, proline[rows]),
        "cultivar": functional.cross_entropy(scores, cultivars[rows]),
    }


def train(method: str, seed: int) -> list[tuple[float, float]]:
    """The errors on other rows after each epoch: root mean squared in mg/l, and share of wrong cultivars."""
    torch.manual_seed(seed)
    model, (training, validation) = Wine(), torch.randperm(len(inputs)).split(124)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    optimizer = gs.MultiObjectiveOptimizer(optimizer, gs.get(method))  # new
    errors = []
    for _ in range(50):
        for rows in training[torch.randperm(len(training))].split(31):
            optimizer.zero_grad()
            optimizer.backward(losses(model, rows))  # was: sum(losses(model, rows).values()).backward()
            optimizer.step()
        with torch.no_grad():
            level, scores = model(inputs[validation])
            wrong = scores.argmax(1) != cultivars[validation]
            errors.append((float((level - proline[validation]).square().mean().sqrt()), float(wrong.float().mean())))
    return errors


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--report", default="report.html", help="where the diagnosis goes (default: report.html)")
parser.add_argument("--out", default="two-losses.png", help="where the picture goes (default: two-losses.png)")
options = parser.parse_args()

torch.manual_seed(0)
diagnosis = gs.diagnose(Wine(), losses, torch.randperm(len(inputs)).split(31))
print(diagnosis)
diagnosis.report(options.report)

figure = Figure(figsize=(8, 3), layout="constrained")
axes = figure.subplots(1, 2)
for method, color in zip(("sum", diagnosis.recommendation.method), COLOURS, strict=False):
    curves = torch.tensor([train(method, seed) for seed in range(5)])  # seeds, epochs, errors
    level, wrong = curves[:, -1].mean(0).tolist()
    print(f"{method:14s} proline off by {level:.0f} mg/l   cultivar wrong {wrong:.1%}")
    for axis, errors, title in zip(
        axes, curves.unbind(-1), ("proline, error in mg/l", "cultivar, share wrong"), strict=True
    ):
        axis.plot(range(1, 51), errors.mean(0), color=color, label=method)
        axis.fill_between(range(1, 51), errors.amin(0), errors.amax(0), color=color, alpha=0.12, linewidth=0)
        axis.set(title=title, xlabel="epoch", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
axes[1].legend(frameon=False)
save_figure(figure, options.out)
