"""A run that is killed again and again ends, bit for bit, where the run that was never killed does."""

import copy
import multiprocessing
import multiprocessing.connection
import random
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from resumable import EVERY, METHODS, POINTS, STEPS, Death, Training, run
from support import assert_same_bits
from torch import nn
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

import gradsurgery as gs
from gradsurgery.resumption import SurgeryState

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable):UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),  # torch 2.6 writes with it
]

START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["gradsurgery", "torch.distributed.checkpoint.state_dict", "torch._dynamo"])

Processes = list[multiprocessing.process.BaseProcess]


def start(folder: Path, sharded: bool, ranks: int, death: Death | None) -> Processes:
    meeting = f"meeting-{uuid.uuid4()}"
    processes: Processes = [
        START.Process(target=run, args=(folder, sharded, rank, ranks, meeting, death)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def wait(processes: Processes, seconds: float = 60.0) -> bool:
    """Waits until all are through, or one is not: then the others are killed. Returns whether all were through."""
    end = time.monotonic() + seconds
    while any(process.is_alive() for process in processes) and time.monotonic() < end:
        if any(process.exitcode for process in processes):
            break
        multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()], 0.05)
    for process in processes:
        process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    assert all(code in (0, -signal.SIGKILL) or len(codes) > 1 for code in codes), codes
    return codes == [0] * len(codes)


def final(folder: Path, ranks: int) -> list[Any]:
    return [torch.load(folder / f"final-{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two ranks"])
