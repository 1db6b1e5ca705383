"""One call that says whether losses conflict: what it finds, what it leaves alone, what it refuses, how it reads."""

import copy
import math
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradsurgery as gs
from gradsurgery.diagnostics.diagnosis import diagnosis as module
from gradsurgery.diagnostics.diagnosis.costs import Costs
from gradsurgery.diagnostics.diagnosis.diagnosis import Diagnosis, diagnose
from gradsurgery.diagnostics.diagnosis.gathering import gather
from gradsurgery.diagnostics.diagnosis.gradients import RowsByBatch
from gradsurgery.diagnostics.diagnosis.untouched import untouched
from gradsurgery.looking import Look


class Heads(nn.Module):
    """A trunk with everything that a forward pass may change, and a head a loss."""

    def __init__(self, names: tuple[str, ...] = ("first", "second")) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(8, 1) for name in names})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        z = self.trunk(inputs)
        return {name: head(z).squeeze(1) for name, head in self.heads.items()}


class Point(nn.Module):
    """One vector of parameters; losses are linear in it, so that gradients are what the test says."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.zeros(size, dtype=torch.float64))


def squared(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    outputs = model(batch)
    return {name: (output - batch[:, k]).square().mean() for k, (name, output) in enumerate(outputs.items())}


def linear(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """The batch's rows are the gradients; a row of NaN is an absent loss."""
    at = next(model.parameters())
    return {name: None if row.isnan().any() else (row * at).sum() for name, row in zip("abcdef", batch, strict=False)}


def batches_of(count: int = 6, size: int = 16) -> list[Tensor]:
    return list(torch.randn(count, size, 4, generator=torch.Generator().manual_seed(1)))


def opposed(count: int = 4, cosine: float = -0.8) -> list[Tensor]:
    return [torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)] * count


# --- what it finds -----------------------------------------------------------------------------------------------


def test_gradients_are_those_of_autograd() -> None:
    model, batches = Heads().eval(), batches_of(4)
    shared = list(model.trunk.parameters())
    rows = []
    for batch in batches:
        losses = squared(model, batch).values()
        rows.append([torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses])
    flat = torch.stack(
        [torch.stack([torch.cat([g.flatten() for g in row]) for row in rows_]) for rows_ in rows]
    ).double()
    expected = sum(flat[a] @ flat[b].mT for a in range(4) for b in range(4) if a != b) / 12
    found = diagnose(model, squared, batches, costs=False)
    torch.testing.assert_close(found.findings.gramian, expected, rtol=1e-4, atol=1e-7)
    values = torch.stack([torch.stack(list(squared(model, batch).values())) for batch in batches]).detach().double()
    torch.testing.assert_close(found.losses, values.mean(0), rtol=1e-6, atol=0)
    assert found.names == ("first", "second")
    assert found.batches == 4
    assert found.groups == ("trunk.0", "trunk.1", "trunk.3")
    assert found.sizes == (40, 16, 72)


def test_groups_are_judged_by_themselves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    nn.init.ones_(model[0].weight)
    nn.init.ones_(model[1].weight)

    def losses(model: nn.Sequential, batch: Tensor) -> list[Tensor]:
        first, second = model[0].weight.sum(), model[1].weight.sum()
        return [first + 2 * second, 3 * first - 2 * second]

    found = diagnose(model, losses, [torch.ones(1)] * 3, costs=False)
    assert found.groups == ("0", "1")
    assert found.group_cosines[:, 0, 1].tolist() == [1.0, -1.0]
    assert found.group_conflicts[:, 0, 1].tolist() == [False, True]
    assert diagnose(model, losses, [0] * 3, scope="tensor", costs=False).groups == ("0.weight", "1.weight")
    whole = diagnose(model, losses, [0] * 3, scope="all", costs=False)
    assert whole.groups == ("all",)
    torch.testing.assert_close(whole.findings.gramian, found.findings.gramian)


def test_what_is_shared_can_be_said() -> None:
    model = Heads()
    found = diagnose(model, squared, batches_of(), shared=model.trunk[3], costs=False)
    assert found.sizes == (72,)
    gs.tag_shared(model.trunk[0])
    try:
        assert diagnose(model, squared, batches_of(), costs=False).sizes == (40,)
    finally:
        gs.untag_shared(model.trunk[0])


