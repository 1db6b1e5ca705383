"""Accelerate against plain loops: the same numbers, bit for bit."""

import functools
import importlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration, DistributedType
from crew import Crew
from parallel import difference
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.integrations.accelerate import backward, surgery_metrics

STEPS = 8
ACCUMULATION = 2
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


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    draw = functools.partial(torch.randn, generator=generator)
    return [(draw(6, 4), draw(6, 3)) for _ in range(STEPS * ACCUMULATION)]


def losses_of(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {f"column {k}": (outputs[:, k] - targets[:, k]).square().mean() * 10**k for k in range(3)}


def prepared(method: Any, seed: int = 0, double: bool = False, **options: Any) -> tuple[Accelerator, Any, Any, Any]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION, **options)
    model = model_of(seed).double() if double else model_of(seed)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters(), lr=0.05), method)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    return accelerator, *accelerator.prepare(model, optimizer, scheduler)


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    part: slice,
    mine: slice = slice(None),  # of each batch
    with_counts: bool = False,
) -> None:
    dtype = next(model.parameters()).dtype
    for whole in batches()[part]:
        inputs, targets = (tensor[mine].to(dtype) for tensor in whole)
        with accelerator.accumulate(model):
            counts = len(inputs) if with_counts else None
            backward(accelerator, optimizer, losses_of(model(inputs), targets), counts=counts)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 60.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def plain_loop(method: Any, precision: str, double: bool = False) -> nn.Module:
    model = model_of(0).double() if double else model_of(0)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters(), lr=0.05), method)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    for number, batch in enumerate(batches(), start=1):
        inputs, targets = (tensor.to(next(model.parameters()).dtype) for tensor in batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(inputs)
        optimizer.backward(losses_of(outputs.to(targets.dtype), targets))
        if number % ACCUMULATION == 0:
            for parameter in model.parameters():
                parameter.grad /= ACCUMULATION
            nn.utils.clip_grad_norm_(model.parameters(), 60.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_a_plain_loop(method: str, precision: str) -> None:
    run = prepared(METHODS[method](1), mixed_precision=precision)
    train(*run, slice(None))
    assert difference(run[1], plain_loop(METHODS[method](1), precision)) == 0.0
    assert difference(run[1], model_of(0)) > 0.1


def test_the_comparison_can_fail() -> None:
    assert difference(plain_loop(gs.Mean(), "no"), plain_loop(gs.UPGrad(), "no")) > 1e-3
    assert difference(plain_loop(gs.Mean(), "bf16"), plain_loop(gs.Mean(), "no")) > 0


@pytest.mark.parametrize("method", METHODS)
def test_resumes_where_it_was(method: str, tmp_path: Path) -> None:
    half = STEPS * ACCUMULATION // 2
    whole = prepared(METHODS[method](1))
    train(*whole, slice(half))
    whole[0].save_state(str(tmp_path))
    train(*whole, slice(half, None))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    resumed = prepared(METHODS[method](2), seed=3)
    resumed[0].load_state(str(tmp_path))
    train(*resumed, slice(half, None))
    assert difference(whole[1], resumed[1]) == 0.0


def test_compiled_models() -> None:
    found = []
    for compiling in ({}, {"dynamo_backend": "aot_eager"}):
        AcceleratorState._reset_state(reset_partial_state=True)
        run = prepared(gs.UPGrad(), **compiling)
        gs.tag_shared(run[0].unwrap_model(run[1], keep_torch_compile=False)[0])
        train(*run, slice(4))
        assert hasattr(run[1], "_orig_mod") == bool(compiling)
        found.append(run[1])
    assert difference(*found) < 1e-6


def test_scaled_gradients_and_an_overflow() -> None:
    """Accelerate has no float16 on the CPU; what it does with a scaler is the same."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-90)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-90)
    models = [model_of(0), model_of(0)]
    optimizers = [
        gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.GradNorm()) for model in models
    ]
    model, optimizer = accelerator.prepare(models[0], optimizers[0])
    skipped = []
    for inputs, targets in batches():
        backward(accelerator, optimizer, losses_of(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()
        optimizers[1].backward(losses_of(models[1](inputs), targets), grad_scaler=scaler)
        scaler.step(optimizers[1])
        scaler.update()
        optimizers[1].zero_grad()
        skipped.append(accelerator.optimizer_step_was_skipped)
    assert skipped == [True] + [False] * (len(skipped) - 1)
    assert difference(*models) == 0.0


def test_extra_loss_and_absent_losses() -> None:
    accelerator, model, optimizer, _ = prepared(gs.UPGrad())
    inputs, targets = batches()[0]
    losses = {**losses_of(model(inputs), targets), "column 1": None}
    penalty = sum(parameter.square().sum() for parameter in model.parameters())
    surgery = backward(accelerator, optimizer, losses, extra_loss=penalty)
    assert surgery.names == ("column 0", "column 2")
    other = model_of(0)
    wrapper = gs.MultiObjectiveOptimizer(torch.optim.SGD(other.parameters()), gs.UPGrad())
    losses = {**losses_of(other(inputs), targets), "column 1": None}
    wrapper.backward(losses, extra_loss=sum(parameter.square().sum() for parameter in other.parameters()))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad * ACCUMULATION, two.grad)


# --- several processes -------------------------------------------------------------------------------------------

CUTS = {"halves": (0, 3, 6), "unequal": (0, 4, 6)}


def train_on_rank(rank: int, store: str, cuts: str) -> tuple[str, list[Tensor], list[Tensor]]:
    """Trains on a part of each batch with DistributedDataParallel, and once more from a checkpoint half-way."""
    found, half = [], STEPS * ACCUMULATION // 2
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    once = DataLoaderConfiguration(split_batches=True)  # schedulers step once, not once a process
    mine, options = slice(*CUTS[cuts][rank : rank + 2]), {"with_counts": cuts == "unequal"}
    with mock.patch.dict(os.environ, {name: str(value) for name, value in ranks.items()}):  # as launchers do
        for start in (0, half):
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            run = prepared(METHODS["state, random"](1 + start), seed=start, double=True, dataloader_config=once)
            if start:
                run[0].load_state(store)
            else:
                train(*run, slice(half), mine, **options)
                run[0].save_state(store)
            train(*run, slice(half, None), mine, **options)
            found.append([parameter.detach().clone() for parameter in run[1].parameters()])
    return type(run[1]).__name__, *found


@pytest.mark.parametrize("cuts", CUTS)
def test_two_processes_do_what_one_does(cuts: str, crew: Callable[[int], Crew], tmp_path: Path) -> None:
    whole = plain_loop(METHODS["state, random"](1), "no", double=True)
    for kind, found, resumed in crew(2)(train_on_rank, str(tmp_path), cuts):
        assert kind == "DistributedDataParallel"
        for one, two, again in zip(whole.parameters(), found, resumed, strict=True):
            torch.testing.assert_close(one.detach(), two, rtol=1e-6, atol=1e-6)
            assert torch.equal(two, again)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_optimizers_that_steps_would_pass_by() -> None:
    accelerator = Accelerator(cpu=True)
    model = model_of(0)
    losses = losses_of(model(torch.ones(1, 4)), torch.ones(1, 3))
    adam = torch.optim.Adam(model.parameters())
    wrapper = gs.MultiObjectiveOptimizer(adam, gs.UPGrad())
    prepared_first = gs.MultiObjectiveOptimizer(accelerator.prepare(adam), gs.UPGrad())
    for optimizer, got in (
        (adam, "got Adam"),
        (accelerator.prepare(adam), "got AcceleratedOptimizer over Adam"),
        (wrapper, "got MultiObjectiveOptimizer over Adam"),
        (prepared_first, "got MultiObjectiveOptimizer over AcceleratedOptimizer over Adam"),
        (accelerator.prepare(prepared_first), "got AcceleratedOptimizer over MultiObjectiveOptimizer over Accel"),
    ):
        with pytest.raises(TypeError, match=f"went through accelerator.prepare.*{got}"):
            backward(accelerator, optimizer, losses)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_models(kind: DistributedType) -> None:
    accelerator, model, optimizer, _ = prepared(gs.UPGrad())
    accelerator.state.distributed_type = kind
    with pytest.raises(RuntimeError, match=f"whole model in each process.*{kind.value}"):
        backward(accelerator, optimizer, losses_of(model(torch.ones(1, 4)), torch.ones(1, 3)))


def test_one_loss_alone() -> None:
    accelerator, model, optimizer, _ = prepared(gs.UPGrad())
    with pytest.raises(TypeError, match="not their sum"):
        backward(accelerator, optimizer, model(torch.ones(1, 4)).sum())


def test_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "gradsurgery.integrations.accelerate")
    with pytest.raises(ImportError, match=r'pip install "gradsurgery\[accelerate\]"'):
        importlib.import_module("gradsurgery.integrations.accelerate")


# --- what is logged ----------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_diagnostics() -> None:
    assert surgery_metrics is gs.diagnostics.surgery_metrics


# --- the example -------------------------------------------------------------------------------------------------


def test_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["accelerate_multitask.py", "--out", str(picture)])
    runpy.run_path(str(Path(__file__).parent.parent / "examples" / "accelerate_multitask.py"), run_name="__main__")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "conflicting" in capsys.readouterr().out
