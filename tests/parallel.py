"""A network with several losses, a batch, and all methods: what the tests over several ranks share."""

from collections.abc import Callable
from typing import Any

import torch
from crew import Crew
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery import scalarizers
from gradsurgery.aggregators import CONTRACTS

Crews = Callable[[int], Crew]

ITEMS = 12
METHODS: dict[str, Any] = {
    **{cls.__name__: contract.build for cls, contract in CONTRACTS.items()},
    **{f"{cls.__name__}, a scalarizer": contract.build for cls, contract in scalarizers.CONTRACTS.items()},
    "Chain with GradDrop": lambda: gs.Chain(gs.GradNorm(alpha=0.0), gs.GradDrop()),
}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(ITEMS, width, generator=generator, dtype=torch.float64) for width in (5, 3))  # type: ignore[return-value]


class Network(nn.Module):
    """Three heads on a trunk; the losses differ in scale a hundredfold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))
        self.double()

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.trunk(x)
        return [head(z) for head in self.heads]


def losses_of(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor | None]:
    outputs = model(x)
    return {
        f"loss {k}": 10.0**k * (output - y[:, k : k + 1]).square().mean() + 0.1 for k, output in enumerate(outputs)
    }


def part(rank: int | None, cuts: tuple[int, ...]) -> slice:
    """This rank's items, or all."""
    return slice(None) if rank is None else slice(cuts[rank], cuts[rank + 1])


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-9) -> None:
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance)


def difference(model: nn.Module, other: nn.Module) -> float:
    """The largest difference between two models' parameters."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((one - two).detach().abs().max()) for one, two in pairs)