def test_one_loss() -> None:
    found = diagnose(Heads(("only",)), squared, batches_of(), shared=None, costs=False)
    assert found.recommendation.method == "sum"
    assert found.trouble in ("none", "nothing shared")
    model = Heads(("only",))
    assert "There is one loss" in diagnose(model, squared, batches_of(), shared=model.trunk).recommendation.reason


def test_nothing_shared() -> None:
    model = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])

    def losses(model: nn.ModuleList, batch: Tensor) -> list[Tensor]:
        return [part(batch).square().mean() for part in model]

    found = diagnose(model, losses, batches_of())
    assert found.trouble == "nothing shared"
    assert found.groups == ()
    assert found.costs is None
    assert "Nothing is shared" in str(found)


def test_a_loss_without_gradient_there() -> None:
    model = Heads(("first", "second", "third"))

    def losses(model: Heads, batch: Tensor) -> dict[str, Tensor]:
        z = model.trunk(batch)
        detached = model.heads["third"](z.detach()).square().mean()
        return {**squared(model, batch), "third": detached + 0 * z.sum()}

    found = diagnose(model, losses, batches_of(), costs=False)
    assert found.findings.with_gradient.tolist() == [True, True, False]
    assert "zero" in next(line for line in str(found).splitlines() if line.strip().startswith("third"))


def test_losses_that_are_absent_or_not_finite() -> None:
    rows = torch.tensor([[1.0, 0.0], [-0.8, 0.6]], dtype=torch.float64)
    batches = [rows.clone() for _ in range(8)]
    batches[0][1] = math.nan  # absent
    batches[1][:] = math.nan  # all absent
    batches[2][0, 0] = math.inf
    found = diagnose(Point(), linear, batches, costs=False)
    assert found.batches == 7
    assert found.non_finite == {"a": 1}
    torch.testing.assert_close(found.findings.gramian, rows @ rows.mT)
    assert found.trouble == "direction"
    assert "'a' was not finite in 1" in str(found)


def test_names_of_different_batches_are_a_union() -> None:
    def losses(model: Point, batch: int) -> dict[str, Tensor]:
        names = ["a", "b"] if batch % 2 else ["b", "c"]
        return {name: (k + 1) * model.at.sum() for k, name in enumerate(names)}

    found = diagnose(Point(), losses, range(8), costs=False)
    assert found.names == ("b", "c", "a")
    assert found.findings.cosines[1, 2] == pytest.approx(1.0)  # never in one batch, and yet compared


def test_what_is_found_to_be_shared_later_counts_from_the_start() -> None:
    def losses(model: Heads, batch: tuple[int, Tensor]) -> dict[str, Tensor]:
        number, inputs = batch
        found = squared(model, inputs)
        return {"first": found["first"]} if number < 2 else found

    model, batches = Heads().eval(), list(enumerate(batches_of(5)))
    found = diagnose(model, losses, batches, costs=False)
    told = diagnose(model, losses, batches, shared=model.trunk, scope="all", costs=False)
    torch.testing.assert_close(found.findings.gramian, told.findings.gramian)


def test_gradients_that_do_not_fit_are_computed_twice() -> None:
    model, batches, calls = Heads(), batches_of(5), []

    def counted(model: Heads, batch: Tensor) -> dict[str, Tensor]:
        calls.append(batch)
        return meddling(model, batch)

    results = []
    for kept in (1 << 30, 5000, 0):
        calls.clear()
        with untouched(model) as before:
            source = RowsByBatch(model, counted, batches, Look(model), before, seed=0, kept=kept)
            results.append((gather(source, "module"), len(calls)))
    assert [count for _, count in results] == [5, 10, 10]
    for other, _ in results[1:]:
        assert torch.equal(other.products.within, results[0][0].products.within)
        assert torch.equal(other.products.across, results[0][0].products.across)


def test_half_precision_is_added_up_in_single() -> None:
    model = Heads().eval().bfloat16()

    def losses(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        return squared(model, batch.bfloat16())

    found = diagnose(model, losses, batches_of(), costs=False).findings.gramian
    exact = diagnose(Heads().eval(), squared, batches_of(), costs=False).findings.gramian
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.05)


