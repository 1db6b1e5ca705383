"""Who takes part: each contender does one forward pass and fills ``.grad``; the plain sum is the first."""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from models import Heads, Problem, Samples, Table, Tasks
from torch import Tensor

import gradsurgery as gs

PLAIN, AUTO, NAIVE, INSTANCES = "plain sum", "gradsurgery, auto", "naive loop", "gradsurgery, one loss a sample"
BLOCKS = ("block, PCGrad", "block, GradNorm", "block, NormalizedSGD")
PEER = "torchjd"


class Contender(NamedTuple):
    """What to run, and the parameters whose gradients it leaves behind."""

    step: Callable[[], object]
    parameters: list[Tensor]

    def run(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        self.step()


Builder = Callable[[], Contender]


def builders(problem: Problem) -> dict[str, Builder]:
    """Everyone who can take part, by name; building one does nothing to the others."""
    if isinstance(problem, Tasks):
        return dict(_for_tasks(problem))
    if isinstance(problem, Samples):
        return dict(_for_samples(problem))
    return dict(_for_blocks(problem))


def _for_tasks(problem: Tasks) -> Iterator[tuple[str, Builder]]:
    held = problem.parameters
    yield PLAIN, lambda: Contender(lambda: torch.stack(problem.losses()).sum().backward(), held)
    for engine in ("auto", "ghost", "batched", "loop", "func"):
        yield f"gradsurgery, {engine}", partial(_wrapped, problem, engine)
    yield NAIVE, lambda: Contender(_naive(problem), held)
    if importlib.util.find_spec(PEER):
        losses = len(problem.heads)
        for chunk in dict.fromkeys((None, 1, losses // 2 if losses > 2 else 1)):
            for summed in (False, True):
                options = ", optimize_gramian_computation=True" if summed else ""
                name = f"{PEER}, mtl_backward, parallel_chunk_size={chunk}{options}"
                yield name, partial(Contender, _mtl_backward(problem, chunk, summed), held)
        yield f"{PEER}, backward", lambda: Contender(_backward(problem), held)
        yield f"{PEER}, autogram", lambda: _autogram(problem)


def _wrapped(problem: Tasks, engine: str) -> Contender:
    wrapped = gs.MultiObjectiveOptimizer(problem.optimizer, gs.UPGrad(), shared=problem.trunk, engine=engine)
    given = problem.losses if engine == "func" else None
    return Contender(lambda: wrapped.backward(given or problem.losses()), problem.parameters)


def _naive(problem: Tasks) -> Callable[[], None]:
    """One backward pass a loss, a matrix, the method."""
    shared, method = list(problem.trunk.parameters()), gs.UPGrad()

    def step() -> None:
        rows = []
        for loss, head in zip(problem.losses(), problem.heads, strict=True):
            own = list(head.parameters())
            gradients = torch.autograd.grad(loss, [*shared, *own], retain_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients[: len(shared)]]))
            for parameter, gradient in zip(own, gradients[len(shared) :], strict=True):
                parameter.grad = gradient
        direction = method(torch.stack(rows)).split([parameter.numel() for parameter in shared])
        for parameter, part in zip(shared, direction, strict=True):
            parameter.grad = part.view_as(parameter)

    return step


def _mtl_backward(problem: Tasks, chunk: int | None, summed: bool) -> Callable[[], None]:
    from torchjd.aggregation import UPGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregator = UPGrad()

    def step() -> None:
        features = problem.trunk(problem.inputs)
        mtl_backward(problem.losses_at(features), features=features, parallel_chunk_size=chunk)
        jac_to_grad(problem.trunk.parameters(), aggregator, optimize_gramian_computation=summed)

    return step


def _backward(problem: Tasks) -> Callable[[], None]:
    from torchjd.aggregation import UPGrad
    from torchjd.autojac import backward, jac_to_grad

    aggregator, shared = UPGrad(), list(problem.trunk.parameters())

    def step() -> None:
        losses = problem.losses()
        backward(losses, inputs=shared, retain_graph=True)
        torch.stack(losses).sum().backward(inputs=list(problem.heads.parameters()))
        jac_to_grad(shared, aggregator, optimize_gramian_computation=True)

    return step


def _autogram(problem: Tasks) -> Contender:
    """On a copy, as its hooks stay in the modules. Heads get weighted gradients, which is the cheapest it can do."""
    from torchjd.aggregation import UPGradWeighting
    from torchjd.autogram import Engine

    own = copy.deepcopy(problem)
    own.parameters = [*own.trunk.parameters(), *own.heads.parameters()]
    engine, weighting = Engine(own.trunk, batch_dim=None), UPGradWeighting()

    def step() -> None:
        losses = torch.stack(own.losses())
        losses.backward(weighting(engine.compute_gramian(losses)))

    return Contender(step, own.parameters)


def _for_samples(problem: Samples) -> Iterator[tuple[str, Builder]]:
    yield PLAIN, lambda: Contender(lambda: problem.losses().sum().backward(), problem.parameters)
    yield INSTANCES, lambda: _instances(problem)
    if importlib.util.find_spec(PEER):
        yield f"{PEER}, autogram", lambda: _autogram_of_samples(problem)


def _instances(problem: Samples) -> Contender:
    plain = torch.optim.SGD(problem.parameters, lr=0.0)
    wrapped = gs.MultiObjectiveOptimizer(plain, gs.MGDA())
    return Contender(lambda: wrapped.backward(problem.losses()), problem.parameters)


def _autogram_of_samples(problem: Samples) -> Contender:
    from torchjd.aggregation import MGDAWeighting
    from torchjd.autogram import Engine

    own = copy.deepcopy(problem)
    own.parameters = list(own.trunk.parameters())
    engine, weighting = Engine(own.trunk, batch_dim=0), MGDAWeighting()

    def step() -> None:
        losses = own.losses()
        losses.backward(weighting(engine.compute_gramian(losses)))

    return Contender(step, own.parameters)


def _for_blocks(problem: Heads | Table) -> Iterator[tuple[str, Builder]]:
    methods: dict[str, Callable[[], gs.Aggregator]] = {
        BLOCKS[0]: gs.PCGrad,
        BLOCKS[1]: lambda: gs.GradNorm(alpha=0.0),
        BLOCKS[2]: gs.aggregators.NormalizedSGD,
    }
    held, count = problem.parameters, problem.count
    yield PLAIN, lambda: Contender(lambda: problem.loss(None).backward(), held)
    for name, build in methods.items():
        yield name, partial(_through, problem, gs.ImpartialityBlock(count, build()))
    if isinstance(problem, Heads):
        own = gs.ImpartialityBlock(count, gs.PCGrad())
        yield f"{PLAIN}, nn.Linear heads", lambda: Contender(lambda: problem.loss(None, fused=False).backward(), held)
        yield (
            f"{BLOCKS[0]}, nn.Linear heads",
            lambda: Contender(lambda: problem.loss(own, fused=False).backward(), held),
        )


def _through(problem: Heads | Table, block: gs.ImpartialityBlock) -> Contender:
    return Contender(lambda: problem.loss(block).backward(), problem.parameters)
