"""The networks that are measured: what several losses share, and the losses."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import gradsurgery as gs

DEPTH = 4  # layers of the trunk of linear layers


class Sizes(NamedTuple):
    """Of a trunk of equal linear layers with ReLU."""

    width: int
    batch: int
    losses: int

    @property
    def name(self) -> str:
        return f"trunk {DEPTH} x {self.width}, batch {self.batch}, K = {self.losses}"


class Tasks:
    """A trunk, K small heads behind it, and one loss a head."""

    def __init__(self, trunk: nn.Module, width: int, inputs: Tensor, losses: int) -> None:
        self.trunk = trunk
        self.heads = nn.ModuleList(nn.Linear(width, 4) for _ in range(losses))
        self.inputs = inputs
        self.parameters = [*self.trunk.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.0)

    def losses_at(self, features: Tensor) -> list[Tensor]:
        return [(head(features) - k).square().mean() for k, head in enumerate(self.heads)]

    def losses(self) -> list[Tensor]:
        return self.losses_at(self.trunk(self.inputs))


class Samples:
    """A network with one loss a sample."""

    def __init__(self, width: int, batch: int) -> None:
        torch.manual_seed(0)
        self.trunk = nn.Sequential(*layers(DEPTH, width), nn.Linear(width, 4))
        self.inputs, self.targets = torch.randn(batch, width), torch.randn(batch, 4)
        self.parameters = list(self.trunk.parameters())

    def losses(self) -> Tensor:
        return (self.trunk(self.inputs) - self.targets).square().mean(1)


class Heads:
    """A small trunk and many heads, as one matrix or as separate layers, to be trained through a block or without."""

    def __init__(self, depth: int, width: int, batch: int, heads: int) -> None:
        torch.manual_seed(0)
        self.count = heads
        self.trunk = nn.Sequential(*layers(depth, width))
        self.fused = gs.FusedHeads(width, [4] * heads)
        self.separate = nn.ModuleList(nn.Linear(width, 4) for _ in range(heads))
        self.inputs = torch.randn(batch, width)
        self.parameters = [*self.trunk.parameters(), *self.fused.parameters(), *self.separate.parameters()]

    def loss(self, block: gs.ImpartialityBlock | None, *, fused: bool = True) -> Tensor:
        z = self.trunk(self.inputs)
        outputs: Sequence[Tensor]
        if fused:
            outputs = self.fused(z, block)
        else:
            views = [z] * self.count if block is None else block(z)
            outputs = [head(view) for head, view in zip(self.separate, views, strict=True)]
        return torch.stack([(output - k).square().mean() for k, output in enumerate(outputs)]).sum()


class Table:
    """The library's VAE on a table of normal and categorical columns: its decoder is a trunk with a block."""

    def __init__(self, width: int, batch: int, columns: int) -> None:
        from gradsurgery.integrations.vae.likelihoods import Categorical, Normal
        from gradsurgery.integrations.vae.models.vae import VAE
        from gradsurgery.integrations.vae.tables.encoding import Batch

        torch.manual_seed(0)
        self.count = columns
        kinds: list[Any] = [Normal() if k % 2 else Categorical(4) for k in range(columns)]
        values = [torch.randn(batch) if k % 2 else torch.randint(0, 4, (batch,)).float() for k in range(columns)]
        self.vae = VAE(5 * columns // 2, kinds, hidden_size=width)
        observed = torch.ones(batch, columns, dtype=torch.bool)
        self.batch = Batch(torch.randn(batch, 5 * columns // 2), torch.stack(values, 1), observed)
        self.parameters = list(self.vae.parameters())

    def loss(self, block: gs.ImpartialityBlock | None) -> Tensor:
        from gradsurgery.integrations.vae.models.objective import negative_elbo

        self.vae.block = block  # type: ignore[assignment]  # without one, its heads get the plain sum
        return negative_elbo(self.vae, self.batch).total


Problem = Tasks | Samples | Heads | Table


def layers(depth: int, width: int) -> list[nn.Module]:
    return [module for _ in range(depth) for module in (nn.Linear(width, width), nn.ReLU())]


def mlp(sizes: Sizes) -> Tasks:
    torch.manual_seed(0)
    trunk = nn.Sequential(*layers(DEPTH, sizes.width))
    return Tasks(trunk, sizes.width, torch.randn(sizes.batch, sizes.width), sizes.losses)


class TokenMean(nn.Module):
    """Averages over tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


def transformer(depth: int, width: int, batch: int, tokens: int, losses: int) -> Tasks:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    trunk = nn.Sequential(*[copy.deepcopy(layer) for _ in range(depth)], TokenMean())
    return Tasks(trunk, width, torch.randn(batch, tokens, width), losses)


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.path(images) + self.shortcut(images))


def cnn(width: int, batch: int, size: int, losses: int) -> Tasks:
    torch.manual_seed(0)
    trunk = nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width, width, 1),
        Residual(width, 2 * width, 2),
        Residual(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Tasks(trunk, 4 * width, torch.randn(batch, 3, size, size), losses)
