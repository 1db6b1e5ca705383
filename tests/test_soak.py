"""Ten thousand steps of a workload that never stays the same: memory stays flat, and no graph outlives its step."""

import gc
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery import aggregators, scalarizers

STEPS, WARM, CYCLE = 10_000, 3_000, 1_000


class Token:
    """Hangs on a node of the graph and dies with it."""

    def __call__(self, gradient: Tensor) -> None:
        return None


class Batch(NamedTuple):
    """What one step is made of."""

    inputs: Tensor
    present: list[bool]
    skips: bool
    faulty: bool


class Rig:
    """A model with three heads and its optimizer; a subclass says how they are trained.

    Args:
        build: The method.
        options: The wrapper's.
    """

    hooked = True

    def __init__(self, build: Callable[[], Any], **options: Any) -> None:
        self.entry, self.extra = nn.Linear(3, 4), nn.Linear(4, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
        self.trunk = nn.ModuleList([self.entry, self.extra])
        parameters = [*self.trunk.parameters(), *self.heads.parameters()]
        if options:
            options["shared"] = self.trunk
        self.optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(parameters, lr=1e-4), build(), **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        self.living: list[weakref.ref[Any]] = []

    def losses(self, batch: Batch) -> dict[str, Tensor | None]:
        z = torch.tanh(self.entry(batch.inputs))
        if not batch.skips:
            z = z + self.extra(z)
        outputs = [head(z) for head in self.heads]
        found: dict[str, Tensor | None] = {}
        for position, (output, here) in enumerate(zip(outputs, batch.present, strict=True)):
            found[f"loss {position}"] = (output - position).square().mean() if here else None
        if batch.faulty:
            first = next(name for name, loss in found.items() if loss is not None)
            found[first] = found[first] * torch.nan
        if self.hooked and z.requires_grad:
            token = Token()
            z.register_hook(token)
            self.living.append(weakref.ref(token))
        self.living += [
            weakref.ref(tensor) for tensor in (batch.inputs, z, *outputs, *found.values()) if tensor is not None
        ]
        return found

    def step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        self.act(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update(2.0**8)  # for good, lest one NaN after another brings it to zero

    def act(self, batch: Batch) -> None:
        self.optimizer.backward(self.losses(batch), grad_scaler=self.scaler)


class Scalarized(Rig):
    """Through one scalar, with an extra loss, two passes a step."""

    def act(self, batch: Batch) -> None:
        for _ in range(2):
            penalty = self.entry.weight.square().sum()
            self.scaler.scale(self.optimizer.scalarize(self.losses(batch), extra_loss=penalty)).backward()


class Retained(Rig):
    """Twice over the same graph, and once for the Jacobian alone."""

    def act(self, batch: Batch) -> None:
        losses = self.losses(batch)
        for retain in (True, False):
            self.optimizer.backward(losses, grad_scaler=self.scaler, retain_graph=retain)
        self.optimizer.jacobian(self.losses(batch))


class Called(Rig):
    """With a callable that returns the losses."""

    hooked = False

    def act(self, batch: Batch) -> None:
        self.optimizer.backward(lambda: self.losses(batch), grad_scaler=self.scaler)


class Closed(Rig):
    """With a closure, and a second look at the losses."""

    def step(self, batch: Batch) -> None:
        def closure() -> dict[str, Tensor | None]:
            self.optimizer.zero_grad()
            return self.losses(batch._replace(faulty=False))

        self.optimizer.step(closure)


class Observed(Rig):
    """With two batches that are looked at first."""

    def act(self, batch: Batch) -> None:
        self.optimizer.observe(self.losses(batch), self.losses(batch))
        super().act(batch)


class Sampled(Rig):
    """One loss a sample."""

    def act(self, batch: Batch) -> None:
        z = torch.tanh(self.entry(batch.inputs.reshape(-1, 3)[:5]))  # each new structure of the graph is remembered
        each = self.heads[0](z).square().flatten(1).mean(1)
        self.living += [weakref.ref(z), weakref.ref(each)]
        self.optimizer.backward(each * torch.nan if batch.faulty else each, grad_scaler=self.scaler)


class Inside(Rig):
    """An impartiality block in an ordinary backward pass."""

    def __init__(self, build: Callable[[], Any]) -> None:
        super().__init__(gs.Sum)
        self.block = gs.ImpartialityBlock(3, build(), grad_scaler=self.scaler)
        self.fused = gs.FusedHeads(4, [1, 2, 1])

    def act(self, batch: Batch) -> None:
        z = torch.tanh(self.entry(batch.inputs))
        outputs = [head(view) for head, view in zip(self.heads, self.block(z), strict=True)]
        outputs += self.fused(z, self.block) if len(batch.inputs) % 2 else []
        loss = torch.stack([output.square().mean() for output in outputs]).sum()
        self.living += [weakref.ref(tensor) for tensor in (z, loss, *outputs)]
        self.scaler.scale(loss * torch.nan if batch.faulty else loss).backward()


CHEAP: list[Callable[[], Rig]] = [
    lambda: Rig(gs.UPGrad),
    lambda: Rig(gs.GradDrop, engine="loop", scope="tensor"),
    lambda: Rig(scalarizers.ReLoBRaLo),
    lambda: Closed(scalarizers.FAMO),
    lambda: Inside(gs.PCGrad),
    lambda: Inside(lambda: gs.GradNorm(alpha=0.0)),
]
OTHERS: list[Callable[[], Rig]] = [
    lambda: Rig(gs.MGDA, engine="ghost"),
    lambda: Rig(gs.GradNorm, engine="batched"),
    lambda: Rig(aggregators.MoCo, engine="loop"),
    lambda: Rig(lambda: aggregators.CRMOGM(gs.PCGrad()), engine="ghost"),
    lambda: Rig(gs.CAGrad, engine="ghost", scope="module"),
    lambda: Called(gs.PCGrad, engine="func"),
    lambda: Retained(gs.GradVac, engine="loop"),
    lambda: Scalarized(gs.NashMTL),
    lambda: Scalarized(scalarizers.UncertaintyWeighting),
    lambda: Observed(aggregators.SDMGrad, engine="loop"),
    lambda: Sampled(gs.MGDA),
]


def batch_of(step: int) -> Batch:
    """Any size, losses and fault; the last steps of each cycle are always the same."""
    phase = step % CYCLE
    source = random.Random(phase if phase >= CYCLE - 100 else step)
    shape = [source.randint(1, 12), *[source.randint(1, 40)] * source.randint(0, 1), 3]
    present = [source.random() < 0.5 for _ in range(3)]
    skips, faulty = source.random() < 0.5, source.random() < 0.05
    return Batch(torch.full(shape, source.random()), present if any(present) else [True] * 3, skips, faulty)


class Memory(NamedTuple):
    """What is in use between two steps."""

    tensors: int
    size: int
    objects: int
    blocks: int
    pages: int

    @classmethod
    def now(cls) -> "Memory":
        for _ in range(3):  # each pass stops to look at the tuples that it finds to hold nothing
            gc.collect()
        everything = gc.get_objects()
        tensors = [thing for thing in everything if issubclass(type(thing), Tensor)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        statistics = Path("/proc/self/statm")
        pages = int(statistics.read_text().split()[1]) if statistics.exists() else 0
        count = len(everything)
        return cls(len(tensors), sum(storages.values()), count, sys.getallocatedblocks(), pages)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without the garbage collector, whatever is freed was part of no cycle; what was there before is left out."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def assert_flat(before: Memory, after: Memory, steps: int) -> None:
    """Fails if anything has grown with the number of steps, however little in each."""
    assert after.tensors <= before.tensors + 10
    assert after.size <= 2 * before.size
    assert after.objects <= before.objects + steps / 20
    assert after.blocks <= before.blocks + steps / 20
    assert after.pages <= before.pages + 1024


def assert_nothing_lives(rig: Rig) -> None:
    """Fails if anything of the graphs since the last call is still there."""
    assert rig.living, "nothing was looked at"
    alive = [thing for thing in (reference() for reference in rig.living) if thing is not None]
    assert not alive, f"{type(rig).__name__} with {rig.optimizer.aggregator} keeps {alive}"
    rig.living.clear()


@pytest.mark.usefixtures("no_collector")
def test_memory_stays_flat_and_no_graph_is_kept() -> None:
    torch.manual_seed(0)
    cheap, others = ([build() for build in builders] for builders in (CHEAP, OTHERS))
    before = None
    for step in range(STEPS):
        turn = step % CYCLE
        rig = others[turn // 8 % len(others)] if turn % 8 == 7 else cheap[turn % len(cheap)]
        rig.step(batch_of(step))
        assert_nothing_lives(rig)
        if step + 1 == WARM:
            before = Memory.now()
    assert before is not None
    assert_flat(before, Memory.now(), STEPS - WARM)
    assert all(bool(parameter.isfinite().all()) for rig in cheap + others for parameter in rig.trunk.parameters())


@pytest.mark.usefixtures("no_collector")
def test_what_is_kept_would_be_noticed() -> None:
    rig = Rig(gs.UPGrad)
    losses = rig.losses(batch_of(0))
    with pytest.raises(AssertionError, match="Rig with UPGrad"):
        assert_nothing_lives(rig)
    rig.optimizer.backward(losses, retain_graph=True)
    with pytest.raises(AssertionError, match="Rig with UPGrad"):
        assert_nothing_lives(rig)
    before = Memory.now()
    assert_flat(before, Memory.now(), STEPS)
    kept: list[Any] = [torch.ones(1) for _ in range(11)]
    with pytest.raises(AssertionError, match="tensors"):
        assert_flat(before, Memory.now(), STEPS)
    kept = [torch.ones(before.size)]
    with pytest.raises(AssertionError, match="size"):
        assert_flat(before, Memory.now(), STEPS)
    kept = [[step] for step in range(STEPS // 10)]
    with pytest.raises(AssertionError, match="objects"):
        assert_flat(before, Memory.now(), STEPS)
    kept = [f"loss {step}" for step in range(STEPS // 5)]
    with pytest.raises(AssertionError, match="blocks"):
        assert_flat(before, Memory.now(), STEPS)
    kept.clear()
