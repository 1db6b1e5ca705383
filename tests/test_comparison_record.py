"""Files of comparisons: exact, taken up by the next call, refused where they belong to another one."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.comparison import Comparison, Trial, compare


class Point(nn.Module):
    """A number that starts at random."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn((), dtype=torch.float64))


def quadratics(model: Any, batch: Any = None) -> dict[str, Tensor]:
    return {"low": 1 + (model.x + 1) ** 2, "high": 2 + 3 * (model.x - 1) ** 2}


class Subject:
    """A comparison that counts its models, and may be interrupted."""

    def __init__(self, interrupted_at: int = -1) -> None:
        self.built = 0
        self.interrupted_at = interrupted_at

    def build(self) -> Point:
        self.built += 1
        return Point()

    @torch.no_grad()
    def evaluate(self, model: Any) -> dict[str, float]:
        if self.built == self.interrupted_at:
            raise KeyboardInterrupt
        return {name: float(loss) for name, loss in quadratics(model).items()}

    def compare(self, out: Path | None, **options: Any) -> Comparison:
        usual: dict[str, Any] = {
            "methods": ["mean"], "epochs": 2, "optimizer": torch.optim.SGD, "learning_rates": [0.1, 0.05],
            "static_weights": [[1, 1], [0.5, 1.5]], "seeds": 2, "progress": False,
        }  # fmt: skip
        parts = {"losses": quadratics, "batches": [None] * 5, **options}
        losses, batches = parts.pop("losses"), parts.pop("batches")
        return compare(self.build, losses, batches, self.evaluate, out=out, **{**usual, **parts})


def outcome(comparison: Comparison) -> list[tuple[Any, ...]]:
    """All but the seconds."""
    return [(*trial.key, trial.method, str(trial.metrics), str(trial.curve)) for trial in comparison.trials]


@given(st.lists(st.floats(), min_size=1, max_size=4), st.floats(1e-300, 1e300))
def test_trials_come_back_exactly(numbers: list[float], rate: float) -> None:
    metrics = {f"m{position}": number for position, number in enumerate(numbers)}
    trial = Trial(
        "a", None, 3, rate, tuple(abs(n) for n in numbers if math.isfinite(n)), "A()", metrics, (metrics,), 0.1, 7
    )
    back = Trial.from_json(json.loads(json.dumps(trial.as_json(), allow_nan=False)))
    assert str(back) == str(trial)  # NaN is not equal to itself


def test_a_saved_comparison_is_the_same_when_loaded(tmp_path: Path) -> None:
    comparison = Subject().compare(None)
    loaded = Comparison.load(comparison.save(tmp_path / "folder" / "it.json"))
    assert loaded.trials == comparison.trials
    assert loaded.settings == comparison.settings
    assert str(loaded) == str(comparison)


def test_a_second_call_trains_nothing(tmp_path: Path) -> None:
    out = tmp_path / "it.json"
    first = Subject().compare(out)
    again = Subject()
    second = again.compare(out)
    assert again.built == 1  # to look at it
    assert second.trials == first.trials
    assert Comparison.load(out).trials == first.trials


def test_new_methods_and_seeds_are_trained_alone(tmp_path: Path) -> None:
    out = tmp_path / "it.json"
    first = Subject().compare(out)
    more = Subject()
    second = more.compare(out, methods=["mean", "upgrad"], seeds=3)
    # upgrad: two rates and two further seeds; sum, tuned weights, mean and two single tasks: the third seed, of which
    # the tuned weights need none of their own where they are equal.
    assert more.built - 1 in (4 + 5, 4 + 4)
    assert set(map(repr, first.trials)) < set(map(repr, second.trials))
    fewer = Subject().compare(out, methods=[], seeds=2)
    assert fewer.labels == ("sum", "tuned weights", "single task")
    assert set(Comparison.load(out).labels) == {"sum", "tuned weights", "mean", "upgrad", "single task"}
    assert Comparison.load(out).seeds == (0, 1, 2)


