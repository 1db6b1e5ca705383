"""Two digits drawn over each other, one network that reads both: does surgery beat a plain sum that was tuned?

In the manner of MultiMNIST (Sabour et al. 2017; Sener and Koltun 2018), from scikit-learn's 8 x 8 digits, so that
nothing is downloaded: a digit at the upper left, and another one drawn over it at the lower right. A convolutional
trunk with two heads names both.

    pip install 'gradsurgery[plots]' scikit-learn
    python examples/multidigit.py --out multidigit.png

Five minutes on one core; a second call trains only what is missing. Surgery does not help here: no method is ahead of
the plain sum by more than seeds are apart, and a network for each digit beats them all. Numbers: docs/comparing.md.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import gradsurgery as gs
from gradsurgery.comparison import Comparison
from gradsurgery.diagnostics.pictures import save_figure

METHODS = ["upgrad", "pcgrad", "cagrad", "imtlg", "lossbalancer", "famo"]
SIDE = 12  # pixels of the canvas
SIZES = {"train": 4000, "validation": 1000, "test": 2000}


def pairs_of(images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> TensorDataset:
    """Canvases (count, 1, SIDE, SIDE) with two of the images each, and the labels of the left and the right one."""
    left, right = torch.randint(len(images), (2, count), generator=generator)
    shifts = torch.randint(0, 2, (4, count), generator=generator)  # how far each is from its corner, down and right
    canvas = torch.zeros(count, SIDE, SIDE)
    far = SIDE - 8
    for row, (down, along, up, back) in enumerate(shifts.T.tolist()):
        canvas[row, down : down + 8, along : along + 8] = images[left[row]]
        window = canvas[row, far - up : far - up + 8, far - back : far - back + 8]
        over = images[right[row]]
        window.copy_(torch.where(over > 0, over, window))
    return TensorDataset(canvas.unsqueeze(1), labels[left], labels[right])


def datasets() -> dict[str, TensorDataset]:
    """Pairs to train on, to validate and to test with, made from different digits."""
    pictures, names = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = pictures.view(-1, 8, 8).float() / 16
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(images), generator=generator).split([1000, 300, 497])
    return {
        part: pairs_of(images[own], names[own], count, generator)
        for (part, count), own in zip(SIZES.items(), rows, strict=True)
    }


class Reader(nn.Module):
    """A trunk, and a head for each of the two digits."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict({"left": nn.Linear(64, 10), "right": nn.Linear(64, 10)})

    def forward(self, canvas: Tensor) -> dict[str, Tensor]:
        z = self.trunk(canvas)
        return {name: head(z) for name, head in self.heads.items()}


def losses(model: nn.Module, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    canvas, *labels = batch
    scores = model(canvas)
    return {name: functional.cross_entropy(scores[name], own) for name, own in zip(scores, labels, strict=True)}


def errors(data: TensorDataset, model: nn.Module) -> dict[str, float]:
    """The share of digits that are misread, in percent."""
    canvas, *labels = data.tensors
    scores = model(canvas)
    wrong = [(scores[name].argmax(1) != own).float().mean() for name, own in zip(scores, labels, strict=True)]
    return {name: 100 * float(share) for name, share in zip(scores, wrong, strict=True)}


def draw(comparison: Comparison, examples: TensorDataset, out: str) -> None:
    """Both errors against each other, beside four of the canvases."""
    figure = comparison.draw_front("left", "right", title="Two digits over each other: misread in percent")
    for number, canvas in enumerate(examples.tensors[0][:4, 0]):
        axes = figure.add_axes((0.83 + 0.082 * (number % 2), 0.12 + 0.15 * (number // 2), 0.08, 0.13))
        axes.imshow(canvas.numpy(), cmap="gray_r")
        axes.set_axis_off()
    save_figure(figure, out)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=METHODS, help="names as gs.available() lists them")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="multidigit.png", help="where the picture goes; numbers go beside it")
    options = parser.parse_args(arguments)
    parts = datasets()
    comparison = gs.compare(
        Reader,
        losses,
        DataLoader(parts["train"], batch_size=128, shuffle=True),
        partial(errors, parts["test"]),
        validate=partial(errors, parts["validation"]),
        methods=options.methods,
        epochs=options.epochs,
        seeds=options.seeds,
        learning_rates=[1e-3, 3e-3],
        out=Path(options.out).with_suffix(".json"),
    )
    print(comparison)
    draw(comparison, parts["test"], options.out)


if __name__ == "__main__":
    main()
