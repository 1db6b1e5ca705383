"""Ranks that disagree, or of which one fails, fail together: no hang, nothing half-written."""

from typing import Any

import pytest
import torch
from crew import Failure
from parallel import METHODS, Crews, Network, assert_close, batch, losses_of, part
from torch import Tensor, nn

import gradsurgery as gs


def agreeing(rank: int) -> list[Tensor]:
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.UPGrad())
    optimizer.backward(losses_of(model, *batch()))
    return [parameter.grad for parameter in model.parameters()]


def disagreeing(rank: int, what: str) -> None:
    """Rank 1 differs in one thing; afterwards both agree and train on."""
    x, y = batch()
    model = Network()
    method = gs.MGDA() if what == "method" and rank else gs.CAGrad(0.5 if what == "option" and rank else 0.4)
    if what == "method" and not rank:
        method = gs.UPGrad()
    shared = [model.trunk[0]] if what == "tags" and rank else [model.trunk]
    scope = "tensor" if what == "scope" and rank else "all"
    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), method, shared=shared, scope=scope
    )
    losses: dict[Any, Any] = dict(losses_of(model, x, y))
    if rank:
        if what == "number":
            del losses["loss 1"]
        elif what == "names":
            losses["other"] = losses.pop("loss 1")
        elif what == "kind":
            losses["loss 1"] = "three"
        elif what == "counts":
            optimizer.backward(losses, counts=6)
    extra = losses["loss 0"] if what == "extra" and rank else None
    optimizer.backward(losses, extra_loss=extra)


DISAGREEMENTS = {
    "number": "`losses`: ['loss 0', 'loss 1', 'loss 2'] on rank 0, ['loss 0', 'loss 2'] on rank 1",
    "names": "['loss 0', 'loss 2', 'other'] on rank 1",
    "method": "`aggregator`: UPGrad(",
    "option": "`aggregator`: CAGrad(training=True, c=0.4, rescale='none') on rank 0, CAGrad(training=True, c=0.5",
    "tags": "`shared`: [0, 1, 2, 3] on rank 0, [0, 1] on rank 1",
    "scope": "`engine and scope`: Auto, all on rank 0, Auto, tensor on rank 1",
    "extra": "`extra_loss`: none on rank 0, one on rank 1",
    "counts": "`counts`: not given on rank 0, given on rank 1",
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_ranks_that_disagree_fail_together(what: str, crew: Crews) -> None:
    for outcome in crew(2).outcomes(disagreeing, what):
        assert isinstance(outcome, Failure)
        assert "RuntimeError: MultiObjectiveOptimizer: the ranks must agree" in outcome
        assert DISAGREEMENTS[what] in outcome
    first, second = crew(2)(agreeing)  # the group goes on
    assert_close(first, second, 0.0)


def test_a_rank_that_fails_takes_the_others_along(crew: Crews) -> None:
    first, second = crew(2).outcomes(disagreeing, "kind")
    assert "TypeError: MultiObjectiveOptimizer: loss 'loss 1' must be a scalar tensor, got str" in second
    assert "RuntimeError: MultiObjectiveOptimizer: `losses` must be computed and differentiated on all ranks" in first
    assert "rank 1: TypeError: MultiObjectiveOptimizer: loss 'loss 1'" in first


class Faulty(torch.autograd.Function):
    """Cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise ArithmeticError("a gradient that cannot be computed")


def failing(rank: int, where: str, name: str) -> tuple[str, list[Tensor]]:
    """Rank 1 fails after the losses are there; what is said, and the next surgery's gradients."""
    x, y = batch()
    items = part(rank, (0, 6, 12))
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), METHODS[name]())
    losses = losses_of(model, x[items], y[items])
    extra: Any = model.trunk[0].weight.sum()
    if rank == 1 and where == "gradients":
        losses["loss 1"] = Faulty.apply(losses["loss 1"])
    elif rank == 1:
        extra = 3.0 if "extra" in where else extra * nn.Parameter(torch.ones(()))

    def operate() -> None:
        if where == "extra, scalarize":
            optimizer.scalarize(losses, extra_loss=extra).backward()  # type: ignore[no-untyped-call]
        else:
            optimizer.backward(losses, extra_loss=extra)

    with pytest.raises((ArithmeticError, TypeError, RuntimeError)) as caught:
        operate()
    assert all(parameter.grad is None for parameter in model.parameters())
    optimizer.backward(losses_of(model, x[items], y[items]))
    return f"{caught.type.__name__}: {caught.value}", [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("where", "name", "error"),
    [
        ("gradients", "UPGrad", "ArithmeticError: a gradient that cannot be computed"),
        ("gradients", "STCH, a scalarizer", "ArithmeticError: a gradient that cannot be computed"),
        ("extra", "UPGrad", "TypeError: MultiObjectiveOptimizer: `extra_loss` must be a scalar tensor or None"),
        ("extra, scalarize", "UPGrad", "TypeError: MultiObjectiveOptimizer: `extra_loss` must be a scalar tensor"),
        ("foreign", "UPGrad", "RuntimeError: MultiObjectiveOptimizer: `losses` must reach only parameters of the"),
    ],
)
def test_a_rank_that_fails_later_takes_the_others_along(where: str, name: str, error: str, crew: Crews) -> None:
    (first, gradients), (second, others) = crew(2)(failing, where, name)
    assert error in second
    assert "must be computed and differentiated on all ranks" in first
    assert f"rank 1: {error}" in first
    assert_close(gradients, others, 0.0)


