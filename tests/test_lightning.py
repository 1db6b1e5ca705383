"""Lightning's Trainer does what a plain loop does, bit by bit; and the monitor logs what the surgeries did."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from crew import Crew
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from support import assert_near, assert_same_bits
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.lr_scheduler import ExponentialLR

import gradsurgery as gs
from gradsurgery.integrations.lightning import SurgeryMonitor, scalarize

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),  # Lightning's use of torch's pytree
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

BATCHES = [torch.linspace(-1, 1, 12).view(4, 3) + 0.3 * k for k in range(6)]
METHODS: dict[str, Callable[[], Any]] = {
    "GradNorm": gs.GradNorm,  # a state
    "PCGrad": gs.PCGrad,  # a generator
    "GradDrop": gs.GradDrop,  # works on the gradients themselves
    "UncertaintyWeighting": gs.scalarizers.UncertaintyWeighting,
    "MoCo": gs.aggregators.MoCo,  # remembers the gradient of each loss
    "GradNorm, then PCGrad": lambda: gs.Chain(gs.GradNorm(), gs.PCGrad()),
}
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def build(name: str, seed: int = 3) -> Any:
    torch.manual_seed(seed)  # from which random methods take their own
    return METHODS[name]()


class Loader:
    """Batches for one epoch, from where the checkpoint was saved."""

    def __init__(self, batches: Sequence[Tensor] = BATCHES) -> None:
        self.batches = batches
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.position % len(self.batches), len(self.batches)):
            self.position = number + 1
            yield self.batches[number]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Network(nn.Module):
    """A trunk and three heads whose losses are far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        z = self.trunk(batch)
        return {f"loss {k}": (head(z) - k).square().mean() * 10.0**k for k, head in enumerate(self.heads)}


def wrap(network: nn.Module, method: Any, lr: float = 0.01) -> gs.MultiObjectiveOptimizer:
    return gs.MultiObjectiveOptimizer(torch.optim.Adam(network.parameters(), lr=lr), method)