def never_killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[Any]]:
    """The number of ranks, and where each ends when nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    assert wait(start(folder, False, request.param, None))
    return request.param, final(folder, request.param)


def deaths(ranks: int, seed: int) -> list[Death]:
    """Random points at which to die, one of each kind or two, in the order in which a run gets there."""
    source = random.Random(seed)
    found = []
    for position, point in enumerate(POINTS):
        saving = "checkpoint" in point
        steps = [step for step in range(STEPS) if not saving or (step + 1) % EVERY == 0]
        for step in source.sample(steps, 3 - ranks):
            found.append((step, position, Death(source.randrange(ranks), step, point)))
    return [death for _, _, death in sorted(found)]


@pytest.mark.parametrize("sharded", [False, True], ids=["torch.save", "torch.distributed.checkpoint"])
def test_dying_anywhere_changes_nothing(never_killed: tuple[int, list[Any]], sharded: bool, tmp_path: Path) -> None:
    ranks, expected = never_killed
    for death in deaths(ranks, seed=2 * ranks + sharded):
        assert not wait(start(tmp_path, sharded, ranks, death)), f"survived {death}"
        (tmp_path / "died").unlink()  # it is there if nothing else ended the run
    assert list(tmp_path.glob("step-*" if sharded else "last.pt")), "there is nothing to resume from"
    assert wait(start(tmp_path, sharded, ranks, None))
    assert_same_bits(final(tmp_path, ranks), expected)


@pytest.mark.parametrize("sharded", [False, True], ids=["torch.save", "torch.distributed.checkpoint"])
def test_killed_from_outside_at_any_time(never_killed: tuple[int, list[Any]], sharded: bool, tmp_path: Path) -> None:
    ranks, expected = never_killed
    source = random.Random(ranks + 2 * sharded)
    for _ in range(5 - ranks):
        processes = start(tmp_path, sharded, ranks, None)
        time.sleep(source.uniform(0.05, 0.3 * ranks))
        source.choice(processes).kill()
        wait(processes)
    assert wait(start(tmp_path, sharded, ranks, None))
    assert_same_bits(final(tmp_path, ranks), expected)


def steps(training: Training, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        training.backward(torch.randn(8, 6), step)
        training.step()


BUILDERS: dict[str, Callable[[], Any]] = {**METHODS, "a block": gs.ImpartialityBlock}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["save", "async_save"])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_sharded_checkpoint_holds_what_methods_remember(name: str, asynchronous: bool, tmp_path: Path) -> None:
    """Also if training goes on while it is written; and without the method's entry the end would be another one."""
    saved = Training(BUILDERS[name], 0, False)
    steps(saved, 0, 6)
    if asynchronous:
        entries = saved.entries()
        entries |= copy.deepcopy(
            {key: entries[key] for key in ("model", "optimizer")}
        )  # torch 2.6 does not copy them
        response = dcp.async_save(entries, checkpoint_id=tmp_path)
        steps(saved, 6, 12)
        response.result()
    else:
        dcp.save(saved.entries(), checkpoint_id=tmp_path)
        steps(saved, 6, 12)
    ends = []
    for entries in ({"model", "optimizer", "scheduler", "surgery"}, {"model", "optimizer", "scheduler"}):
        resumed = Training(BUILDERS[name], 1, False)
        state = {key: entry for key, entry in resumed.entries().items() if key in entries}
        dcp.load(state, checkpoint_id=tmp_path)
        set_optimizer_state_dict(resumed.model, resumed.optimizer, state["optimizer"])
        steps(resumed, 6, 12)
        ends.append(resumed.plain())
    assert_same_bits(ends[0], saved.plain())
    with pytest.raises(AssertionError):
        assert_same_bits(ends[1], saved.plain())


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("random")])
def test_an_optimizer_that_is_loaded_in_part_says_so(name: str, tmp_path: Path) -> None:
    """What ``dcp.load({"optimizer": optimizer})`` does: it looks for the buffers that a new method has, none."""
    saved, fresh = Training(METHODS[name], 0, False), Training(METHODS[name], 1, False)
    steps(saved, 0, 3)
    dcp.save({"optimizer": saved.optimizer}, checkpoint_id=tmp_path)
    with pytest.raises(ValueError, match=r"must hold all of the method's state, got one without \["):
        dcp.load({"optimizer": fresh.optimizer}, checkpoint_id=tmp_path)
    assert fresh.optimizer.state_dict()["gradsurgery"]["losses"] == []


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    first, second = Training(gs.GradNorm, 0, False), Training(gs.GradNorm, 1, False)
    block = Training(gs.ImpartialityBlock, 2, False)
    for training in (first, second, block):
        steps(training, 0, 3)
    before = SurgeryState(first.optimizer, block.model).state_dict()
    for wrong, message in (
        (SurgeryState(second.optimizer), "must be of 2 owners, got 1"),
        (SurgeryState(second.optimizer, second.optimizer), r"with the methods \['Chain'\], got a wrapped optimizer"),
        (SurgeryState(second.optimizer, gs.PCGrad()), r"with the methods \['Chain'\], got \['PCGrad'\]"),
        (SurgeryState(block.model, block.model), "must be of a wrapped optimizer, got a module with methods"),
    ):
        with pytest.raises(ValueError, match=f"^SurgeryState: `state_dict` .*{message}"):
            SurgeryState(first.optimizer, block.model).load_state_dict(wrong.state_dict())
        assert SurgeryState(first.optimizer, block.model).state_dict() == before


def test_a_state_of_something_else() -> None:
    optimizer = Training(gs.GradNorm, 0, False).optimizer
    with pytest.raises(ValueError, match=r"^SurgeryState: `state_dict` must be what .* got one with .'gradsurg"):
        SurgeryState(optimizer).load_state_dict(optimizer.state_dict())


def test_the_state_of_another_method_starts_the_method_afresh() -> None:
    first, second = Training(gs.GradNorm, 0, False), Training(gs.GradVac, 1, False)
    steps(first, 0, 3)
    with pytest.warns(UserWarning, match="the checkpoint holds the state of GradNorm; GradVac starts afresh"):
        SurgeryState(second.optimizer).load_state_dict(SurgeryState(first.optimizer).state_dict())


@pytest.mark.parametrize(
    ("owners", "error", "message"),
    [
        ((), ValueError, "must be at least one optimizer or module, got none"),
        ((nn.Linear(1, 1),), ValueError, "must remember something, got a Linear without a method"),
        ((torch.optim.SGD([torch.zeros(1)]),), TypeError, "must be wrapped optimizers or modules, got SGD"),
    ],
)
def test_owners_that_remember_nothing(owners: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^SurgeryState: `owners` {message}"):
        SurgeryState(*owners)