@pytest.mark.parametrize("interrupted_at", [2, 4, 9])
def test_an_interrupted_comparison_goes_on_where_it_was(interrupted_at: int, tmp_path: Path) -> None:
    out = tmp_path / "it.json"
    with pytest.raises(KeyboardInterrupt):
        Subject(interrupted_at).compare(out)
    rest = Subject()
    resumed = rest.compare(out)
    whole = Subject()
    assert outcome(resumed) == outcome(whole.compare(None))
    assert rest.built < whole.built or interrupted_at == 2  # then nothing had come to an end


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "it.json"
    broken = [True]

    class Sometimes(gs.Sum):
        def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
            if broken[0]:
                raise RuntimeError("not today")
            return super().weights(gramian, losses)

    failed = Subject().compare(out, methods={"sometimes": Sometimes})
    assert any(trial.error == "RuntimeError: not today" for trial in failed.trials)
    broken[0] = False
    mended = Subject().compare(out, methods={"sometimes": Sometimes})
    assert all(trial.error is None for trial in mended.trials)
    assert all(trial.error is None for trial in Comparison.load(out).trials)


class Made(gs.UPGrad):
    """A method with a private option, which is no number."""

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self._layers = list(layers)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: gs.CAGrad(0.1), lambda: gs.CAGrad(0.9)),
        (lambda: gs.scalarizers.Constant([1.0, 3.0]), lambda: gs.scalarizers.Constant([5.0, 1.0])),
        (lambda: gs.scalarizers.FAMO(minimum=[0.0, 0.1]), lambda: gs.scalarizers.FAMO(minimum=[0.1, 0.0])),
        (
            lambda: gs.scalarizers.UncertaintyWeighting(initial=0.0),
            lambda: gs.scalarizers.UncertaintyWeighting(initial=1.0),
        ),
        (lambda: Made(["a"]), lambda: Made(["b"])),
    ],
)
def test_a_method_with_other_options_is_trained_anew(
    one: Callable[[], Any], other: Callable[[], Any], tmp_path: Path
) -> None:
    out = tmp_path / "it.json"
    Subject().compare(out, methods={"own": one})
    again = Subject()
    again.compare(out, methods={"own": one})
    assert again.built == 1
    again.compare(out, methods={"own": other})
    assert again.built == 1 + 1 + 3
    assert len([trial for trial in Comparison.load(out).trials if trial.label == "own"]) == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"epochs": 3}, "epochs"),
        ({"learning_rates": [0.1]}, "learning_rates"),
        ({"static_weights": []}, "static_weights"),
        ({"higher_is_better": ["low"]}, "higher_is_better"),
        ({"seeds": [1, 0]}, "seeds"),
        ({"validate": lambda model: {"low": 1.0, "high": 1.0}}, "validated"),
        ({"optimizer": torch.optim.Adam}, "optimizer"),
        ({"optimizer": lambda own, rate: torch.optim.SGD(own, rate, momentum=0.9)}, "optimizer"),
        ({"scheduler": lambda own: torch.optim.lr_scheduler.ExponentialLR(own, 0.5)}, "scheduler"),
        ({"batches": [None] * 6}, "batches"),
        ({"batches": [1] * 5}, "first_batch"),
        (
            {"losses": lambda model, batch: {**quadratics(model), "high": 1.01 * quadratics(model)["high"]}},
            "first_losses",
        ),
    ],
)
def test_files_of_other_comparisons_are_refused(options: dict[str, Any], name: str, tmp_path: Path) -> None:
    out = tmp_path / "it.json"
    Subject().compare(out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=f"`out` must be a new file or hold the same comparison.* with {name} = "):
        Subject().compare(out, **options)
    assert out.read_bytes() == before


def test_rounding_does_not_make_it_another_comparison(tmp_path: Path) -> None:
    out = tmp_path / "it.json"
    Subject().compare(out, static_weights=None)
    again = Subject()
    again.compare(
        out, static_weights=None,
        losses=lambda model, batch: {**quadratics(model), "high": (1 + 1e-9) * quadratics(model)["high"]},
    )  # fmt: skip
    assert again.built == 1


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "it.json"
    Subject().compare(out)
    other = Subject()
    other.build = lambda: nn.ParameterDict({"x": nn.Parameter(torch.randn(()))})  # type: ignore[assignment, method-assign]
    with pytest.raises(ValueError, match="must hold trainings that started from the weights that `build` makes"):
        other.compare(out)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 99, "settings": {}, "trials": []}', '{"format": 1}'])
def test_files_of_something_else_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="`out` must be a file that gs.compare has written"):
        Subject().compare(path)
    with pytest.raises(ValueError, match="Comparison: `path` must be a file that gs.compare has written"):
        Comparison.load(path)
    assert path.read_text() == text