# --- what it leaves alone ----------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "values": copy.deepcopy(model.state_dict()),
        "buffers": [id(buffer) for buffer in model.buffers()],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "random": (torch.get_rng_state(), torch.initial_seed(), random.getstate(), str(np.random.get_state())),
        "tags": gs.shared_parameters(model),
    }


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one["values"], other["values"], rtol=0, atol=0)
    torch.testing.assert_close(one["gradients"], other["gradients"], rtol=0, atol=0)
    assert torch.equal(one["random"][0], other["random"][0])
    assert one["random"][1:] == other["random"][1:]
    for name in ("buffers", "modes"):
        assert one[name] == other[name]
    assert list(map(id, one["tags"])) == list(map(id, other["tags"]))


def plain(state: Any) -> list[Tensor]:
    """All numbers in a nest of dicts and lists, texts left out."""
    if isinstance(state, dict | list | tuple):
        return [number for each in (state.values() if isinstance(state, dict) else state) for number in plain(each)]
    return [torch.as_tensor(state)] if isinstance(state, Tensor | float | int) else []


def meddling(model: Heads, batch: Tensor) -> dict[str, Tensor]:
    """A forward pass that changes whatever it can."""
    model.trunk[2].train(not model.trunk[2].training)
    model.trunk[1].running_mean = torch.ones(8)
    batch = batch + torch.randn(()) + random.random() + np.random.rand()
    return squared(model, batch.float())


def test_the_comparison_can_fail() -> None:
    model = Heads()
    before = state_of(model)
    meddling(model, batches_of()[0])
    for name in ("values", "buffers", "modes", "random"):
        with pytest.raises(AssertionError):
            assert_same_state(before, {**before, name: state_of(model)[name]})


@pytest.mark.parametrize("losses", [squared, meddling])
@pytest.mark.parametrize("costs", [False, True])
def test_nothing_is_changed(losses: Callable[..., Any], costs: bool) -> None:
    model = Heads()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters()), gs.GradNorm(), shared=model.trunk)
    optimizer.backward(squared(model, batches_of()[0]))
    optimizer.step()
    model.trunk[0].weight.grad = None
    before, optimized = state_of(model), copy.deepcopy(optimizer.state_dict())
    diagnose(model, losses, iter(batches_of()), costs=costs)
    assert_same_state(before, state_of(model))
    for mine, theirs in zip(plain(optimizer.state_dict()), plain(optimized), strict=True):
        assert torch.equal(mine, theirs)
    optimizer.backward(squared(model, batches_of()[0]))  # the wrapper still owns its parameters


def test_nothing_is_changed_by_an_error() -> None:
    model, batches = Heads(), batches_of()

    def failing(model: Heads, batch: Tensor) -> dict[str, Tensor]:
        found = meddling(model, batch)
        if batch is batches[3]:
            raise KeyError("no such column")
        return found

    before = state_of(model)
    with pytest.raises(KeyError, match="no such column"):
        diagnose(model, failing, batches)
    assert_same_state(before, state_of(model))


def test_gradients_of_leaves_elsewhere_stay() -> None:
    outside = torch.ones(1, requires_grad=True)

    def losses(model: Heads, batch: Tensor) -> dict[str, Tensor]:
        return {name: loss * outside.sum() for name, loss in squared(model, batch).items()}

    diagnose(Heads(), losses, batches_of())
    assert outside.grad is None


def test_the_same_answer_twice() -> None:
    model = Heads()
    first, again = (diagnose(model, meddling, batches_of(), costs=False) for _ in range(2))
    assert torch.equal(first.findings.gramian, again.findings.gramian)
    other = diagnose(model, meddling, batches_of(), seed=100, costs=False)
    assert not torch.equal(first.findings.gramian, other.findings.gramian)
    assert str(first) == str(again)


def test_each_batch_has_its_own_draws() -> None:
    def losses(model: Point, batch: int) -> list[Tensor]:
        return [(torch.randn(50) * model.at).sum() for _ in range(2)]

    found = diagnose(Point(50), losses, [0] * 16, costs=False)
    assert found.trouble == "noise"
    assert found.findings.gramian.abs().max() < 20  # 50, if all were the same draw


