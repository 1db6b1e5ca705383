"""What a surgery did, as numbers by name, and that each logger gets them as it wants them."""

import csv
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import gradsurgery as gs
from gradsurgery.diagnostics.metrics import group_metrics, surgery_metrics
from gradsurgery.diagnostics.monitor.loggers import writer_for

NUMBERS = {"surgery/cosine/a-b": -0.5, "surgery/conflicting": 1.0}


def surgery_of(rows: list[list[float]], method: Any, **options: Any) -> gs.Surgery:
    """A surgery whose gradients are the rows, on a module for each column."""
    model = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in rows[0])
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters()), method, shared=model, **options)
    weights = torch.cat([parameter.view(1) for parameter in model.parameters()])
    return optimizer.backward({name: torch.tensor(row) @ weights for name, row in zip("abc", rows, strict=False)})


# --- the numbers ---------------------------------------------------------------------------------------------------


def test_metrics() -> None:
    metrics = surgery_metrics(surgery_of([[3.0, 4.0], [-3.0, 4.0], [0.0, 0.0]], gs.Sum()), "")
    assert metrics.pop("cosine/a-b") == pytest.approx(7 / 25)
    assert metrics.pop("cosine/a-c") == metrics.pop("cosine/b-c") == 0.0
    assert metrics.pop("conflicting") == metrics.pop("lowest_cosine") == 0.0
    assert metrics.pop("lowest_magnitude_similarity") == 0.0
    assert [metrics.pop(f"norm/{name}") for name in "abc"] == [5.0, 5.0, 0.0]
    assert [metrics.pop(f"weight/{name}") for name in "abc"] == [1.0, 1.0, 1.0]
    assert list(metrics) == ["loss/a", "loss/b", "loss/c"]
    metrics = surgery_metrics(surgery_of([[3.0, 4.0], [-4.0, 3.0], [-3.0, -4.0]], gs.Sum()))
    assert metrics["surgery/conflicting"] == pytest.approx(1 / 3)
    assert metrics["surgery/lowest_cosine"] == pytest.approx(-1)
    assert metrics["surgery/lowest_magnitude_similarity"] == pytest.approx(1)


def test_gradients_of_zero_are_no_part_of_the_share_that_conflicts() -> None:
    metrics = surgery_metrics(surgery_of([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], gs.Sum()), "")
    assert metrics["conflicting"] == 1.0
    assert surgery_metrics(surgery_of([[0.0, 0.0], [0.0, 0.0]], gs.Sum()), "")["conflicting"] == 0.0


def test_metrics_of_groups_many_losses_and_methods_without_inner_products() -> None:
    metrics = surgery_metrics(surgery_of([[1.0, 1.0], [1.0, -2.0]], gs.Sum(), scope="module"), "")
    assert metrics["cosine/a-b"] == pytest.approx(0.0)
    assert metrics["conflicting"] == 0.5
    assert metrics["lowest_cosine"] == pytest.approx(-1)
    assert metrics["norm/b"] == 1.5
    short = surgery_metrics(surgery_of([[1.0, 1.0], [1.0, -2.0]], gs.Sum()), "", max_losses=1)
    assert short == {
        "lowest_cosine": pytest.approx(-(10**-0.5)),
        "lowest_magnitude_similarity": pytest.approx(2 * 10**0.5 / 7),
        "conflicting": 1.0,
    }
    drop = surgery_metrics(surgery_of([[1.0, 1.0], [1.0, -2.0]], gs.GradDrop()), "")
    assert list(drop) == ["loss/a", "loss/b"]
    with pytest.raises(ValueError, match="at least 0, got -1"):
        surgery_metrics(surgery_of([[1.0]], gs.Sum()), max_losses=-1)
    nothing: Any = gs.MultiObjectiveOptimizer(torch.optim.SGD([nn.Parameter(torch.ones(1))]), gs.Sum()).last_surgery
    with pytest.raises(TypeError, match="`surgery` must be what backward.. returned, got NoneType"):
        surgery_metrics(nothing)


def test_metrics_of_an_overflow_are_not_numbers() -> None:
    gramian = torch.tensor([[math.inf, 1.0, 0.0], [1.0, 1.0, -1.0], [0.0, -1.0, 1.0]], dtype=torch.float64)
    surgery = gs.Surgery(("a", "b", "c"), torch.zeros(3), None, gramian)
    metrics = surgery_metrics(surgery, "")
    assert metrics["cosine/b-c"] == -1.0
    assert math.isnan(metrics["cosine/a-b"])  # not 1 / inf
    assert math.isnan(metrics["conflicting"])
    assert metrics["norm/a"] == math.inf


def test_metrics_of_a_block_have_no_losses() -> None:
    surgery = gs.Surgery(("0", "1"), torch.full((2,), math.nan), torch.ones(2), torch.eye(2))
    assert not any("loss" in name for name in surgery_metrics(surgery))
    assert surgery_metrics(surgery)["surgery/weight/0"] == 1.0


