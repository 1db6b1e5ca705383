"""What goes over the wire in a step with several ranks, counted."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parallel import METHODS, Crews
from torch import nn

import gradsurgery as gs


@contextmanager
def counted(sent: list[int], size: int) -> Any:
    """Adds up how many elements this rank sends."""
    shares = {
        "all_to_all_single": lambda output, own, **_: own.numel() * (size - 1) // size,
        "all_gather_single": lambda output, own, **_: own.numel() * (size - 1),
        "all_gather_into_tensor": lambda output, own, **_: own.numel() * (size - 1),
        "all_reduce": lambda own, **_: 2 * own.numel() * (size - 1) // size + 1,
        "broadcast": lambda own, *_, **__: own.numel(),
    }
    others = [
        "reduce",
        "gather",
        "scatter",
        "all_gather",
        "all_gather_object",
        "broadcast_object_list",
        "send",
        "isend",
    ]
    originals = {name: getattr(dist, name) for name in [*shares, *others] if hasattr(dist, name)}

    def counting(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name in others:
                raise AssertionError(f"{name} is not counted")
            sent.append(shares[name](*arguments, **options))
            return originals[name](*arguments, **options)

        return call

    for name in originals:
        setattr(dist, name, counting(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def elements_sent(rank: int, name: str, size: int) -> tuple[int, int, int]:
    """Elements sent in the second step, and the numbers of shared and of other parameters."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(30, 40), nn.ModuleList(nn.Linear(40, 10) for _ in range(4))
    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1), METHODS[name]()
    )
    sent: list[int] = []
    for step in range(2):
        z = trunk(torch.randn(8, 30)).tanh()
        losses = [head(z).square().mean() for head in heads]
        if step == 0:
            optimizer.backward(losses)
            continue
        with counted(sent, size):
            optimizer.backward(losses)
    shared = sum(parameter.numel() for parameter in trunk.parameters())
    return sum(sent), shared, sum(parameter.numel() for parameter in heads.parameters())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["UPGrad", "PCGrad", "GradDrop", "TrimmedMean"])
def test_each_rank_sends_no_more_than_it_must(name: str, size: int, crew: Crews) -> None:
    losses = 4
    for sent, shared, specific in crew(size)(elements_sent, name, size):
        must = (size - 1) / size * ((losses + 1) * shared + 2 * specific)
        assert must <= sent <= must + (losses**2 + 40) * size, (must, sent)