def test_no_more_batches_are_taken_than_wanted() -> None:
    taken = []

    def endless() -> Iterator[Tensor]:
        while True:
            taken.append(1)
            yield batches_of(1)[0]

    assert diagnose(Heads(), squared, endless(), max_batches=5, costs=False).batches == 5
    assert len(taken) == 5


# --- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        (lambda model, batch: squared(model, batch)["first"], TypeError, "dict or sequence of scalar tensors, got a"),
        (lambda model, batch: model(batch), ValueError, "'first' must be a floating point scalar"),
        (lambda model, batch: {"first": 1.0}, TypeError, "'first' must be a scalar tensor"),
        (lambda model, batch: {}, ValueError, "at least one loss"),
        (lambda model, batch: {"a": None}, ValueError, "not None"),
        (lambda model, batch: {"a": torch.ones(())}, ValueError, r"\['a'\] without a graph"),
        (
            lambda model, batch: {"a": squared(model, batch)["first"], "b": squared(model, batch)["second"].detach()},
            ValueError,
            r"\['b'\] without a graph",
        ),
        (
            lambda model, batch: {"a": squared(model, batch)["first"], "b": squared(model, batch)["second"] / 0},
            ValueError,
            r"\['b'\] that never are",
        ),
        ("mse", TypeError, "must be called as"),
    ],
)
def test_losses_that_are_none(losses: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        diagnose(Heads(), losses, batches_of())
    assert str(raised.value).startswith("diagnose: ")
    assert "MultiObjectiveOptimizer" not in str(raised.value)


def test_what_the_engine_refuses_is_refused_by_name() -> None:
    model = Point()
    model.at = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="^diagnose: .*real parameters"):
        diagnose(model, lambda model, batch: [model.at.abs().sum(), (model.at - 2).abs().sum()], [0] * 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": []}, ValueError, "at least one batch"),
        ({"batches": 3}, TypeError, "iterable"),
        ({"max_batches": 0}, ValueError, "max_batches"),
        ({"max_batches": 2.5}, ValueError, "max_batches"),
        ({"seed": -1}, ValueError, "seed"),
        ({"scope": "layer"}, ValueError, "scope"),
        ({"model": "resnet"}, TypeError, "model"),
        ({"model": nn.Flatten()}, ValueError, "require a gradient"),
        ({"model": Heads().requires_grad_(False)}, ValueError, "require a gradient"),
    ],
)
def test_arguments_that_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"model": Heads(), "losses": squared, "batches": batches_of(), **options}
    with pytest.raises(error, match=message) as raised:
        diagnose(**arguments)
    assert str(raised.value).startswith("diagnose: ")


def test_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="one process, got 2 ranks"):
        diagnose(Heads(), squared, batches_of())


def test_losses_that_differ_when_asked_again() -> None:
    answers = iter([True] * 4 + [False] * 4)

    def fickle(model: Heads, batch: Tensor) -> dict[str, Tensor | None]:
        return squared(model, batch) if next(answers) else {"first": None}

    model = Heads()
    with untouched(model) as before:
        source = RowsByBatch(model, fickle, batches_of(4), Look(model), before, seed=0, kept=0)
        with pytest.raises(RuntimeError, match="the same losses each time"):
            gather(source, "module")