def make_model(package: Any = lightning.pytorch, method: Any = None, schedule: bool = False, seed: int = 0) -> Any:
    """A LightningModule of one of the two packages that is trained in automatic optimization."""

    class Model(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.network = Network()

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return scalarize(self, self.network.losses(batch))

        def configure_optimizers(self) -> Any:
            optimizer = wrap(self, method or gs.UPGrad())
            if not schedule:
                return optimizer
            scheduler = {"scheduler": ExponentialLR(optimizer, gamma=0.7), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    return Model()


def fit(
    model: Any,
    package: Any = lightning.pytorch,
    batches: Sequence[Tensor] = BATCHES,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Any:
    trainer = package.Trainer(**{**QUIET, "max_epochs": 2, **options})
    trainer.fit(model, Loader(batches), ckpt_path=ckpt_path)
    return trainer


def plain(
    method: Any,
    *,
    accumulate: int = 1,
    norm: float | None = None,
    value: float | None = None,
    precision: str = "32",
    scale: float | None = None,
    schedule: bool = False,
) -> tuple[Network, gs.MultiObjectiveOptimizer]:
    """The loop that a user would write without Lightning."""
    torch.manual_seed(0)
    network = Network().to(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    optimizer = wrap(network, method)
    scheduler = ExponentialLR(optimizer, gamma=0.7) if schedule else None
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    for _ in range(2):
        for number, batch in enumerate(BATCHES):
            with forward_context(precision):
                losses = network.losses(batch.to(network.trunk[0].weight.dtype))
            if number % accumulate == 0:
                optimizer.zero_grad()
            if accumulate == 1:
                optimizer.backward(losses, grad_scaler=scaler)
            else:
                scaler.scale(optimizer.scalarize(losses) / accumulate).backward()
            if (number + 1) % accumulate and number + 1 < len(BATCHES):
                continue
            scaler.unscale_(optimizer)
            if norm is not None:
                clip_grad_norm_(network.parameters(), norm)
            if value is not None:
                clip_grad_value_(network.parameters(), value)
            scaler.step(optimizer)
            scaler.update()
            if scheduler is not None:
                scheduler.step()
    return network, optimizer


def forward_context(precision: str) -> Any:
    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast("cpu", dtype=dtypes[precision]) if precision in dtypes else nullcontext()


def float16(scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


SETTINGS: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any]]] = {
    "as it comes": (dict, {}),
    "accumulation": (lambda: {"accumulate_grad_batches": 4}, {"accumulate": 4}),  # two batches are left over
    "accumulation over 3": (lambda: {"accumulate_grad_batches": 3}, {"accumulate": 3}),
    "clipping": (lambda: {"gradient_clip_val": 0.5}, {"norm": 0.5}),
    "clipping by value": (
        lambda: {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"value": 0.1},
    ),
    "bf16-mixed": (lambda: {"precision": "bf16-mixed"}, {"precision": "bf16-mixed"}),
    "bf16-true": (lambda: {"precision": "bf16-true"}, {"precision": "bf16-true"}),
    "16-mixed": (lambda: {"plugins": [float16(2.0**4)]}, {"precision": "16-mixed", "scale": 2.0**4}),
    "16-mixed, overflows": (lambda: {"plugins": [float16(2.0**12)]}, {"precision": "16-mixed", "scale": 2.0**12}),
    "16-mixed, accumulation, clipping": (
        lambda: {"plugins": [float16(2.0**4)], "accumulate_grad_batches": 3, "gradient_clip_val": 0.5},
        {"precision": "16-mixed", "scale": 2.0**4, "accumulate": 3, "norm": 0.5},
    ),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_automatic_optimization_is_the_plain_loop(name: str, setting: str) -> None:
    options, same = SETTINGS[setting]
    model = make_model(method=build(name))
    trainer = fit(model, **options())
    network, optimizer = plain(build(name), **same)
    assert_same_bits(model.network.state_dict(), network.state_dict())
    assert_same_bits(trainer.optimizers[0].state_dict(), optimizer.state_dict())
    assert not all(map(torch.equal, network.parameters(), initial(network.trunk[0].weight.dtype)))


def initial(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return list(Network().to(dtype).parameters())


@pytest.mark.parametrize(("scale", "overflows"), [(2.0**4, False), (2.0**12, True)])
def test_the_overflows_are_some(scale: float, overflows: bool) -> None:
    trainer = fit(make_model(), plugins=[float16(scale)])
    assert (trainer.precision_plugin.scaler.get_scale() < scale) == overflows


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=lambda package: package.__name__)
def test_both_packages(package: Any) -> None:
    model = make_model(package, build("PCGrad"))
    trainer = fit(model, package, callbacks=[SurgeryMonitor()], log_every_n_steps=1)
    assert_same_bits(model.network.state_dict(), plain(build("PCGrad"))[0].state_dict())
    assert "surgery/conflicting" in trainer.callback_metrics


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_accumulation_is_that_of_ordinary_backward_passes(accumulate: int) -> None:
    """One loss: as without this library. Several: as with every loss over the number of batches, a power of two."""

    class Single(type(make_model())):  # type: ignore[misc]
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return scalarize(self, [self.network.losses(batch)["loss 1"]])

    single, several = Single(), make_model()
    for model in (single, several):
        fit(model, accumulate_grad_batches=accumulate, max_epochs=1)
    networks = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        network = Network()
        optimizer: Any = torch.optim.Adam(network.parameters(), lr=0.01)
        optimizer = gs.MultiObjectiveOptimizer(optimizer, gs.UPGrad()) if wrapped else optimizer
        for number, batch in enumerate(BATCHES):
            losses = {name: loss / accumulate for name, loss in network.losses(batch).items()}
            if wrapped:
                optimizer.backward(losses)
            else:
                losses["loss 1"].backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(BATCHES):
                optimizer.step()
                optimizer.zero_grad()
        networks.append(network)
    assert_same_bits(single.network.state_dict(), networks[0].state_dict())
    assert_same_bits(several.network.state_dict(), networks[1].state_dict())


def test_schedulers_and_their_monitor(tmp_path: Path) -> None:
    logger = Memory()
    model = make_model(method=gs.GradNorm(), schedule=True)
    rates = LearningRateMonitor()
    fit(model, logger=logger, log_every_n_steps=1, callbacks=[rates])
    network, optimizer = plain(gs.GradNorm(), schedule=True)
    assert_same_bits(model.network.state_dict(), network.state_dict())
    logged = logger.values("lr-MultiObjectiveOptimizer")
    assert logged == pytest.approx([0.01 * 0.7**k for k in range(2 * len(BATCHES))])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.7 ** (2 * len(BATCHES)))


def resume(folder: Path, name: str, steps: int, **options: Any) -> None:
    """Trains to the end, and again from a checkpoint, into a model and a method that have drawn something else."""
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=steps, save_top_k=-1)
    options |= {"enable_checkpointing": True, "callbacks": [saver]}
    straight = make_model(method=build(name), schedule=True)
    whole = fit(straight, **options)
    path = folder / f"step={steps}.ckpt"
    assert "gradsurgery" in torch.load(path, weights_only=True)["optimizer_states"][0]

    resumed = make_model(method=build(name, seed=99), schedule=True, seed=5)
    trainer = fit(resumed, ckpt_path=path, **options)
    assert trainer.global_step == whole.global_step == 2 * len(BATCHES)
    assert_same_bits(resumed.network.state_dict(), straight.network.state_dict())
    assert_same_bits(trainer.optimizers[0].state_dict(), whole.optimizers[0].state_dict())


@pytest.mark.parametrize("steps", [4, 6, 9])
@pytest.mark.parametrize("name", METHODS)
def test_resumes_where_it_was(name: str, steps: int, tmp_path: Path) -> None:
    """In the middle of an epoch and at its end."""
    resume(tmp_path, name, steps)


def resume_on_rank(rank: int, folder: Path, name: str) -> None:
    batches = [batch.split(2)[rank] for batch in BATCHES]
    with launched(rank):
        resume(folder, name, 4, batches=batches, devices=2, strategy="ddp")


def launched(rank: int) -> AbstractContextManager[Any]:
    """So that Lightning starts no processes itself."""
    return mock.patch.dict(os.environ, {"LOCAL_RANK": str(rank)})


@pytest.mark.parametrize("name", ["GradNorm, then PCGrad", "MoCo"])
def test_two_ranks_resume_where_they_were(crew: Callable[[int], Crew], name: str, tmp_path: Path) -> None:
    crew(2)(resume_on_rank, tmp_path, name)


class Manual(lightning.pytorch.LightningModule):
    """Two networks with an optimizer each, the second one with a method that draws; both accumulate two batches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.networks = nn.ModuleList([Network(), Network()])
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        schedulers: Any = self.lr_schedulers()
        for network, optimizer, scheduler in zip(self.networks, optimizers, schedulers, strict=True):
            with self.toggled_optimizer(optimizer):
                losses = network.losses(batch)  # type: ignore[operator]
                self.manual_backward(self.scalar(losses, optimizer) / 2)
                if batch_idx % 2:
                    optimizer.step()
                    optimizer.zero_grad()
                    scheduler.step()

    def scalar(self, losses: dict[str, Tensor], optimizer: Any) -> Tensor:
        return scalarize(self, losses, optimizer=optimizer)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.clip_gradients(optimizer, 0.5, "norm")  # here they are unscaled

    def configure_optimizers(self) -> Any:
        optimizers: list[Any] = list(map(wrap, self.networks, map(build, ("GradNorm", "PCGrad"))))
        return optimizers, [ExponentialLR(optimizer, gamma=0.7) for optimizer in optimizers]


@pytest.mark.parametrize("setting", ["as it comes", "bf16-mixed", "16-mixed"])
def test_manual_optimization_with_several_optimizers(setting: str) -> None:
    options, same = SETTINGS[setting]
    model: Any = Manual()
    trainer = fit(model, callbacks=[SurgeryMonitor()], log_every_n_steps=1, **options())

    torch.manual_seed(0)
    networks = [Network(), Network()]
    optimizers = list(map(wrap, networks, map(build, ("GradNorm", "PCGrad"))))
    schedulers = [ExponentialLR(optimizer, gamma=0.7) for optimizer in optimizers]
    scaler = torch.amp.GradScaler("cpu", init_scale=same.get("scale", 1.0), enabled="scale" in same)
    for _ in range(2):
        for number, batch in enumerate(BATCHES):
            for network, optimizer, scheduler in zip(networks, optimizers, schedulers, strict=True):
                with forward_context(same.get("precision", "32")):
                    loss = optimizer.scalarize(network.losses(batch)) / 2
                scaler.scale(loss).backward()
                if number % 2:
                    scaler.unscale_(optimizer)
                    clip_grad_norm_(network.parameters(), 0.5)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                    scheduler.step()
    for position, (network, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
        assert_same_bits(model.networks[position].state_dict(), network.state_dict())
        assert_same_bits(trainer.optimizers[position].state_dict(), optimizer.state_dict())
        assert f"surgery/{position}/weight/loss 0" in trainer.callback_metrics


def train_on_rank(
    rank: int, ranks: int, name: str, sizes: tuple[int, int], accumulate: int, manual: bool, ddp: dict[str, Any]
) -> Any:
    """Trains in float64 on this rank's part of each batch: parameters, what the method keeps, what was logged."""
    batches = [torch.linspace(-2, 2, 24).add(0.3 * k).view(8, 3).sin() for k in range(6)]
    if ranks > 1:
        batches = [batch.split(sizes)[rank] for batch in batches]

    class Counted(type(make_model(method=build(name)))):  # type: ignore[misc]
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            counts = None if sizes[0] == sizes[1] else len(batch)
            return scalarize(self, self.network.losses(batch), counts=counts)

    model: Any = Manual() if manual else Counted()
    options: dict[str, Any] = {
        "batches": batches, "devices": ranks, "strategy": DDPStrategy(**ddp) if ranks > 1 else "auto",
        "precision": "64-true", "accumulate_grad_batches": accumulate,
        "gradient_clip_val": None if manual else 0.5, "callbacks": [SurgeryMonitor()], "log_every_n_steps": 1,
    }  # fmt: skip
    with launched(rank) if ranks > 1 else nullcontext():
        trainer = fit(model, **options)
    states = [optimizer.state_dict()["gradsurgery"]["aggregator"] for optimizer in trainer.optimizers]
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return {key: value.clone() for key, value in model.state_dict().items()}, states, logged


@pytest.mark.parametrize(
    ("name", "sizes", "accumulate", "manual", "ddp"),
    [
        ("GradNorm, then PCGrad", (4, 4), 1, False, {}),
        ("GradNorm", (5, 3), 3, False, {"find_unused_parameters": True}),
        ("GradDrop", (5, 3), 1, False, {"gradient_as_bucket_view": True}),
        ("UncertaintyWeighting", (4, 4), 1, False, {"static_graph": True}),
        ("MoCo", (4, 4), 1, False, {}),
        ("GradNorm", (4, 4), 1, True, {}),
    ],
)
def test_two_ranks_are_one_process(
    crew: Callable[[int], Crew], name: str, sizes: tuple[int, int], accumulate: int, manual: bool, ddp: dict[str, Any]
) -> None:
    alone, states, logged = train_on_rank(0, 1, name, sizes, accumulate, manual, ddp)
    for parameters, kept, seen in crew(2)(train_on_rank, 2, name, sizes, accumulate, manual, ddp):
        for key, value in alone.items():
            assert_near(parameters[key], value, 1e-6)
        for state, expected in zip(kept, states, strict=True):
            assert state.keys() == expected.keys()
            for key, value in expected.items():
                assert_near(state[key], value, 1e-6)
        assert seen == pytest.approx(logged, rel=1e-5, abs=1e-9)


class Memory(Logger):
    """Keeps what it is given."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({**metrics, "step": float(step or 0)})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """There are none."""

    def values(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


def test_the_monitor_logs_every_surgery_and_changes_nothing() -> None:
    logger = Memory()
    model = make_model(method=build("PCGrad"))
    fit(model, logger=logger, log_every_n_steps=1, callbacks=[SurgeryMonitor()], max_epochs=1)
    torch.manual_seed(0)
    network = Network()
    optimizer = wrap(network, build("PCGrad"))
    for number, batch in enumerate(BATCHES):
        optimizer.zero_grad()
        surgery = optimizer.backward(network.losses(batch))
        optimizer.step()
        assert surgery.gramian is not None
        assert surgery.weights is not None
        cosines = (
            torch.corrcoef(surgery.gramian) * 0
            + surgery.gramian / surgery.gramian.diagonal().outer(surgery.gramian.diagonal()).sqrt()
        )
        row = logger.rows[number]
        assert row["step"] == number
        assert row["surgery/cosine/loss 0-loss 2"] == pytest.approx(float(cosines[0, 2]), rel=1e-6)
        assert row["surgery/weight/loss 1"] == pytest.approx(float(surgery.weights[1]), rel=1e-6)
        negative = [bool(surgery.gramian[k, j] < 0) for k, j in ((0, 1), (0, 2), (1, 2))]
        assert row["surgery/conflicting"] == pytest.approx(sum(negative) / 3, rel=1e-6)
    assert_same_bits(model.network.state_dict(), network.state_dict())


def test_the_monitor_follows_the_logging_steps() -> None:
    logger = Memory()
    fit(make_model(), logger=logger, log_every_n_steps=4, callbacks=[SurgeryMonitor("conflict/", max_losses=2)])
    assert [row["step"] for row in logger.rows if "conflict/conflicting" in row] == [3, 7, 11]
    assert not any("weight" in name or "loss" in name for row in logger.rows for name in row)


def test_an_optimizer_that_is_not_wrapped() -> None:
    class Unwrapped(type(make_model())):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(TypeError, match=r"scalarize: `optimizer` must be a MultiObjectiveOptimizer, got SGD\. Wrap"):
        fit(Unwrapped())
    with pytest.raises(TypeError, match=r"SurgeryMonitor: `trainer\.optimizers` must contain .* got \['SGD'\]"):
        fit(Unwrapped(), callbacks=[SurgeryMonitor()], log_every_n_steps=1)

    class HalfWrapped(Manual):
        def configure_optimizers(self) -> Any:
            (first, second), schedulers = super().configure_optimizers()
            return [first, second.optimizer], schedulers[:1]

        def lr_schedulers(self) -> Any:
            return [super().lr_schedulers()] * 2

    with pytest.raises(TypeError, match=r"scalarize: `optimizer` must be .* got LightningAdam\. Wrap"):
        fit(HalfWrapped())


def test_several_optimizers_and_none_named() -> None:
    class Forgetful(Manual):
        def scalar(self, losses: dict[str, Tensor], optimizer: Any) -> Tensor:
            return scalarize(self, losses)

    with pytest.raises(ValueError, match=r"scalarize: `optimizer` must be given .* got None with 2\. Hand over"):
        fit(Forgetful())


def test_where_nothing_is_trained_it_is_the_sum() -> None:
    class Validated(type(make_model())):  # type: ignore[misc]
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            losses = {**self.network.losses(batch), "absent": None}
            self.log("sum", scalarize(self, losses, extra_loss=torch.tensor([1.0])))

    batches, logged = [BATCHES[1]], []
    for begin in ("validate", "fit"):
        model = Validated()
        expected = 1 + sum(model.network.losses(batches[0]).values()).item()
        if begin == "fit":
            trainer = fit_and_validate(model, batches)
            expected = 1 + sum(model.network.losses(batches[0]).values()).item()
        else:
            trainer = lightning.pytorch.Trainer(**QUIET)
            trainer.validate(model, Loader(batches), verbose=False)
        logged.append(trainer.callback_metrics["sum"].item())
        assert logged[-1] == pytest.approx(expected, rel=1e-6)
    assert logged[0] != pytest.approx(logged[1], rel=1e-3)


def fit_and_validate(model: Any, batches: Sequence[Tensor]) -> Any:
    trainer = lightning.pytorch.Trainer(**QUIET, max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(model, Loader(BATCHES), Loader(batches))
    return trainer


def test_outside_of_training() -> None:
    class Validated(type(make_model())):  # type: ignore[misc]
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            with torch.enable_grad():
                scalarize(self, self.network.losses(batch))

    with pytest.raises(ValueError, match=r"scalarize: `module` must be in training, got one without optimizers"):
        lightning.pytorch.Trainer(**QUIET, inference_mode=False).validate(Validated(), Loader(), verbose=False)


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_surgery_of_ones_own_in_automatic_optimization() -> None:
    """The Trainer sets the gradients to zero after training_step."""

    class Own(type(make_model())):  # type: ignore[misc]
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            self.optimizers().backward(self.network.losses(batch))

    with (
        pytest.warns(UserWarning, match="returned `None`"),
        pytest.raises(
            RuntimeError, match=r"must return what scalarize\(\) gives, got None, and a surgery whose grad"
        ),
    ):
        fit(Own(), callbacks=[SurgeryMonitor()])


def test_a_sum_in_the_place_of_scalarize() -> None:
    class Forgetful(type(make_model())):  # type: ignore[misc]
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            losses = self.network.losses(batch)
            return scalarize(self, losses) if batch_idx < 3 else torch.stack(list(losses.values())).sum()

    with pytest.raises(RuntimeError, match=r"SurgeryMonitor: `training_step` must return what scalarize\(\) gives"):
        fit(Forgetful(), callbacks=[SurgeryMonitor()], log_every_n_steps=1)


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_step_that_is_left_out() -> None:
    class Choosy(type(make_model())):  # type: ignore[misc]
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            return None if batch_idx == 2 else scalarize(self, self.network.losses(batch))

    logger = Memory()
    fit(Choosy(), logger=logger, callbacks=[SurgeryMonitor()], log_every_n_steps=1, max_epochs=1)
    assert len(logger.values("surgery/conflicting")) >= len(BATCHES) - 1


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"SurgeryMonitor: `max_losses` must be at least 0, got -1\."):
        SurgeryMonitor(max_losses=-1)


def test_missing_lightning_names_the_extra() -> None:
    script = (
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None;"
        "import gradsurgery.integrations.lightning"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: gradsurgery.integrations.lightning: lightning must be installed" in done.stderr
    assert 'pip install "gradsurgery[lightning]"' in done.stderr


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["lightning_multitask.py", "--out", str(picture)])
    runpy.run_path(str(Path(__file__).parent.parent / "examples" / "lightning_multitask.py"), run_name="__main__")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "names wrong" in capsys.readouterr().out
