"""A training run that saves checkpoints, continues from the last one, and may die at any point on the way."""

import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import gradsurgery as gs
from gradsurgery import aggregators, scalarizers
from gradsurgery.resumption import SurgeryState

STEPS, EVERY, BATCH = 13, 3, 8
POINTS = ("forward", "backward", "step", "half a checkpoint", "checkpoint")
"""Where in a step the run may die."""

METHODS: dict[str, Callable[[], Any]] = {
    "numbers a loss": gs.GradNorm,
    "random": gs.PCGrad,
    "random, over the Jacobian": gs.GradDrop,
    "K x P numbers": aggregators.MoCo,
    "K x K numbers, random": gs.GradVac,
    "learned weights": scalarizers.UncertaintyWeighting,
    "random weights": scalarizers.Random,
}


class Death(NamedTuple):
    """The point at which a process kills itself."""

    rank: int
    step: int
    point: str


class Net(nn.Module):
    """A trunk with dropout and three heads, behind a block if there is one."""

    def __init__(self, block: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1))
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))
        self.block = block

    def forward(self, inputs: Tensor) -> list[Tensor]:
        z = self.trunk(inputs)
        views = [z] * 3 if self.block is None else self.block(z)
        pairs = zip(self.heads, views, strict=True)
        return [(head(view) - k).square().mean() * 4.0**k for k, (head, view) in enumerate(pairs)]


class Training:
    """One model with its optimizer, and how both go to and come from checkpoints."""

    def __init__(self, build: Callable[[], Any], position: int, distributed: bool) -> None:
        torch.manual_seed(position)
        self.inside = build is gs.ImpartialityBlock
        net = Net(gs.ImpartialityBlock(3, gs.Chain(gs.GradNorm(alpha=0.0), gs.PCGrad())) if self.inside else None)
        self.model: nn.Module = nn.parallel.DistributedDataParallel(net) if self.inside and distributed else net
        self.optimizer: Any = torch.optim.Adam(net.parameters(), lr=0.01)
        if not self.inside:
            self.optimizer = gs.MultiObjectiveOptimizer(self.optimizer, build())
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 5, 0.5)

    def backward(self, inputs: Tensor, step: int) -> None:
        self.optimizer.zero_grad()
        losses = self.model(inputs)
        if self.inside:
            torch.stack(losses).sum().backward()
        else:
            self.optimizer.backward({"a": losses[0], "b": None if step % 4 == 1 else losses[1], "c": losses[2]})

    def step(self) -> None:
        self.optimizer.step()
        self.scheduler.step()

    def plain(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_plain(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def entries(self) -> dict[str, Any]:
        """For ``torch.distributed.checkpoint``."""
        return {
            "model": self.model,
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
            "scheduler": self.scheduler,
            "surgery": SurgeryState(self.model if self.inside else self.optimizer),
        }


def write_file(path: Path, state: Any) -> None:
    """All or nothing: a file that is there is whole."""
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    unfinished.replace(path)


class _Run:
    """What one process does from the last checkpoint to the end."""

    def __init__(self, folder: Path, sharded: bool, rank: int, ranks: int, death: Death | None) -> None:
        self.folder, self.sharded, self.rank, self.ranks, self.death = folder, sharded, rank, ranks, death
        builders = [*METHODS.values(), gs.ImpartialityBlock]
        self.trainings = [Training(build, position, ranks > 1) for position, build in enumerate(builders)]

    def train(self) -> None:
        for step in range(self.resume(), STEPS):
            for position, training in enumerate(self.trainings):
                torch.manual_seed(step)
                inputs = torch.randn(BATCH, 6).chunk(self.ranks)[self.rank]
                training.backward(inputs, step)
                if position == len(self.trainings) // 2:
                    self.perhaps_die(step, "forward")
            self.perhaps_die(step, "backward")
            for training in self.trainings:
                training.step()
            self.perhaps_die(step, "step")
            if (step + 1) % EVERY == 0:
                (self.save_sharded if self.sharded else self.save)(step + 1)
                self.perhaps_die(step, "checkpoint")
        write_file(self.folder / f"final-{self.rank}.pt", [training.plain() for training in self.trainings])

    def perhaps_die(self, step: int, point: str) -> None:
        if self.death == (self.rank, step, point):
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def save(self, step: int) -> None:
        if self.rank == 0:
            torch.save({"half": True}, self.folder / "last.tmp")
        self.perhaps_die(step - 1, "half a checkpoint")
        if self.rank == 0:
            everything = [training.plain() for training in self.trainings]
            write_file(self.folder / "last.pt", {"step": step, "trainings": everything})

    def save_sharded(self, step: int) -> None:
        unfinished = self.folder / "unfinished"
        if self.rank == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
        if self.ranks > 1:
            dist.barrier()
        dcp.save(self.entries(), checkpoint_id=unfinished)
        self.perhaps_die(step - 1, "half a checkpoint")
        if self.rank == 0:
            unfinished.rename(self.folder / f"step-{step:03}")

    def resume(self) -> int:
        """Loads the last checkpoint that is whole and returns the number of steps it holds."""
        if self.sharded:
            finished = sorted(self.folder.glob("step-*"))
            if not finished:
                return 0
            entries = self.entries()
            dcp.load(entries, checkpoint_id=finished[-1])
            for position, training in enumerate(self.trainings):
                set_optimizer_state_dict(training.model, training.optimizer, entries[f"{position}.optimizer"])
            return int(finished[-1].name[-3:])
        if not (self.folder / "last.pt").exists():
            return 0
        saved = torch.load(self.folder / "last.pt", weights_only=True)
        for training, state in zip(self.trainings, saved["trainings"], strict=True):
            training.load_plain(state)
        return int(saved["step"])

    def entries(self) -> dict[str, Any]:
        """All that a sharded checkpoint holds; it asks only its outermost entries for their state."""
        return {
            f"{position}.{name}": entry
            for position, training in enumerate(self.trainings)
            for name, entry in training.entries().items()
        }


def run(folder: Path, sharded: bool, rank: int, ranks: int, meeting: str, death: Death | None) -> None:
    """Trains to the end, or to death, in a process of its own.

    Args:
        folder: Holds the checkpoints and, once it is over, ``final-{rank}.pt``.
        sharded: Whether ``torch.distributed.checkpoint`` writes them.
        rank: Which process this is.
        ranks: How many there are.
        meeting: Name of a new file through which they find each other.
        death: Where to die.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings(
        "ignore", message="torch.distributed is (disabled|unavailable)|TypedStorage is deprecated"
    )
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / meeting}", rank=rank, world_size=ranks)
    _Run(folder, sharded, rank, ranks, death).train()
    if ranks > 1:
        dist.destroy_process_group()