# --- how it reads ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_six() -> Diagnosis:
    """Six losses with names that do their worst."""
    names = ("price", "$a_1$", "<b>bold</b>", "x" * 70, "a&b, c", "naïve")
    model = Heads(tuple("abcdef"))

    def losses(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        factors = (1, -1, 30, 1, 1, 0.1)
        outputs = model(batch).values()
        return {
            name: (factor * output + batch[:, k % 4]).square().mean()
            for k, (name, output, factor) in enumerate(zip(names, outputs, factors, strict=True))
        }

    return diagnose(model, losses, batches_of(8, 32))


def test_the_text_fits_a_terminal(of_six: Diagnosis) -> None:
    lines = str(of_six).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert of_six.recommendation.code.strip() in [line.strip() for line in lines]
    for word in ("Losses in 8 batches", "price", "5 pairs", "cosine", "Cost of a step", "layers"):
        assert word in str(of_six), word
    assert repr(of_six) == f"<Diagnosis of 6 losses in 8 batches: {of_six.trouble}>"


def test_the_first_line_is_the_verdict() -> None:
    text = str(diagnose(Point(), linear, opposed(), costs=False))
    assert text.splitlines()[0] == "Direction: 'a' and 'b' pull against each other."
    assert "-0.80" in text
    assert "gs.UPGrad()" in text
    few = str(diagnose(Point(), linear, opposed(1), costs=False))
    assert few.splitlines()[0].startswith("Not certain.")
    assert "not certain" in few.splitlines()[-1]


def test_what_the_text_does_not_claim() -> None:
    model, batches = Heads().eval(), batches_of(16)
    assert "beyond chance in any" in str(diagnose(model, squared, batches, costs=False))
    assert "beyond chance" not in str(diagnose(model, squared, batches[:2], costs=False))
    rows = [torch.randn(2, 50, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(16)]
    assert "lost in noise" in str(diagnose(Point(50), linear, rows, costs=False)).splitlines()[-1]
    rows = [torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)] * 4
    assert str(diagnose(Point(), linear, rows, costs=False)).splitlines()[-1].endswith("no conflict")


def test_the_guide_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "docs" / "diagnostics.md").read_text()
    code, shown = (
        re.search(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for kind in ("python", "text")
    )
    assert code is not None
    assert shown is not None
    exec(compile(code[1], "diagnostics.md", "exec"), {"__name__": "guide"})
    printed = [re.sub(r"[-+\d.,e%]+", "0", line) for line in capsys.readouterr().out.split()]
    written = [re.sub(r"[-+\d.,e%]+", "0", line) for line in shown[1].split()]
    assert printed[: printed.index("Cost")] == written[: written.index("Cost")]  # all words, whatever the rounding


def test_many_losses_are_cut() -> None:
    names = tuple(f"loss {k}" for k in range(30))
    rows = torch.eye(30, dtype=torch.float64)

    def losses(model: Point, batch: int) -> dict[str, Tensor]:
        return {name: (row * model.at).sum() for name, row in zip(names, rows, strict=True)}

    text = str(diagnose(Point(30), losses, range(4), costs=False))
    assert len(text.splitlines()) <= 40
    assert "The first 6 losses of 30" in text
    assert "The 5 pairs of 435" in text


def test_a_table(of_six: Diagnosis) -> None:
    pytest.importorskip("pandas")
    frame = of_six.to_pandas()
    assert len(frame) == 15 * (1 + len(of_six.groups))
    whole = frame[frame["group"] == "all"].set_index(["first", "second"])
    assert whole.loc[("price", "$a_1$"), "cosine"] == pytest.approx(float(of_six.findings.cosines[0, 1]), nan_ok=True)
    ratio = whole.loc[("price", "<b>bold</b>"), "length_ratio"]
    assert ratio == pytest.approx(float(of_six.findings.lengths[0] / of_six.findings.lengths[2]), nan_ok=True)
    assert set(frame["group"]) == {"all", *of_six.groups}


def test_pictures(of_six: Diagnosis) -> None:
    pytest.importorskip("matplotlib")
    for figure, rows in ((of_six.draw_pairs(), {"price", "naïve"}), (of_six.draw_layers(), set(of_six.groups))):
        assert rows <= {text.get_text() for axes in figure.axes for text in axes.get_yticklabels()}


def test_the_page(of_six: Diagnosis, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = of_six.report(tmp_path / "deep" / "report.html")
    text = path.read_text()
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert "<b>bold" not in text
    assert text.count("<img") == 2
    for anchor in ("losses", "pairs", "layers", "costs"):
        assert f'<section id="{anchor}">' in text
    small = diagnose(Point(), linear, opposed(1), costs=False).report(tmp_path / "small.html").read_text()
    assert "Not certain." in small
    assert 'id="costs"' not in small


def test_pages_without_pairs(tmp_path: Path) -> None:
    model = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
    found = diagnose(model, lambda model, batch: [part(batch).sum() for part in model], batches_of())
    assert "<img" not in found.report(tmp_path / "nothing.html").read_text()


# --- costs -------------------------------------------------------------------------------------------------------


def test_costs_have_every_method(of_six: Diagnosis) -> None:
    costs = of_six.costs
    assert costs is not None
    gramian, jacobian = gs.available()["gramian"], gs.available()["jacobian"]
    assert set(costs.methods) == {*gramian, *jacobian} - {*gs.available()["scalarizer"]}
    assert all(seconds > 0 for seconds in costs.methods.values())
    assert costs.memory == 6 * sum(of_six.sizes) * 4
    assert costs.passes == {"sdmgrad": 3, "modo": 3}
    assert min(costs.plain, costs.gramian, costs.jacobian) > 0
    assert costs.engine


def test_what_a_method_adds() -> None:
    methods = {"upgrad": 0.5, "graddrop": 1.0, "sdmgrad": 0.0}
    costs = Costs(2.0, 3.0, 5.0, "loop", 8, methods, {"sdmgrad": 3})
    assert costs.extra("upgrad") == 0.75
    assert costs.extra("graddrop") == 2.0
    assert costs.extra("sdmgrad") == 3.5
    with pytest.raises(ValueError, match="one of"):
        costs.extra("sum of squares")


def test_costs_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> Costs:
        raise AssertionError

    monkeypatch.setattr(module, "measure", refuse)
    found = diagnose(Heads(), squared, batches_of(), costs=False)
    assert found.costs is None
    assert "Cost of a step" not in str(found)


# --- known problems, end to end ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "trouble"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], "none"),
        ([[1.0, 0.0], [-0.8, 0.6]], "direction"),
        ([[1.0, 0.0], [0.0, 40.0]], "magnitude"),
        ([[1.0, 0.0], [-32.0, 24.0]], "both"),
        ([[1.0, 0.0], [1.0, 0.0]], "none"),
    ],
)
def test_known_problems(rows: list[list[float]], trouble: str) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.zeros(2, 50, dtype=torch.float64)
    means[:, :2] = torch.tensor(rows)
    spread = 0.05 * means.norm(dim=1, keepdim=True)
    batches = [means + spread * torch.randn(2, 50, generator=generator, dtype=torch.float64) for _ in range(16)]
    assert diagnose(Point(50), linear, batches, costs=False).trouble == trouble


