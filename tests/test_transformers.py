"""The Trainer of Transformers against plain loops: the same numbers, bit for bit."""

import functools
import importlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from crew import Crew
from parallel import difference
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

import gradsurgery as gs
from gradsurgery.integrations.transformers import MultiObjectiveMixin, MultiObjectiveTrainer

STEPS, ACCUMULATION, BATCH = 6, 2, 4
METHODS: dict[str, Callable[[int], Any]] = {
    "jacobian, random": lambda seed: gs.GradDrop(generator=torch.Generator().manual_seed(seed)),
    "state, random": lambda seed: gs.Chain(gs.GradNorm(), gs.PCGrad(generator=torch.Generator().manual_seed(seed))),
    "scalarizer, random": lambda seed: gs.scalarizers.Random(generator=torch.Generator().manual_seed(seed)),
}


@pytest.fixture(autouse=True)
def _own_accelerator() -> Iterator[None]:
    """Accelerate keeps its settings for the process; each test starts without any, and leaves none."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Model(nn.Module):
    """Three losses of different size on one trunk."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout))
        self.heads = nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        scores = self.heads(self.trunk(x))
        return {"scores": scores} if labels is None else {"loss": losses_of(scores, labels), "scores": scores}


def losses_of(scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {f"column {k}": (scores[:, k] - labels[:, k]).square().mean() * 10**k for k in range(3)}


def dataset(dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    draw = functools.partial(torch.randn, generator=generator)
    rows = [{"x": draw(4), "labels": draw(3)} for _ in range(STEPS * ACCUMULATION * BATCH)]
    return [{name: tensor.to(dtype) for name, tensor in row.items()} for row in rows]


class InOrder(MultiObjectiveTrainer):
    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults = {
        "num_train_epochs": 1, "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": ACCUMULATION,
        "learning_rate": 0.05, "optim": "adamw_torch", "max_grad_norm": 130.0, "warmup_steps": 2, "logging_steps": 1,
        "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(str(folder), **defaults | options)


def trainer_of(
    model: nn.Module,
    folder: Path,
    kind: type[Trainer] = InOrder,
    *,
    options: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    more = {"train_dataset": dataset()} | more
    trainer = kind(model, arguments(folder, **options or {}), **more)
    trainer.remove_callback(PrinterCallback)
    return trainer


def plain_loop(method: Any, precision: str = "no", dtype: torch.dtype = torch.float32) -> Model:
    """What the Trainer says that it does: AdamW over weights, then biases, warm-up and linear decay, clipping."""
    model, rows = Model().to(dtype), dataset(dtype)
    parameters = sorted(model.parameters(), key=lambda parameter: parameter.ndim == 1)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.0), method)

    def rate(step: int) -> float:
        return step / 2 if step < 2 else max(0.0, (STEPS - step) / (STEPS - 2))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for number, first in enumerate(range(0, len(rows), BATCH), start=1):
        batch = {key: torch.stack([row[key] for row in rows[first : first + BATCH]]) for key in rows[0]}
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(**batch)
        optimizer.backward({name: loss.to(dtype) for name, loss in outputs["loss"].items()})
        if number % ACCUMULATION == 0:
            for parameter in model.parameters():
                parameter.grad /= ACCUMULATION
            nn.utils.clip_grad_norm_(model.parameters(), 130.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_a_plain_loop(method: str, precision: str, tmp_path: Path) -> None:
    trainer = trainer_of(Model(), tmp_path, aggregator=METHODS[method](1), options={"bf16": precision == "bf16"})
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert difference(trainer.model, plain_loop(METHODS[method](1), precision)) == 0.0
    assert difference(trainer.model, Model()) > 0.05


def test_the_comparison_can_fail() -> None:
    assert difference(plain_loop(gs.Mean()), plain_loop(gs.UPGrad())) > 1e-3
    assert difference(plain_loop(gs.Mean()), plain_loop(gs.Mean(), "bf16")) > 0


@pytest.mark.parametrize("method", METHODS)
def test_resumes_where_it_was(method: str, tmp_path: Path) -> None:
    """In shuffled order and with dropout: the Trainer restores these, and the method is restored with them."""
    options = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer_of(
        Model(dropout=0.3), tmp_path, MultiObjectiveTrainer, aggregator=METHODS[method](1), options=options
    )
    whole.train()
    resumed = trainer_of(
        Model(seed=9, dropout=0.3), tmp_path, MultiObjectiveTrainer, aggregator=METHODS[method](2), options=options
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == STEPS
    assert difference(whole.model, resumed.model) == 0.0


def test_compiled_models(tmp_path: Path) -> None:
    found = []
    for compiling in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        model = Model()
        gs.tag_shared(model.trunk)
        trainer = trainer_of(model, tmp_path, aggregator=gs.UPGrad(), options=compiling)
        trainer.train()
        assert hasattr(trainer.model_wrapped, "_orig_mod") == bool(compiling)
        found.append(model)
    assert difference(*found) < 1e-6
    with pytest.raises(RuntimeError, match="tag_shared"):
        trainer_of(Model(), tmp_path, aggregator=gs.UPGrad(), options=compiling).train()


def test_logs_the_latest_surgery(tmp_path: Path) -> None:
    trainer = trainer_of(Model(), tmp_path, aggregator=gs.UPGrad())
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == STEPS
    surgery = trainer.optimizer.optimizer.last_surgery
    assert logs[-1]["surgery/weight/column 1"] == surgery.weights[1].item()
    assert logs[-1]["surgery/loss/column 2"] == surgery.losses[2].item()
    assert {"surgery/conflicting", "surgery/lowest_cosine", "surgery/cosine/column 0-column 1"} <= logs[0].keys()
    assert not any(name.startswith("surgery") for name in trainer.state.log_history[-1])


def test_evaluates_the_sum_and_hands_on_the_scores(tmp_path: Path) -> None:
    rows = dataset()[:8]
    scores = []
    trainer = trainer_of(
        Model(), tmp_path, aggregator=gs.UPGrad(), eval_dataset=rows,
        compute_metrics=lambda prediction: scores.append(prediction.predictions) or {},
    )  # fmt: skip
    found = trainer.evaluate()["eval_loss"]
    outputs = Model()(**{key: torch.stack([row[key] for row in rows]) for key in rows[0]})
    assert found == pytest.approx(sum(loss.item() for loss in outputs["loss"].values()), rel=1e-6)
    torch.testing.assert_close(torch.from_numpy(scores[0]), outputs["scores"].detach())


# --- where losses come from --------------------------------------------------------------------------------------


class Scores(nn.Module):
    """Leaves the losses to the Trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.model(x)["scores"],)


class Losing(MultiObjectiveMixin, Trainer):
    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_losses(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> tuple[Any, Any]:
        (scores,) = model(inputs["x"])
        return losses_of(scores, inputs["labels"]), {"scores": scores}


def test_compute_losses_of_a_subclass(tmp_path: Path) -> None:
    trainer = trainer_of(Scores(), tmp_path, Losing, aggregator=gs.UPGrad(), options={"remove_unused_columns": False})
    trainer.train()
    assert difference(trainer.model, plain_loop(gs.UPGrad())) == 0.0


def by_items(outputs: tuple[Tensor], labels: Tensor, num_items_in_batch: Any) -> dict[str, Tensor]:
    """Divides by the items of the whole step itself, so that nothing else does."""
    assert num_items_in_batch == ACCUMULATION * BATCH * 3
    losses = losses_of(outputs[0], labels)
    return {name: loss * labels.numel() / num_items_in_batch for name, loss in losses.items()}


def test_compute_loss_func(tmp_path: Path) -> None:
    options = {"remove_unused_columns": False}
    trainer = trainer_of(Scores(), tmp_path, aggregator=gs.UPGrad(), options=options, compute_loss_func=by_items)
    trainer.train()
    assert difference(trainer.model, plain_loop(gs.UPGrad())) == 0.0


def test_a_wrapped_optimizer_of_the_users(tmp_path: Path) -> None:
    model = Model()
    adam = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    optimizer = gs.MultiObjectiveOptimizer(adam, gs.UPGrad(), shared=model.trunk, engine="loop")
    trainer = trainer_of(model, tmp_path, optimizers=(optimizer, None))
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    assert difference(model, plain_loop(gs.UPGrad())) > 0  # the heads are not shared here


def test_options_of_the_wrapper(tmp_path: Path) -> None:
    model = Model()
    trainer = trainer_of(model, tmp_path, aggregator=gs.UPGrad(), shared=model.trunk, scope="tensor", engine="loop")
    trainer.train()
    surgery = trainer.optimizer.optimizer.last_surgery
    assert len(surgery.groups) == 2
    assert surgery.engine.startswith("loop")


def test_a_new_model_starts_the_method_afresh(tmp_path: Path) -> None:
    trainer = trainer_of(None, tmp_path, aggregator=gs.GradNorm(), model_init=lambda: Model())
    trainer.train()
    first = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, first[name]) for name, value in trainer.model.state_dict().items())


# --- several processes -------------------------------------------------------------------------------------------


def train_on_rank(rank: int, folder: Path) -> tuple[str, list[list[Tensor]]]:
    """Trains as one of two processes: losses of the model, the same resumed half-way, losses by items."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    options = {
        "per_device_train_batch_size": BATCH // 2, "ddp_backend": "gloo", "save_strategy": "steps", "save_steps": 3,
        "remove_unused_columns": False,
    }  # fmt: skip
    found = []
    for number, (model, checkpoint, more) in enumerate(
        (
            (Model(), None, {}),
            (Model(seed=9), str(folder / "checkpoint-3"), {}),
            (Scores(), None, {"compute_loss_func": by_items}),
        )
    ):
        method = METHODS["state, random"](1 + number % 2)
        more |= {"aggregator": method, "train_dataset": dataset(torch.float64), "options": options}
        with mock.patch.dict(os.environ, {name: str(value) for name, value in ranks.items()}):  # as launchers do
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            trainer = trainer_of(model.double(), folder, **more)
            trainer.train(resume_from_checkpoint=checkpoint)
        found.append([parameter.detach() for parameter in model.parameters()])
    return type(trainer.model_wrapped).__name__, found


def test_two_processes_do_what_one_does(crew: Callable[[int], Crew], tmp_path: Path) -> None:
    whole = plain_loop(METHODS["state, random"](1), dtype=torch.float64)
    for kind, (found, resumed, items) in crew(2)(train_on_rank, tmp_path):
        assert kind == "DistributedDataParallel"
        for one, two, again, other in zip(whole.parameters(), found, resumed, items, strict=True):
            torch.testing.assert_close(one.detach(), two, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(one.detach(), other, rtol=1e-6, atol=1e-6)
            assert torch.equal(two, again)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_aggregator_and_wrapped_optimizer(tmp_path: Path) -> None:
    model = Model()
    with pytest.raises(TypeError, match="InOrder: `aggregator` must be given .* got neither"):
        trainer_of(model, tmp_path)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters()), gs.UPGrad())
    with pytest.raises(TypeError, match="got both"):
        trainer_of(model, tmp_path, aggregator=gs.UPGrad(), optimizers=(optimizer, None))


def test_one_loss_alone(tmp_path: Path) -> None:
    trainer = trainer_of(
        Scores(), tmp_path, aggregator=gs.UPGrad(), compute_loss_func=lambda outputs, *_, **__: outputs[0].sum()
    )
    with pytest.raises(TypeError, match="must be a dict or list of scalars.*got one scalar"):
        trainer.train()


def test_labels_that_the_model_does_not_take(tmp_path: Path) -> None:
    rows = [{"x": row["x"], "targets": row["labels"]} for row in dataset()]
    trainer = InOrder(Model(), arguments(tmp_path), train_dataset=rows, aggregator=gs.UPGrad())
    with pytest.raises(ValueError, match=r"losses under 'loss', got only \['scores'\] for the inputs \['x'\]"):
        trainer.train()


class Summing(InOrder):
    def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Tensor:
        return sum(model(**inputs)["loss"].values())


def test_a_compute_loss_without_surgery(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Summing: `compute_loss` must .* got a loss without surgery"):
        trainer_of(Model(), tmp_path, Summing, aggregator=gs.UPGrad()).train()


@pytest.mark.parametrize(("method", "got"), [(gs.UPGrad, "the class UPGrad"), ("upgrad", "'upgrad'")])
def test_what_is_no_method(method: Any, got: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"InOrder: `aggregator` must be a method, got {got}"):
        trainer_of(Model(), tmp_path, aggregator=method)


class Unwrapping(InOrder):
    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer


def test_an_optimizer_that_is_not_wrapped(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Unwrapping: `optimizer` must be a MultiObjectiveOptimizer .* over SGD"):
        trainer_of(Model(), tmp_path, Unwrapping, aggregator=gs.UPGrad()).train()


def test_options_of_the_trainer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`aggregator` must need the losses once a step, got FAMO"):
        trainer_of(Model(), tmp_path, aggregator=gs.scalarizers.FAMO())
    with pytest.raises(ValueError, match="`optim` must step after the backward pass, got galore_adamw_layerwise"):
        trainer_of(Model(), tmp_path, aggregator=gs.UPGrad(), options={"optim": "galore_adamw_layerwise"})
    model = Model()
    model.config = SimpleNamespace(problem_type=None, use_cache=False)
    with pytest.raises(ValueError, match="`label_smoothing_factor` must be 0, got 0.1"):
        trainer_of(model, tmp_path, aggregator=gs.UPGrad(), options={"label_smoothing_factor": 0.1})


def test_several_gpus_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="one process must train on one GPU, got 2"):
        trainer_of(Model(), tmp_path, aggregator=gs.UPGrad())


def test_sharded_models(tmp_path: Path) -> None:
    trainer = trainer_of(Model(), tmp_path, aggregator=gs.UPGrad())
    trainer.create_optimizer()
    trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
    trainer.accelerator.state.distributed_type = DistributedType.FSDP
    with pytest.raises(RuntimeError, match="whole model in each process.*FSDP"):
        trainer.compute_loss(trainer.model, {"x": torch.ones(1, 4), "labels": torch.ones(1, 3)})


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "gradsurgery.integrations.transformers")
    with pytest.raises(ImportError, match=r'pip install "gradsurgery\[transformers\]"'):
        importlib.import_module("gradsurgery.integrations.transformers")


# --- the example -------------------------------------------------------------------------------------------------


def test_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["transformers_multitask.py", "--out", str(picture)])
    runpy.run_path(str(Path(__file__).parent.parent / "examples" / "transformers_multitask.py"), run_name="__main__")
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "surgery/conflicting" in printed
    assert "sum of the losses" in printed
