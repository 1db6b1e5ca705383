"""Comparisons of methods: known answers, the same conditions for all, failures, tuning."""

import gc
import math
import random
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

import gradsurgery as gs
from gradsurgery.comparison import Arm, Comparison, Row, compare

# --- two quadratics in one number --------------------------------------------------------------------------------


class Point(nn.Module):
    """A number that starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros((), dtype=torch.float64))


def quadratics(model: Any, batch: Any = None) -> dict[str, Tensor]:
    """1 + (x + 1)^2 and 2 + 3 (x - 1)^2: apart 1 and 2, and at the minimum of the sum, 1/2, 3.25 and 2.75."""
    return {"low": 1 + (model.x + 1) ** 2, "high": 2 + 3 * (model.x - 1) ** 2}


@torch.no_grad()
def values(model: Any) -> dict[str, float]:
    return {name: float(loss) for name, loss in quadratics(model).items()}


STEPS: list[None] = [None] * 40


def on_quadratics(**options: Any) -> Comparison:
    usual: dict[str, Any] = {
        "methods": [], "epochs": 1, "optimizer": torch.optim.SGD, "learning_rates": [0.1], "static_weights": [],
        "seeds": 1, "progress": False,
    }  # fmt: skip
    return compare(Point, quadratics, STEPS, values, **{**usual, **options})


def rows_of(comparison: Comparison) -> dict[str, Row]:
    return {row.label: row for row in comparison.rows}


def test_known_answers() -> None:
    # With weights 1/2 and 3/2 the minimum is at 4/5. Where a loss rises as the other falls MGDA stays: at 0.
    rows = rows_of(on_quadratics(methods=["mgda"], static_weights=[[0.5, 1.5]], seeds=2))
    expected = {
        "single task": (1.0, 2.0),
        "sum": (3.25, 2.75),
        "tuned weights": (4.24, 2.12),
        "mgda": (2.0, 5.0),
    }
    assert rows.keys() == expected.keys()
    for label, (low, high) in expected.items():
        assert rows[label].means == pytest.approx({"low": low, "high": high}), label
        assert rows[label].deviations == {"low": 0.0, "high": 0.0}
        assert rows[label].delta == pytest.approx(100 * ((low - 1) + (high - 2) / 2) / 2), label
        assert rows[label].finished == 2
    assert {label: row.rank for label, row in rows.items() if label != "single task"} == {
        "sum": 2.0,
        "tuned weights": 2.0,
        "mgda": 2.0,
    }
    assert math.isnan(rows["single task"].rank)
    assert rows["tuned weights"].weights == (0.5, 1.5)


def test_without_single_task_networks_the_plain_sum_is_the_reference() -> None:
    comparison = on_quadratics(methods=["mgda"], single_task=False)
    rows = rows_of(comparison)
    assert comparison.reference == "sum"
    assert rows["sum"].delta == 0.0
    assert rows["mgda"].delta == pytest.approx(100 * ((2 - 3.25) / 3.25 + (5 - 2.75) / 2.75) / 2)


def test_metrics_that_are_better_when_higher() -> None:
    def evaluate(model: Any) -> dict[str, float]:
        return {"low": -values(model)["low"], "high": values(model)["high"]}

    comparison = compare(
        Point, quadratics, STEPS, evaluate, methods=["mgda"], epochs=1, optimizer=torch.optim.SGD,
        learning_rates=[0.1], static_weights=[], seeds=1, higher_is_better=["low"], progress=False,
    )  # fmt: skip
    rows = rows_of(comparison)
    assert rows["mgda"].delta == pytest.approx(100 * (1.0 + 1.5) / 2)
    assert rows["mgda"].rank == rows["sum"].rank == 1.5
    assert "low ↑" in str(comparison)


def test_a_baseline_of_zero_is_left_out_and_said() -> None:
    def evaluate(model: Any) -> dict[str, float]:
        return {"low": 0.0 * values(model)["low"], "high": values(model)["high"]}

    comparison = compare(
        Point, quadratics, STEPS, evaluate, methods=[], epochs=1, optimizer=torch.optim.SGD, learning_rates=[0.1],
        static_weights=[], seeds=1, progress=False,
    )  # fmt: skip
    assert comparison.counted == ("high",)
    assert rows_of(comparison)["sum"].delta == pytest.approx(37.5)
    assert "Not in Δ%, for want of a baseline that is finite and of one sign: low." in " ".join(
        str(comparison).split()
    )


def test_a_baseline_whose_sign_changes_from_seed_to_seed_is_left_out() -> None:
    signs = iter([1.0] + [1.0, -1.0] * 3)

    def evaluate(model: Any) -> dict[str, float]:
        return {**values(model), "other": next(signs)}

    comparison = compare(
        Point, quadratics, STEPS[:3], evaluate, methods=["mgda"], epochs=1, optimizer=torch.optim.SGD,
        learning_rates=[0.1], static_weights=[], seeds=2, single_task=False, progress=False,
    )  # fmt: skip
    assert comparison.counted == ("low", "high")
    assert math.isfinite(rows_of(comparison)["mgda"].delta)


# --- the same conditions for all ---------------------------------------------------------------------------------


class Heads(nn.Module):
    """A trunk with dropout and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5))
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})