def test_pure_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(3, 50, generator=generator, dtype=torch.float64) for _ in range(16)]
    found = diagnose(Point(50), linear, batches, costs=False)
    assert found.trouble == "noise"
    assert found.recommendation.method == "sum"


def test_two_regressions_of_which_one_is_in_the_thousands() -> None:
    model = Heads(("price", "year"))

    def losses(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        outputs = model(batch)
        return {
            "price": functional.mse_loss(outputs["price"], batch[:, 0]),
            "year": functional.mse_loss(outputs["year"], 1990 + batch[:, 1]),
        }

    found = diagnose(model, losses, batches_of(12, 32), costs=False)
    assert found.trouble == "magnitude"
    assert found.findings.overlooked.tolist() == [True, False]
    assert found.recommendation.method == "lossbalancer"


def test_a_list_of_losses_is_added_up_as_a_list() -> None:
    model, batches = nn.Linear(2, 2), list(torch.eye(2).repeat(4, 1, 1))

    def listed(model: nn.Module, batch: Tensor) -> list[Tensor]:
        return list(model(batch).mean(0))

    def named(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        return dict(zip("ab", listed(model, batch), strict=True))

    for losses, code in ((listed, "sum(losses).backward()"), (named, "sum(losses.values()).backward()")):
        assert diagnose(model, losses, batches, costs=False).recommendation.code.startswith(code)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors take notes from Python 3.11 on")
def test_one_batch_in_the_place_of_several_is_explained() -> None:
    def losses(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        inputs, _, _ = batch
        return {"a": model(inputs).sum()}

    with pytest.raises(ValueError, match="unpack") as caught:
        diagnose(nn.Linear(2, 2), losses, (torch.ones(4, 2), torch.ones(4, 2), torch.ones(4)), costs=False)
    assert "the first of `batches`, a tensor (4, 2)" in caught.value.__notes__[0]