def unlike(rank: int, what: str) -> None:
    """The optimizers hold the same numbers of tensors and of elements."""
    x, y = batch()
    model = Network()
    named = list(model.named_parameters())
    if rank == 1 and what == "order":
        named.reverse()
    elif rank == 1 and what == "names":
        named = [*named[:4], *named[6:], *named[4:6]]
    model.trunk[0].weight.requires_grad_(rank == 0 or what != "frozen")
    given = [parameter for _, parameter in named] if what == "order" else named
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(given, lr=0.1), gs.UPGrad())  # type: ignore[arg-type]
    optimizer.backward(losses_of(model, x, y))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("order", "(1,) torch.float64; (1, 6) torch.float64"),
        ("names", "heads.1.weight (1, 6) torch.float64"),
        ("frozen", "(7, 5) torch.float64 frozen"),
    ],
)
def test_ranks_whose_parameters_are_not_alike_fail_together(what: str, message: str, crew: Crews) -> None:
    for outcome in crew(2).outcomes(unlike, what):
        assert isinstance(outcome, Failure)
        assert "the ranks must agree, got `parameters`: " in outcome
        assert message in outcome


def without_any(rank: int, what: str) -> None:
    x, y = batch()
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.UPGrad())
    losses = losses_of(model, x, y) if what == "counts" else dict.fromkeys(("loss 0", "loss 1"))
    with pytest.raises(ValueError, match="`losses` must contain at least one loss on any of the ranks"):
        optimizer.backward(losses, counts=0 if what == "counts" else None)


@pytest.mark.parametrize("what", ["none", "counts"])
def test_no_loss_on_any_rank_is_refused(what: str, crew: Crews) -> None:
    crew(2)(without_any, what)


def refused(rank: int, what: str) -> str:
    x, y = batch()
    model = Network()
    options = {"engine": "ghost"} if what == "ghost" else {}
    parameters = list(model.trunk.parameters()) if what == "foreign" else list(model.parameters())
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(parameters, lr=0.1), gs.UPGrad(), **options)
    losses: Any = losses_of(model, x, y)
    if what == "samples":
        losses = model(x)[0].square().squeeze(1)
    counts = {"counts": {"loss 0": 1}, "negative": -1.0}.get(what)
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        optimizer.backward(losses, counts=counts)  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in model.parameters())
    return str(caught.value)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("ghost", "`engine` must deliver the gradients themselves"),
        ("foreign", "`losses` must reach only parameters of the optimizer"),
        ("samples", "`losses` must be a dict or sequence of scalars when there are several ranks"),
        ("counts", "`counts` must have one number a loss"),
        ("negative", "`counts` must be finite and >= 0"),
    ],
)
def test_what_cannot_be_added_up_is_refused(what: str, message: str, crew: Crews) -> None:
    for text in crew(2)(refused, what):
        assert message in text
