"""A training that was stopped goes on to the same numbers, bit for bit."""

import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from gradsurgery.integrations.vae import Run, Table, fit_seeds
from gradsurgery.integrations.vae.stacked import checkpoint as stacked_checkpoint
from gradsurgery.integrations.vae.stacked.checkpoint import training_seconds
from gradsurgery.integrations.vae.stacked.state import StackedState
from gradsurgery.integrations.vae.training.identity import describe_method, table_digest
from gradsurgery.integrations.vae.training.methods import build_method

SEEDS = (0, 3)
# Methods that solve all seeds at once, with and without state; that draw; that need the gradients themselves.
METHODS = ("sum", "gradnorm", "lossbalancer+pcgrad", "graddrop")


def train(
    table: Table, method: str, checkpoint: Path | None = None, epochs: int = 4, model: str = "vae"
) -> list[Run]:
    return fit_seeds(
        table,
        partial(build_method, method),
        seeds=SEEDS,
        model=model,  # type: ignore[arg-type]
        epochs=epochs,
        batch_size=64,
        checkpoint=checkpoint,
    )


def interrupt(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Ctrl-C in the middle of the epoch after that many."""
    record = stacked_checkpoint.Checkpoint.update

    def update(self: stacked_checkpoint.Checkpoint) -> None:
        if self.state.epoch > epoch:
            raise KeyboardInterrupt
        record(self)

    monkeypatch.setattr(stacked_checkpoint.Checkpoint, "update", update)


@pytest.fixture(autouse=True)
def _copied_after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_checkpoint, "SECONDS_BETWEEN_COPIES", 0.0)


def stop(
    monkeypatch: pytest.MonkeyPatch, table: Table, method: str, path: Path, epoch: int, model: str = "vae"
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, epoch)
        with pytest.raises(KeyboardInterrupt):
            train(table, method, path, model=model)
    assert torch.load(path, weights_only=True)["state"]["epoch"] == epoch


def assert_same(runs: list[Run], others: list[Run]) -> None:
    for run, other in zip(runs, others, strict=True):
        assert run.history == other.history
        assert run.best_epoch == other.best_epoch
        own, theirs = run.model.state_dict(), other.model.state_dict()
        assert list(own) == list(theirs)
        assert all(torch.equal(own[name], theirs[name]) for name in own)


@pytest.mark.parametrize("method", METHODS)
def test_it_goes_on_where_it_was_stopped(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    path = tmp_path / "checkpoint"
    whole = train(table, method)
    for epoch in (1, 3):
        stop(monkeypatch, table, method, path, epoch)
    assert_same(train(table, method, path), whole)
    seconds = training_seconds(path)
    assert_same(train(table, method, path), whole)  # nothing is left to do
    assert training_seconds(path) >= seconds > 0
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("model", ["dreg", "hivae"])
def test_other_models(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    stop(monkeypatch, table, "lossbalancer", tmp_path / "checkpoint", 2, model)
    assert_same(
        train(table, "lossbalancer", tmp_path / "checkpoint", model=model), train(table, "lossbalancer", model=model)
    )


@pytest.mark.parametrize("part", ["weights", "statistics", "learnt", "optimizer", "generators", "bests"])
def test_the_comparison_can_fail(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Each part of the state matters."""
    path = tmp_path / "checkpoint"
    stop(monkeypatch, table, "lossbalancer", path, 2)
    load = StackedState.load_state_dict

    def forgetful(self: StackedState, state: dict[str, object]) -> None:
        load(self, {**state, part: self.state_dict()[part]})

    monkeypatch.setattr(StackedState, "load_state_dict", forgetful)
    with pytest.raises((AssertionError, IndexError)):
        assert_same(train(table, "lossbalancer", path), train(table, "lossbalancer"))


def test_a_finished_training_goes_on_with_more_epochs(table: Table, tmp_path: Path) -> None:
    train(table, "gradnorm", tmp_path / "checkpoint", epochs=2)
    assert_same(train(table, "gradnorm", tmp_path / "checkpoint"), train(table, "gradnorm"))
    with pytest.raises(ValueError, match="`checkpoint` must have at most 3 epochs, got 4"):
        train(table, "gradnorm", tmp_path / "checkpoint", epochs=3)


def test_killed(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Whatever file a kill leaves, the same numbers come out."""
    csv, path = tmp_path / "table.csv", tmp_path / "checkpoint"
    frame.to_csv(csv, index=False)
    program = f"""
        import torch
        from gradsurgery.integrations.vae import Table, fit_seeds
        from gradsurgery.integrations.vae.stacked import checkpoint as stacked_checkpoint
        torch.set_num_threads(1)
        stacked_checkpoint.SECONDS_BETWEEN_COPIES = stacked_checkpoint.SECONDS_BETWEEN_WRITES = 0.0
        fit_seeds(Table.read_csv({str(csv)!r}), seeds={SEEDS}, epochs=100000, checkpoint={str(path)!r})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    try:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    table = Table.read_csv(csv)
    epochs = torch.load(path, weights_only=True)["state"]["epoch"] + 2
    assert_same(
        fit_seeds(table, seeds=SEEDS, epochs=epochs, checkpoint=path), fit_seeds(table, seeds=SEEDS, epochs=epochs)
    )


def test_of_another_training(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    shared = {"seeds": SEEDS, "epochs": 1, "checkpoint": path}
    fit_seeds(table, **shared)  # type: ignore[arg-type]
    others = [
        ({"seeds": (0, 1)}, r"seeds \[0, 3\], not \[0, 1\]"),
        ({"batch_size": 32}, "batch_size 128, not 32"),
        ({"learning_rate": 0.01}, r"learning_rate 0\.001, not 0\.01"),
        ({"rescale": False}, "rescale True, not False"),
        ({"model": "iwae"}, "model 'vae', not 'iwae'"),
        ({"build_method": partial(build_method, "upgrad")}, r"methods \['Sum\(\)'\], not \['UPGrad"),
    ]
    for options, message in others:
        with pytest.raises(ValueError, match=f"`checkpoint` must be of the same training, got one with {message}"):
            fit_seeds(table, **{**shared, **options})  # type: ignore[arg-type]
    changed = Table(table.schema, table.values.clone())
    changed.values[7, 1] += 1
    with pytest.raises(ValueError, match="got one with tables"):
        fit_seeds(changed, **shared)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"nothing of the kind"])
def test_no_checkpoint(table: Table, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="`checkpoint` must be a checkpoint of this version, got another file"):
        train(table, "sum", path)
    for other in ({"weights": torch.zeros(1)}, {"format": stacked_checkpoint.FORMAT}):
        torch.save(other, path)
        with pytest.raises(ValueError, match="`checkpoint` must be a checkpoint of this version"):
            train(table, "sum", path)


def test_without_a_checkpoint_nothing_is_written(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(table, "sum", epochs=1)
    assert not list(tmp_path.iterdir())


def test_names_of_trainings(table: Table) -> None:
    assert describe_method(build_method("gradnorm", 0)) == describe_method(build_method("gradnorm", 1))
    names = {describe_method(build_method(name)) for name in METHODS}
    assert len(names) == len(METHODS)
    digest = table_digest(table)
    reordered = Table(table.schema, table.values.flip(0))
    assert digest == table_digest(Table(table.schema, table.values.clone())) != table_digest(reordered)