def test_metrics_of_each_group() -> None:
    surgery = surgery_of([[1.0, 1.0], [1.0, -2.0]], gs.UPGrad(), scope="module")
    metrics = group_metrics(surgery, "")
    first, second = surgery.groups
    assert metrics[f"{first}/cosine/a-b"] == pytest.approx(1.0)
    assert metrics[f"{second}/cosine/a-b"] == pytest.approx(-1.0)
    assert metrics[f"{second}/norm/b"] == 2.0
    assert surgery.weights is not None
    assert metrics[f"{second}/weight/a"] == float(surgery.weights[1, 0])
    assert [name for name in group_metrics(surgery, "", max_losses=1) if name.startswith(first)] == [
        f"{first}/{name}" for name in ("lowest_cosine", "lowest_magnitude_similarity", "conflicting")
    ]
    assert group_metrics(surgery_of([[1.0], [1.0]], gs.Sum())) == {}


# --- loggers -------------------------------------------------------------------------------------------------------


def test_a_function() -> None:
    seen: list[Any] = []
    writer_for(lambda metrics, step: seen.append((metrics, step)))(NUMBERS, 3)
    assert seen == [(NUMBERS, 3)]
    assert seen[0][0] is not NUMBERS  # it may change what it is given


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what tensorboard imports
def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as summary:
        write = writer_for(summary)
        for step in (0, 10):
            write({**NUMBERS, "surgery/norm/a": step + 0.5}, step)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("surgery/norm/a")] == [(0, 0.5), (10, 10.5)]
    assert events.Scalars("surgery/cosine/a-b")[1].value == -0.5


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_logger_of_lightning(tmp_path: Path) -> None:
    loggers = pytest.importorskip("lightning.pytorch.loggers", reason="needs lightning")
    logger = loggers.CSVLogger(tmp_path)
    write = writer_for(logger)
    write(NUMBERS, 0)
    write({**NUMBERS, "surgery/norm/a": 2.0}, 20)
    logger.save()
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "20"]
    assert rows[1]["surgery/norm/a"] == "2.0"
    assert rows[0]["surgery/cosine/a-b"] == "-0.5"


class Run:
    """A run of wandb as far as rows go: its own steps only rise, and what comes too late is lost."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.axes: dict[str, str] = {}
        self.step = 0

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric or ""

    def log(self, data: dict[str, float], step: int | None = None, commit: bool | None = None) -> None:
        if step is not None and step < self.step:
            return
        self.step = self.step if step is None else step
        self.rows.setdefault(self.step, {}).update(data)
        self.step += commit if commit is not None else step is None


def test_rows_of_wandb_beside_those_of_the_loop() -> None:
    run = Run()
    write = writer_for(run)
    for step in range(4):
        run.log({"loss": float(step)}, step=step)
        write(NUMBERS, 10 * step)
    assert run.axes == {"surgery/*": "surgery/step"}
    assert [row["loss"] for row in run.rows.values() if "loss" in row] == [0.0, 1.0, 2.0, 3.0]
    assert [row["surgery/step"] for row in run.rows.values() if "surgery/step" in row] == [0, 10, 20, 30]
    late = Run()
    late.log({}, step=5)
    late.log({"lost": 1.0}, step=1)  # so would be a step of the monitor's
    assert late.rows == {5: {}}


def test_wandb_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    run = wandb.init(project="losses")
    for logger, step in ((run, 10), (wandb, 20)):
        writer_for(logger)(NUMBERS, step)
    found = dict(run.summary)
    run.finish()
    assert found["surgery/step"] == 20
    assert found["surgery/cosine/a-b"] == -0.5
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = [
        row for row in records(file) if b"surgery/cosine/a-b" in row and b"_runtime" in row and b"surgery/step" in row
    ]
    assert len(rows) >= 2


def records(file: Path) -> Iterator[bytes]:
    """The records of a run, as they are on disk."""
    data, position, joined = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        joined += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield joined
            joined = b""


def test_the_module_of_mlflow() -> None:
    seen: list[Any] = []
    module = ModuleType("mlflow")
    module.log_metrics = lambda metrics, step=None: seen.append((metrics, step))  # type: ignore[attr-defined]
    writer_for(module)({"surgery/loss/depth (µm), left": 1.0}, 4)
    assert seen == [({"surgery/loss/depth __m__ left": 1.0}, 4)]


@pytest.mark.filterwarnings("ignore")  # of the database it keeps runs in
def test_mlflow_itself(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    with mlflow.start_run() as run:
        for step in (0, 10):
            writer_for(mlflow)({**NUMBERS, "surgery/loss/depth (µm)": float(step)}, step)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "surgery/loss/depth __m_")
    assert [(each.step, each.value) for each in history] == [(0, 0.0), (10, 10.0)]


@pytest.mark.parametrize("logger", [None, "runs/", 3, dict, print.__class__])
def test_anything_else_is_refused(logger: Any) -> None:
    with pytest.raises(TypeError, match=r"`loggers` must be SummaryWriters.*got .*loggers=\[lambda metrics, step"):
        writer_for(logger)