def losses(model: Any, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    inputs, targets = batch
    z = model.trunk(inputs)
    return {
        name: (head(z)[:, 0] - targets[:, column]).square().mean()
        for column, (name, head) in enumerate(model.heads.items())
    }


INPUTS = torch.arange(36.0).reshape(12, 3).sin()
DATA = TensorDataset(INPUTS, INPUTS @ torch.tensor([[1.0, -1.0], [0.5, 2.0], [-1.0, 0.3]]))


def metrics(model: Any) -> dict[str, float]:
    return {name: float(loss) for name, loss in losses(model, DATA.tensors).items()}


def shuffled_by(shuffle: Callable[[int], Sequence[int]]) -> Callable[[int], Iterable[Any]]:
    def batches(epoch: int) -> Iterable[Any]:
        order = list(shuffle(len(INPUTS)))
        return [tuple(tensor[order[start : start + 4]] for tensor in DATA.tensors) for start in range(0, 12, 4)]

    return batches


def drawn_one_by_one(epoch: int) -> Iterable[Any]:
    for _ in range(3):
        rows = torch.randint(len(INPUTS), (4,))
        yield tuple(tensor[rows] for tensor in DATA.tensors)


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(DATA, batch_size=4, shuffle=True),
    "own generator": lambda: DataLoader(DATA, batch_size=4, shuffle=True, generator=torch.Generator()),
    "generator of a sampler": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(RandomSampler(DATA, generator=torch.Generator()), 4, False)
    ),
    "function, torch": lambda: shuffled_by(lambda count: torch.randperm(count).tolist()),
    "function, NumPy": lambda: shuffled_by(lambda count: np.random.permutation(count).tolist()),
    "function, Python": lambda: shuffled_by(lambda count: random.sample(range(count), count)),
    "drawn one by one": lambda: drawn_one_by_one,
    "function of loaders": lambda: lambda epoch: DataLoader(DATA, batch_size=4, shuffle=True),
}
EVERYONE: dict[str, Any] = {
    "upgrad": "upgrad",
    "random": "random",
    "famo": gs.scalarizers.FAMO,  # looks again after the step
    "sdmgrad": "sdmgrad",  # looks at two more batches
    "mconfig": Arm("mconfig", one_loss_a_step=True),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_all_start_alike_and_see_the_same_batches_and_draws(kind: str) -> None:
    """What the model sees when it is trained: inputs, weights at the start, draws of dropout; by method."""
    loader = LOADERS[kind]()
    seen: list[list[Tensor]] = []  # by training

    def build() -> Heads:
        model = Heads()
        seen.append([torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])])
        return model

    def watched(model: Any, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        if torch.is_grad_enabled():
            mask = nn.functional.dropout(torch.ones(64), 0.5)
            seen[-1] += [torch.cat([batch[0].flatten(), mask])]
            torch.rand(7 * len(seen))  # an amount that is another one in each training
        return losses(model, batch)

    comparison = compare(
        build, watched, loader, metrics, methods=EVERYONE, epochs=2, seeds=2, static_weights=[[0.5, 1.5]],
        learning_rates=[1e-2], progress=False,
    )  # fmt: skip
    trainings = dict(zip([(one.label, one.task, one.seed) for one in comparison.trials], seen[1:], strict=True))
    for (label, _, seed), own in trainings.items():
        if label == "sdmgrad":
            own = [own[0], *own[3::3]]  # two further batches come before each of the training's
        expected = trainings["sum", None, seed]
        assert len(own) == len(expected) == 7
        for one, other in zip(own, expected, strict=True):
            assert torch.equal(one, other), label
    first, other_seed = trainings["sum", None, 0], trainings["sum", None, 1]
    assert not torch.equal(first[0], other_seed[0])
    assert not torch.equal(first[1], other_seed[1])
    assert not torch.equal(first[1], first[4])  # another order in another epoch
    extra = trainings["sdmgrad", None, 0]
    assert not torch.equal(extra[1], extra[3])
    assert comparison.fair


def test_the_second_look_sees_the_batch_and_the_draws_of_the_first() -> None:
    looks: list[Tensor] = []

    def watched(model: Any, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        looks.append(torch.cat([batch[0].flatten(), nn.functional.dropout(torch.ones(64), 0.5)]))
        return losses(model, batch)

    loader = LOADERS["shuffled"]()
    compare(
        Heads, watched, loader, metrics, methods={"famo": gs.scalarizers.FAMO}, epochs=1, seeds=1, static_weights=[],
        single_task=False, progress=False,
    )  # fmt: skip
    own = looks[1 + 3 :]  # after the preview and the plain sum
    assert len(own) == 6
    for before, after in zip(own[::2], own[1::2], strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(own[0], own[2])


def test_the_callers_random_state_is_left_alone() -> None:
    loader = DataLoader(DATA, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    expected = [torch.rand(2), np.random.rand(), random.random()]
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    state = loader.generator.get_state()
    compare(Heads, losses, loader, metrics, methods=["random"], epochs=1, seeds=1, progress=False)
    assert torch.equal(torch.rand(2), expected[0])
    assert [np.random.rand(), random.random()] == expected[1:]
    assert torch.initial_seed() == 3
    assert torch.equal(loader.generator.get_state(), state)


def test_further_batches_leave_the_generator_of_a_loader_alone() -> None:
    loader = DataLoader(DATA, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5))
    state = loader.generator.get_state()
    compare(Heads, losses, loader, metrics, methods=["sdmgrad"], epochs=2, seeds=1, progress=False)
    assert torch.equal(loader.generator.get_state(), state)


class Noisy(Dataset[tuple[Tensor, ...]]):
    """Rows with noise that is drawn in the workers."""

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        return INPUTS[row] + torch.randn(3), DATA.tensors[1][row]


def test_workers_that_stay_draw_the_same_for_all() -> None:
    loader = DataLoader(Noisy(), batch_size=4, num_workers=1, persistent_workers=True)
    seen: dict[int, list[Tensor]] = {}
    built: list[nn.Module] = []

    def build() -> Heads:
        built.append(Heads())
        return built[-1]  # type: ignore[return-value]

    def watched(model: Any, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        seen.setdefault(len(built), []).append(batch[0])
        if len(seen[len(built)]) > 20:
            raise RuntimeError("an epoch without an end")
        return losses(model, batch)

    compare(
        build, watched, loader, metrics, methods=["sdmgrad"], epochs=2, seeds=1, static_weights=[],
        single_task=False, progress=False,
    )  # fmt: skip
    plain, sdmgrad = seen[2], seen[3][2::3]  # two further batches come before each of the training's
    assert len(plain) == len(sdmgrad) == 6
    assert all(torch.equal(one, other) for one, other in zip(plain, sdmgrad, strict=True))
    assert not torch.equal(plain[0], plain[3])  # another epoch, another noise


def test_a_model_that_is_made_once_is_refused() -> None:
    model = Heads()
    with pytest.raises(ValueError, match="`build` must make new weights each time, got the same Linear again"):
        compare(lambda: model, losses, [DATA.tensors], metrics, methods=[], epochs=1, seeds=1, progress=False)


def test_batches_that_are_used_up_are_refused() -> None:
    once = iter([DATA.tensors] * 3)
    with pytest.raises(ValueError, match="`batches` must hold batches in every epoch, got none in epoch 1"):
        compare(Heads, losses, lambda epoch: once, metrics, methods=[], epochs=2, seeds=1, progress=False)


def test_unequal_starts_are_noticed() -> None:
    fresh = torch.Generator()

    def build() -> Heads:
        model = Heads()
        nn.init.normal_(model.heads["a"].bias, generator=fresh)
        return model

    with pytest.warns(UserWarning, match="must draw from torch's, NumPy's or Python's"):
        comparison = compare(build, losses, [DATA.tensors], metrics, methods=[], epochs=1, seeds=1, progress=False)
    assert not comparison.fair
    assert "differences in luck" in " ".join(str(comparison).split())


def test_unequal_batches_are_noticed() -> None:
    fresh = np.random.default_rng(0)
    batches = shuffled_by(lambda count: fresh.permutation(count).tolist())
    with pytest.warns(UserWarning, match="see the same batches"):
        compare(Heads, losses, batches, metrics, methods=[], epochs=1, seeds=1, progress=False)


def test_the_plain_sum_is_an_ordinary_loop() -> None:
    """Bit by bit, where nothing is random."""

    def build() -> nn.Linear:
        model = nn.Linear(3, 2)
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.1)
        return model

    def two(model: Any, batch: Sequence[Tensor]) -> list[Tensor]:
        inputs, targets = batch
        return list((model(inputs) - targets).square().mean(0))

    def evaluate(model: Any) -> dict[str, float]:
        with torch.no_grad():
            return {str(position): float(loss) for position, loss in enumerate(two(model, DATA.tensors))}

    batches = list(DataLoader(DATA, batch_size=4))
    comparison = compare(build, two, batches, evaluate, methods=["sum"], epochs=3, seeds=1, progress=False)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        for batch in batches:
            optimizer.zero_grad()
            sum(two(model, batch)).backward()
            optimizer.step()
    (trial,) = [trial for trial in comparison.trials if trial.label == "sum"]
    assert trial.metrics == evaluate(model)
    assert (trial.steps, len(trial.curve)) == (9, 3)


def test_a_single_task_network_is_trained_on_its_loss_alone() -> None:
    def evaluate(model: Any) -> dict[str, float]:
        found = metrics(model)
        return {"error of a": found["a"], "error of b": found["b"], "bias": float(model.heads["b"].bias)}

    comparison = compare(
        Heads, losses, [DATA.tensors], evaluate, methods=[], epochs=3, seeds=1, progress=False,
        tasks={"error of a": "a", "error of b": "b", "bias": "a"},
    )  # fmt: skip
    a, b = (trial for trial in comparison.trials if trial.label == "single task")
    assert (set(a.metrics), set(b.metrics)) == ({"error of a", "bias"}, {"error of b"})
    assert a.curve[0]["bias"] == a.curve[-1]["bias"]  # the head of b stands still
    row = rows_of(comparison)["single task"]
    assert row.means == {**a.metrics, **b.metrics}


def test_metrics_that_belong_to_no_loss_have_no_single_task_baseline() -> None:
    def evaluate(model: Any) -> dict[str, float]:
        return {**values(model), "both": sum(values(model).values())}

    comparison = compare(
        Point, quadratics, STEPS, evaluate, methods=[], epochs=1, optimizer=torch.optim.SGD, learning_rates=[0.1],
        static_weights=[], seeds=1, tasks={"both": None}, progress=False,
    )  # fmt: skip
    rows = rows_of(comparison)
    assert math.isnan(rows["single task"].means["both"])
    assert (rows["single task"].delta, rows["single task"].finished) == (0.0, 1)
    assert rows["sum"].delta == pytest.approx(100 * (2.25 + 0.375) / 2)


def test_training_and_evaluation_run_in_their_modes() -> None:
    modes = []

    def watched(model: Any, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        modes.append(("losses", model.training, torch.is_grad_enabled()))
        return losses(model, batch)

    def evaluate(model: Any) -> dict[str, float]:
        modes.append(("metrics", model.training, torch.is_grad_enabled()))
        return {"a": 1.0, "b": 1.0}

    compare(Heads, watched, [DATA.tensors], evaluate, methods=["famo"], epochs=2, seeds=1, progress=False)
    assert {mode for mode in modes if mode[0] == "metrics"} == {("metrics", False, False)}
    assert {mode for mode in modes if mode[0] == "losses"} == {("losses", True, True), ("losses", True, False)}


# --- methods -----------------------------------------------------------------------------------------------------


class Watched(gs.scalarizers.Scalarizer):
    """Counts what it is told."""

    wants_second_look = True
    told: list[str]

    def __init__(self) -> None:
        super().__init__()
        Watched.told = []

    def scalar(self, losses: Tensor) -> Tensor:
        Watched.told.append("losses")
        return losses.sum()

    def look_again(self, losses: Tensor) -> None:
        Watched.told.append("again")

    def next_epoch(self) -> None:
        Watched.told.append("epoch")


def test_methods_are_told_what_they_ask_for() -> None:
    on_quadratics(methods={"watched": Watched}, epochs=2, single_task=False)
    epoch = ["losses", "again"] * len(STEPS) + ["epoch"]
    assert Watched.told == epoch * 2


def test_one_loss_a_step_takes_turns_and_asks_for_no_other_loss() -> None:
    asked: list[str] = []

    def lazily(model: Any, batch: Any) -> dict[str, Callable[[], Tensor]]:
        def one(name: str) -> Callable[[], Tensor]:
            def loss() -> Tensor:
                asked.append(name)
                return quadratics(model)[name]

            return loss

        return {"low": one("low"), "high": one("high")}

    options: dict[str, Any] = {"methods": {"m": Arm(gs.aggregators.MConFIG, one_loss_a_step=True)}, "seeds": 1}
    comparison = compare(
        Point,
        lazily,
        STEPS[:6],
        values,
        epochs=1,
        static_weights=[],
        progress=False,
        learning_rates=[1e-2],
        **options,
    )
    assert asked[:2] == ["low", "high"]  # the preview
    assert asked[2:14] == ["low", "high"] * 6  # the plain sum
    assert asked[14:] == ["low", "high", "high", "low", "high", "low", "high"] + ["low"] * 6 + ["high"] * 6

    model = Point()
    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.Adam(model.parameters(), lr=1e-2), gs.aggregators.MConFIG(), shared=model
    )
    for step in range(6):
        turn = ("low", "high")[step % 2]
        optimizer.zero_grad()
        optimizer.backward({name: loss if name == turn else None for name, loss in quadratics(model).items()})
        optimizer.step()
    assert rows_of(comparison)["m"].means == values(model)


def test_one_loss_a_step_needs_something_in_common() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.ones(())) for _ in range(2))

    def apart(model: Any, batch: Any) -> dict[str, Tensor]:
        return {"a": model.a**2, "b": model.b**2}

    comparison = compare(
        Apart, apart, [None], lambda model: {"a": 1.0, "b": 1.0}, epochs=1, seeds=1, progress=False,
        methods={"m": Arm("mconfig", one_loss_a_step=True)},
    )  # fmt: skip
    assert "must share parameters for steps of one loss each" in str(rows_of(comparison)["m"].error)


def test_the_scope_of_an_arm_is_that_of_its_surgery(monkeypatch: pytest.MonkeyPatch) -> None:
    scopes = []
    original = gs.MultiObjectiveOptimizer.__init__

    def spied(self: Any, *arguments: Any, **options: Any) -> None:
        scopes.append(options["scope"])
        original(self, *arguments, **options)

    monkeypatch.setattr(gs.MultiObjectiveOptimizer, "__init__", spied)
    on_quadratics(methods={"by tensor": Arm("upgrad", scope="tensor"), "usual": "upgrad"}, single_task=False)
    assert scopes == ["tensor", "all"]


@pytest.mark.parametrize("scope", ["module", "tensor"])
def test_scopes_know_the_modules_of_an_untagged_model(scope: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = set()
    original = gs.MultiObjectiveOptimizer.backward

    def spied(self: Any, *arguments: Any, **options: Any) -> Any:
        surgery = original(self, *arguments, **options)
        groups.add(surgery.groups)
        return surgery

    monkeypatch.setattr(gs.MultiObjectiveOptimizer, "backward", spied)
    comparison = compare(
        Heads, losses, [DATA.tensors], metrics, methods={"own": Arm("upgrad", scope=scope)}, epochs=1, seeds=1,
        static_weights=[], single_task=False, progress=False,
    )  # fmt: skip
    assert rows_of(comparison)["own"].error is None
    assert groups == {("trunk.0",) if scope == "module" else ("trunk.0.weight", "trunk.0.bias")}


def test_random_methods_draw_by_the_seed() -> None:
    generator = torch.Generator().manual_seed(8)
    instance = gs.aggregators.Random(generator=generator)
    before = generator.get_state()
    arms: dict[str, Any] = {"by name": "random", "instance": instance, "built": lambda: gs.aggregators.Random()}
    comparison = on_quadratics(methods=arms, seeds=[4, 5], single_task=False)
    found = {label: comparison.values(label) for label in arms}
    assert torch.equal(found["by name"], found["instance"])
    assert torch.equal(found["by name"], found["built"])
    assert not torch.equal(found["by name"][0], found["by name"][1])
    assert torch.equal(generator.get_state(), before)


def test_an_instance_is_copied_for_each_training() -> None:
    instance = gs.LossBalancer()
    comparison = on_quadratics(methods=[instance], seeds=2, single_task=False)
    first, second = comparison.values("LossBalancer")
    assert torch.equal(first, second)  # no memory of the training before
    assert all(buffer is None for buffer in instance._buffers.values())


def test_labels_of_methods() -> None:
    methods = ["UPGrad", gs.PCGrad, gs.MGDA(), {"name": "gradnorm", "alpha": 0.0}, "sum", Arm(gs.CAGrad)]
    comparison = on_quadratics(methods=methods, single_task=False)
    assert comparison.labels == ("sum", "UPGrad", "PCGrad", "MGDA", "gradnorm", "CAGrad")


def test_a_scheduler_is_stepped_after_each_step() -> None:
    rates: list[float] = []

    def scheduler(optimizer: torch.optim.Optimizer) -> Any:
        def rate(step: int) -> float:
            rates.append(step)
            return 1 / (1 + step)

        return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    on_quadratics(scheduler=scheduler, single_task=False, epochs=2)
    assert rates == [0, *range(2 * len(STEPS) + 1)]  # one is looked at beforehand, and not stepped


# --- tuning ------------------------------------------------------------------------------------------------------


def test_candidates_are_chosen_by_validation_on_the_first_seed() -> None:
    def evaluate(model: Any) -> dict[str, float]:
        return {"x": float(model.x), "other": 1.0}

    def validate(model: Any) -> dict[str, float]:
        return {"x": 3.0 - float(model.x), "other": 1.0}  # wants the farthest, which the test does not

    comparison = compare(
        Point, quadratics, STEPS[:1], evaluate, methods=["mean"], epochs=1, optimizer=torch.optim.SGD,
        seeds=[7, 1, 3], learning_rates=[0.01, 0.1, 0.02], static_weights=[], single_task=False, validate=validate,
        progress=False,
    )  # fmt: skip
    tried = [(trial.seed, trial.learning_rate) for trial in comparison.trials if trial.label == "mean"]
    assert tried == [(7, 0.01), (7, 0.1), (7, 0.02), (1, 0.1), (3, 0.1)]
    assert rows_of(comparison)["mean"].learning_rates == (0.1,)
    assert rows_of(comparison)["mean"].means["x"] == pytest.approx(0.2)
    assert "chosen with seed 7, on the validation metrics" in " ".join(str(comparison).split())


def test_without_validation_the_table_says_so() -> None:
    text = " ".join(str(on_quadratics(learning_rates=[0.1, 0.01])).split())
    assert "on these very metrics, for want of `validate`" in text
    assert "Nothing was tuned" in " ".join(str(on_quadratics()).split())


def test_each_single_task_network_has_its_own_learning_rate() -> None:
    # At 0.3 the steps on `high` overshoot to and fro; those on `low`, a third as steep, arrive sooner than at 0.03.
    comparison = on_quadratics(learning_rates=[0.03, 0.3], methods=[], seeds=1)
    chosen = {task: comparison.chosen("single task", task)[0].learning_rate for task in ("low", "high")}
    assert chosen["low"] == 0.3
    assert rows_of(comparison)["single task"].learning_rates == tuple(dict.fromkeys(chosen.values()))


def test_tuned_weights_are_the_best_of_all_weightings_and_rates() -> None:
    comparison = on_quadratics(static_weights=None, learning_rates=[0.1, 0.01])
    tried = [trial for trial in comparison.trials if trial.label == "tuned weights"]
    assert len(tried) == 12
    finals = {(trial.learning_rate, trial.weights): trial.metrics for trial in tried}
    low = sum(final["low"] for final in finals.values()) / 12
    high = sum(final["high"] for final in finals.values()) / 12
    best = min(finals, key=lambda key: finals[key]["low"] / low + finals[key]["high"] / high)
    row = rows_of(comparison)["tuned weights"]
    assert (row.learning_rates[0], row.weights) == best


def test_equal_weights_are_the_plain_sum_and_not_trained_twice() -> None:
    built = []

    def build() -> Point:
        built.append(Point())
        return built[-1]

    comparison = compare(
        build, quadratics, STEPS, values, methods=[], epochs=1, seeds=2, static_weights=[[1, 1]], single_task=False,
        progress=False,
    )  # fmt: skip
    rows = rows_of(comparison)
    assert rows["tuned weights"].means == rows["sum"].means
    assert len(built) == 1 + 2  # the preview and the plain sum


# --- what goes wrong ---------------------------------------------------------------------------------------------


class Failing(gs.GramianAggregator):
    """Raises in its third step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise ZeroDivisionError("the third step")
        return gramian.new_ones(gramian.shape[:-1])


def test_a_failure_is_recorded_and_the_others_go_on() -> None:
    comparison = on_quadratics(methods={"failing": Failing, "upgrad": "upgrad"}, seeds=2)
    rows = rows_of(comparison)
    assert rows["failing"].error == "ZeroDivisionError: the third step"
    assert (rows["failing"].finished, rows["upgrad"].finished) == (0, 2)
    assert rows["failing"].rank == 3.0
    assert math.isnan(rows["failing"].delta)
    assert comparison.rows[-1].label == "failing"
    text = " ".join(str(comparison).split())
    assert "failing *" in text
    assert "* failing: 0 of 2 seeds came to an end (ZeroDivisionError: the third step)." in text


def test_where_all_fail_the_first_error_is_raised() -> None:
    def impossible(parameters: Any, rate: float) -> torch.optim.Optimizer:
        raise OSError("no optimizer")

    with pytest.raises(OSError, match="no optimizer"):
        on_quadratics(methods=["upgrad"], optimizer=impossible)


def test_one_that_fails_in_a_later_seed_ranks_last() -> None:
    def build() -> Point:
        draw = float(torch.rand(()))
        first.setdefault("draw", draw)
        state["later"] = draw != first["draw"]
        return Point()

    first: dict[str, float] = {}
    state = {"later": False}

    class InLaterSeeds(gs.Sum):
        def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
            if state["later"]:
                raise RuntimeError("only in a later seed")
            return super().weights(gramian, losses)

    comparison = compare(
        build, quadratics, STEPS, values, methods={"sometimes": InLaterSeeds}, epochs=1, seeds=3,
        optimizer=torch.optim.SGD, learning_rates=[0.1], static_weights=[], progress=False,
    )  # fmt: skip
    row = rows_of(comparison)["sometimes"]
    assert (row.finished, row.rank, row.error) == (1, 2.0, "RuntimeError: only in a later seed")
    assert row.means == pytest.approx({"low": 3.25, "high": 2.75})  # of the one that came to an end
    assert math.isnan(row.delta)


def test_a_failure_lets_go_of_its_model() -> None:
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    beside: list[int] = []

    def build() -> Heads:
        gc.collect()
        beside.append(len(alive))
        model = Heads()
        alive.add(model)
        return model

    comparison = compare(
        build, losses, [DATA.tensors] * 3, metrics, methods={"failing": Failing, "upgrad": "upgrad"}, epochs=1,
        seeds=2, single_task=False, static_weights=[], progress=False,
    )  # fmt: skip
    assert rows_of(comparison)["failing"].error is not None
    assert beside == [0] * 6


def test_numbers_that_are_infinite_from_the_start_are_no_divergence() -> None:
    class Masked(Point):
        def __init__(self) -> None:
            super().__init__()
            self.mask = nn.Parameter(torch.tensor([0.0, -math.inf]), requires_grad=False)

    comparison = compare(
        Masked, quadratics, STEPS, values, methods=[], epochs=2, optimizer=torch.optim.SGD, learning_rates=[0.1],
        static_weights=[], seeds=1, single_task=False, progress=False,
    )  # fmt: skip
    assert rows_of(comparison)["sum"].means == pytest.approx({"low": 3.25, "high": 2.75})


def test_divergence_is_no_error_but_ranks_last() -> None:
    calls = []

    def evaluate(model: Any) -> dict[str, float]:
        calls.append(float(model.x))
        return values(model)

    class Huge(gs.Sum):
        def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
            return 1e200 * super().weights(gramian, losses)

    comparison = compare(
        Point, quadratics, STEPS, evaluate, methods={"huge": Huge}, epochs=4, optimizer=torch.optim.SGD,
        learning_rates=[0.1], static_weights=[], seeds=1, single_task=False, progress=False,
    )  # fmt: skip
    row = rows_of(comparison)["huge"]
    assert (row.error, row.finished, row.rank) == (None, 0, 2.0)
    (trial,) = [trial for trial in comparison.trials if trial.label == "huge"]
    assert len(trial.curve) == 1  # it is given up after the epoch
    assert all(map(math.isnan, trial.metrics.values()))
    assert all(map(math.isfinite, calls))
    assert "0 of 1 seeds came to an end (not all metrics are finite)" in " ".join(str(comparison).split())


def test_a_candidate_that_fails_leaves_the_others_to_be_chosen() -> None:
    def optimizer(parameters: Any, rate: float) -> torch.optim.Optimizer:
        if rate == 0.2:
            raise RuntimeError("not this one")
        return torch.optim.SGD(parameters, lr=rate)

    comparison = on_quadratics(learning_rates=[0.2, 0.1], optimizer=optimizer)
    assert rows_of(comparison)["sum"].learning_rates == (0.1,)
    assert rows_of(comparison)["sum"].error is None


def test_a_metric_that_is_missing_once_ranks_last() -> None:
    seen = []

    def evaluate(model: Any) -> dict[str, float]:
        seen.append(1)
        return {"low": 1.0, "high": 2.0} if len(seen) != 3 else {"low": 1.0}

    comparison = compare(
        Point, quadratics, STEPS, evaluate, methods=["mean"], epochs=1, optimizer=torch.optim.SGD,
        learning_rates=[0.1], static_weights=[], seeds=1, single_task=False, progress=False,
    )  # fmt: skip
    rows = rows_of(comparison)
    assert (rows["sum"].rank, rows["mean"].rank) == (1.25, 1.75)
    assert rows["mean"].finished == 0


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"methods": "upgrad"}, TypeError, "`methods` must be a list or a dict"),
        ({"methods": ["upgrad", "upgrad"]}, ValueError, "`methods` must have different labels"),
        ({"methods": ["no such method"]}, ValueError, "`name` must be that of a method"),
        ({"methods": {"single task": "upgrad"}}, ValueError, "must not be called 'single task'"),
        ({"methods": {"sum": "upgrad"}}, ValueError, "must not be called 'sum'"),
        ({"methods": {"x": lambda: 3}}, TypeError, "Arm: `method` must be a name"),
        ({"methods": {"x": 3}}, TypeError, "Arm: `method` must be a name"),
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1"),
        ({"epochs": 1.5}, TypeError, "`epochs` must be a whole number"),
        ({"seeds": 0}, ValueError, "`seeds` must be at least 1"),
        ({"seeds": [1, 1]}, ValueError, "`seeds` must be a number of seeds or different"),
        ({"learning_rates": []}, ValueError, "`learning_rates` must be different numbers > 0"),
        ({"learning_rates": [0.1, -1]}, ValueError, "`learning_rates` must be different numbers > 0"),
        ({"static_weights": [[1.0]]}, ValueError, r"for each of the losses \['low', 'high'\]"),
        ({"higher_is_better": ["lwo"]}, ValueError, r"`higher_is_better` must name metrics out of \['low', 'high'\]"),
        ({"tasks": {"low": "hihg"}}, ValueError, "`tasks` must lead from the metrics"),
        ({"optimizer": 3}, TypeError, "`optimizer` must be a function"),
        ({"optimizer": lambda parameters, rate: rate}, TypeError, "`optimizer` must return an optimizer, got float"),
        ({"validate": lambda model: {"other": 1.0}}, ValueError, "`validate` must return the metrics of `evaluate`"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        on_quadratics(**options)


@pytest.mark.parametrize(
    ("replaced", "kind", "message"),
    [
        ({"batches": iter([None])}, TypeError, "`batches` must be something to iterate again and again"),
        ({"batches": []}, ValueError, "`batches` must hold at least one batch"),
        ({"batches": 3}, TypeError, "`batches` must be a DataLoader, a list or a function"),
        ({"build": lambda: 3}, TypeError, "`build` must return a torch.nn.Module, got int"),
        (
            {"losses": lambda model, batch: model.x * 1},
            TypeError,
            "`losses` must return a dict of scalars, got Tensor",
        ),
        ({"losses": lambda model, batch: {"a": 0.0}}, TypeError, "`losses` must return tensors, got 0.0 as 'a'"),
        ({"evaluate": lambda model: 0.3}, TypeError, "`evaluate` must return a dict of metrics"),
        ({"evaluate": lambda model: {"low": "good"}}, TypeError, "`evaluate` must return a number for each metric"),
        ({"evaluate": lambda model: {"error": 1.0}}, ValueError, "`tasks` must say which of the losses"),
    ],
)
def test_wrong_parts(replaced: dict[str, Any], kind: type[Exception], message: str) -> None:
    parts = {"build": Point, "losses": quadratics, "batches": STEPS, "evaluate": values, **replaced}
    with pytest.raises(kind, match=message):
        compare(*parts.values(), methods=[], seeds=1, progress=False)


def test_progress_is_one_line_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    on_quadratics(methods=["upgrad"], progress=True, seeds=2)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 8
    assert lines[0].split()[:2] == ["1/8", "sum"]
    assert "seed 1" in lines[1]
    assert "low 3.25" in lines[1]


def test_weights_follow_their_losses_by_name() -> None:
    turns = iter(range(10**6))

    def shuffled(model: Any, batch: Any) -> dict[str, Tensor]:
        found = quadratics(model)
        return found if next(turns) % 2 == 0 else dict(reversed(found.items()))

    comparison = compare(
        Point, shuffled, STEPS, values, methods=[], epochs=1, optimizer=torch.optim.SGD, learning_rates=[0.1],
        static_weights=[[0.5, 1.5]], seeds=1, single_task=False, progress=False,
    )  # fmt: skip
    assert rows_of(comparison)["tuned weights"].means == pytest.approx({"low": 4.24, "high": 2.12})


def test_a_loss_without_a_weight_is_an_error() -> None:
    seen: list[int] = []

    def more(model: Any, batch: Any) -> dict[str, Tensor]:
        seen.append(1)
        return quadratics(model) if len(seen) == 1 else {**quadratics(model), "new": model.x**2}

    comparison = compare(
        Point, more, STEPS, values, methods=[], epochs=1, static_weights=[[0.5, 1.5]], seeds=1, single_task=False,
        progress=False,
    )  # fmt: skip
    assert "`losses` must be called ['low', 'high'] in every batch" in str(rows_of(comparison)["tuned weights"].error)
    assert rows_of(comparison)["sum"].finished == 1


def test_absent_losses_are_left_out_by_all() -> None:
    def sometimes(model: Any, batch: int) -> dict[str, Tensor | None]:
        found: dict[str, Tensor | None] = {**quadratics(model)}
        return {
            name: None if (batch >> position) & 1 else loss for position, (name, loss) in enumerate(found.items())
        }

    comparison = compare(
        Point, sometimes, [0, 1, 2, 3] * 20, values, epochs=1,
        methods={"mean": gs.Sum, "m": Arm("mconfig", one_loss_a_step=True)},
        optimizer=torch.optim.SGD, learning_rates=[0.01], static_weights=[[1, 2]], seeds=1, progress=False,
    )  # fmt: skip
    assert all(trial.error is None for trial in comparison.trials)
    rows = rows_of(comparison)
    assert rows["mean"].means == pytest.approx(rows["sum"].means)
