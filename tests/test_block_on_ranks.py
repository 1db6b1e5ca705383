"""Impartiality blocks whose batch lies on several ranks do what one with the whole batch does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from crew import Crew, Failure
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs
from gradsurgery.aggregators import CONTRACTS, TrimmedMean

Crews = Callable[[int], Crew]


class SquareRoots(gs.GramianAggregator):
    """A method that is not homogeneous in the gradients."""

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return gramian.diagonal(dim1=-2, dim2=-1).sqrt()


METHODS: dict[str, Any] = {
    cls.__name__: contract.build
    for cls, contract in CONTRACTS.items()
    if issubclass(cls, gs.GramianAggregator) and not contract.build().uses_losses
}
METHODS |= {"GradDrop": gs.GradDrop, "TrimmedMean": TrimmedMean, "square roots": SquareRoots}


class Network(nn.Module):
    """A block between a trunk and three heads."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.kind = kind
        if kind == "fused":
            self.heads: nn.Module = gs.FusedHeads(6, [1, 2, 1])
        else:
            self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))
        method = METHODS[name]()
        self.block = gs.RotoGrad(3, 4, method, lr=0.01) if kind == "rotograd" else gs.ImpartialityBlock(3, method)
        self.double()

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.trunk(x)
        if self.kind == "fused":
            return list(self.heads(z, self.block))
        return [head(view) for head, view in zip(self.heads, self.block(z), strict=True)]  # type: ignore[call-overload]


def train(rank: int | None, kind: str, name: str, cuts: tuple[int, ...] = (0, 6, 12)) -> list[Tensor]:
    """Parameters and buffers after three steps; DistributedDataParallel averages over the ranks."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(12, width, generator=generator, dtype=torch.float64) for width in (5, 3))
    items = slice(None) if rank is None else slice(cuts[rank], cuts[rank + 1])
    model = Network(kind, name)
    inner = model
    if rank is not None:
        model = DistributedDataParallel(model)  # type: ignore[assignment]
        torch.manual_seed(3 + rank)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.01)
    share = 1.0 if rank is None else len(x[items]) * (len(cuts) - 1) / 12
    for _ in range(3):
        optimizer.zero_grad()
        losses = [
            10.0**k * (output - y[items, k : k + 1]).square().mean() for k, output in enumerate(model(x[items]))
        ]
        (share * sum(losses)).backward()  # type: ignore[union-attr]
        optimizer.step()
    return [value.detach() for value in inner.state_dict().values() if isinstance(value, Tensor)]


@pytest.mark.parametrize("cuts", [(0, 6, 12), (0, 4, 12)], ids=["equal", "unequal"])
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_equal_one_process(name: str, cuts: tuple[int, ...], crew: Crews) -> None:
    expected = train(None, "block", name)
    for found in crew(2)(train, "block", name, cuts):
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["PCGrad", "NormalizedSGD", "GradDrop"])
@pytest.mark.parametrize("kind", ["fused", "rotograd"])
def test_fused_heads_and_rotations(kind: str, name: str, crew: Crews) -> None:
    expected = train(None, kind, name)
    for found in crew(2)(train, kind, name):
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def disagreeing(rank: int, what: str) -> None:
    method = gs.MGDA() if what == "method" and rank else gs.Sum()
    block = gs.ImpartialityBlock(3 if what == "branches" and rank else 2, method)
    z = torch.ones(2, requires_grad=True)
    sum(view.sum() for view in block(z)).backward()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("branches", "ImpartialityBlock: the ranks must agree, got `num_branches`: 2 on rank 0, 3 on rank 1"),
        ("method", "`aggregator`: Sum("),
    ],
)
def test_blocks_that_disagree_fail_together(what: str, message: str, crew: Crews) -> None:
    for outcome in crew(2).outcomes(disagreeing, what):
        assert isinstance(outcome, Failure)
        assert message in outcome


class Sorted(gs.Aggregator):
    """A method that does not say that it can do with a part of the batch."""

    def direction(self, blocks: Any, losses: Tensor | None = None, at: Tensor | None = None) -> list[Tensor]:
        return [block.sort(dim=0).values[0] for block in blocks]


def unsuited(rank: int) -> None:
    z = torch.ones(2, requires_grad=True)
    with pytest.raises(
        RuntimeError, match="ImpartialityBlock: `aggregator` must be a method that can do with a part"
    ):
        sum(view.sum() for view in gs.ImpartialityBlock(2, Sorted())(z)).backward()  # type: ignore[union-attr]


def test_a_method_that_needs_the_whole_batch_is_refused(crew: Crews) -> None:
    crew(2)(unsuited)


def loaded_by_one(rank: int) -> list[Tensor]:
    """The last rank loads a state of its own into a block that is in use."""
    block = gs.ImpartialityBlock(2, gs.PCGrad(generator=torch.Generator().manual_seed(1)))
    other = gs.ImpartialityBlock(2, gs.PCGrad(generator=torch.Generator().manual_seed(2)))
    for _ in range(2):
        z = torch.ones(2, 3, requires_grad=True)
        first, second = block(z)
        (first.sum() - second.square().sum()).backward()
        if rank == 1:
            block.load_state_dict(other.state_dict())
            other = block
    z = torch.ones(2, 3, requires_grad=True)
    sum(view.sum() for view in block(z)).backward()  # type: ignore[union-attr]
    return list(block.aggregator.state_dict().values())


def test_a_state_that_one_rank_loads_gives_way_to_the_first_s(crew: Crews) -> None:
    first, second = crew(2)(loaded_by_one)
    assert all(torch.equal(own, other) for own, other in zip(first, second, strict=True))
