"""Comparisons as a table, a DataFrame, pictures and a page; on trainings written by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support import load_example

import gradsurgery as gs
from gradsurgery.comparison import Comparison, Trial

SETTINGS: dict[str, Any] = {
    "epochs": 2, "learning_rates": [0.1], "static_weights": [], "losses": ["depth", "labels"],
    "metrics": ["depth", "labels"], "tasks": {"depth": "depth", "labels": "labels"}, "higher_is_better": ["labels"],
    "validated": True, "seeds": [0, 1],
}  # fmt: skip


def trial(label: str, seed: int, depth: float, labels: float, task: str | None = None, **changed: Any) -> Trial:
    metrics = {name: value for name, value in (("depth", depth), ("labels", labels)) if task in (None, name)}
    usual: dict[str, Any] = {
        "label": label, "task": task, "seed": seed, "learning_rate": 0.1, "weights": None, "method": "?",
        "metrics": metrics, "curve": (metrics, metrics), "seconds": 2.0, "steps": 10,
    }  # fmt: skip
    return Trial(**{**usual, **changed})


COMPARISON = Comparison(
    SETTINGS,
    [
        trial("sum", 0, 1.0, 80.0),
        trial("sum", 1, 1.2, 82.0),
        trial("upgrad", 0, 0.9, 78.0, seconds=5.0),
        trial("upgrad", 1, 0.7, 80.0, seconds=6.0),
        trial("<b>$x$", 0, 2.0, 81.0),
        trial("<b>$x$", 1, math.nan, math.nan, metrics={}, curve=(), steps=0, error="RuntimeError: out of luck"),
        trial("single task", 0, 1.0, 0.0, "depth"),
        trial("single task", 1, 1.0, 0.0, "depth"),
        trial("single task", 0, 0.0, 90.0, "labels", seconds=1.0),
        trial("single task", 1, 0.0, 70.0, "labels", seconds=1.0),
    ],
)


def test_rows_by_hand() -> None:
    single, upgrad, plain, lost = COMPARISON.rows
    assert [row.label for row in COMPARISON.rows] == ["single task", "upgrad", "sum", "<b>$x$"]
    assert (single.means, single.delta, single.cost) == ({"depth": 1.0, "labels": 80.0}, 0.0, pytest.approx(1.5))
    assert single.delta_deviation == pytest.approx(100 * math.sqrt(2) * (10 / 80) / 2)
    assert plain.delta == pytest.approx(100 * (0.1 - 1 / 80) / 2)
    assert plain.deviations["depth"] == pytest.approx(math.sqrt(0.02))
    assert (plain.rank, upgrad.rank, lost.rank) == (1.5, 1.5, 3.0)
    assert (plain.cost, upgrad.cost) == (1.0, pytest.approx(2.75))
    assert (lost.finished, lost.means["depth"], lost.error) == (1, 2.0, "RuntimeError: out of luck")
    assert math.isnan(lost.delta)


def test_the_table() -> None:
    lines = str(COMPARISON).splitlines()
    assert lines[0].split("  ")[0] == ""
    assert " ".join(lines[0].split()) == "learning rate depth labels ↑ Δ% single task mean rank time"
    cells = {line.split("  ")[0]: line.split() for line in lines[2:6]}
    assert " ".join(cells["sum"][1:]) == "0.1 1.1 ± 0.14 81 ± 1.4 +4.4 ± 6.2 1.5 ± 0.35 1.00"
    assert cells["<b>$x$ *"][-1] == "1.00"
    text = " ".join(" ".join(lines[7:]).split())
    assert "Metrics after 2 epochs, mean ± standard deviation of 2 seeds; lower is better, but for ↑." in text
    assert "* <b>$x$: 1 of 2 seeds came to an end (RuntimeError: out of luck)." in text
    assert max(map(len, lines)) <= max(80, len(lines[1]))


def test_one_seed_has_no_spread() -> None:
    alone = Comparison({**SETTINGS, "seeds": [0]}, [own for own in COMPARISON.trials if own.seed == 0])
    assert "±" not in str(alone).splitlines()[3]
    assert "one seed" in str(alone)
    assert all(math.isnan(row.delta_deviation) for row in alone.rows)


def test_a_comparison_that_goes_on_says_so() -> None:
    growing = Comparison(SETTINGS, [own for own in COMPARISON.trials if (own.label, own.seed) != ("upgrad", 1)])
    assert "* upgrad: 1 of 2 seeds came to an end (not all are trained yet)." in str(growing)
    assert growing.is_incomplete("upgrad")
    assert not growing.is_incomplete("single task")


def test_one_that_never_arrives_is_not_said_to_be_on_its_way() -> None:
    nothing = {"depth": math.nan, "labels": 1.0}
    lost = [trial("sum", 0, 1.0, 80.0), trial("mgda", 0, math.nan, 1.0, metrics=nothing, curve=(nothing, nothing))]
    comparison = Comparison({**SETTINGS, "seeds": [0, 1]}, [*lost, trial("sum", 1, 1.0, 80.0)])
    assert not comparison.is_incomplete("mgda")
    assert "* mgda: 0 of 2 seeds came to an end (not all metrics are finite)." in str(comparison)


def test_no_change_has_no_minus() -> None:
    trials = [trial("sum", 0, 1.0, 80.0), trial("mgda", 0, 1.0 - 1e-9, 80.0)]
    assert "-0.0" not in str(Comparison({**SETTINGS, "seeds": [0]}, trials))


def test_to_pandas() -> None:
    pytest.importorskip("pandas")
    frame = COMPARISON.to_pandas()
    assert frame.loc["upgrad", "depth"] == pytest.approx(0.8)
    assert frame.loc["upgrad", "depth std"] == pytest.approx(math.sqrt(0.02))
    assert frame.loc["sum", "mean rank"] == 1.5
    assert list(frame.index) == [row.label for row in COMPARISON.rows]


def test_better_is_to_the_right_in_the_trade_off() -> None:
    pytest.importorskip("matplotlib")
    figure = COMPARISON.draw_trade_off(title="ours")
    panels = {axes.get_title(loc="left"): [bar.get_width() for bar in axes.patches] for axes in figure.axes}
    assert panels["upgrad"] == pytest.approx([100 * 0.3 / 1.1, -100 * 2 / 81])
    assert "sum" not in panels


def test_the_front_knows_which_way_is_better() -> None:
    pytest.importorskip("matplotlib")
    figure = COMPARISON.draw_front("depth", "labels")
    front = figure.axes[0].lines[-1].get_xydata()
    # The mean of "<b>$x$" is over the seed that came to an end, and 81 is no better than the sum's.
    assert front.tolist() == [[pytest.approx(0.8), 79.0], [1.0, 80.0], [pytest.approx(1.1), 81.0]]
    with pytest.raises(ValueError, match=r"`second` must be one of \['depth', 'labels'\], got 'lables'"):
        COMPARISON.draw_front("depth", "lables")


def test_the_page_holds_table_notes_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = COMPARISON.report(tmp_path / "new" / "report.html")
    html = path.read_text(encoding="utf-8")
    assert html.count("<img") == 2
    assert "&lt;b&gt;$x$ *" in html
    assert "<b>$x$" not in html
    assert "+4.4 ± 6.2" in html
    assert "out of luck" in html
    assert not any(marker in html for marker in ("<script", "http://", "https://"))


# --- the example -------------------------------------------------------------------------------------------------


def test_no_digit_is_both_trained_on_and_tested_with(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    example = load_example("multidigit")
    pools = []

    def spied(images: torch.Tensor, labels: torch.Tensor, count: int, generator: torch.Generator) -> None:
        pools.append({image.numpy().tobytes() for image in images})

    monkeypatch.setattr(example, "pairs_of", spied)
    example.datasets()
    train, validation, test = pools
    assert min(map(len, pools)) >= 290
    assert not train & validation
    assert not (train | validation) & test


def test_the_right_digit_lies_over_the_left_one() -> None:
    pytest.importorskip("sklearn")
    example = load_example("multidigit")
    images = torch.stack([torch.full((8, 8), 0.25), torch.full((8, 8), 0.75)])
    images[:, 0, 0] = 0.0
    pairs = example.pairs_of(images, torch.tensor([3, 7]), 50, torch.Generator().manual_seed(0))
    canvas, left, right = pairs.tensors
    assert canvas.shape == (50, 1, example.SIDE, example.SIDE)
    for own, first, second in zip(canvas[:, 0], left.tolist(), right.tolist(), strict=True):
        ink = {3: 0.25, 7: 0.75}
        assert (own == ink[second]).sum() >= 63  # whole, but for its corner
        if first != second:
            assert 20 <= (own == ink[first]).sum() < 63  # partly covered


def test_the_example_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    example = load_example("multidigit")
    monkeypatch.setattr(example, "SIZES", {"train": 128, "validation": 32, "test": 32})
    out = tmp_path / "multidigit.png"
    example.main(["--epochs", "1", "--seeds", "1", "--methods", "pcgrad", "--out", str(out)])
    assert "pcgrad" in capsys.readouterr().out
    assert out.stat().st_size > 10_000
    assert Comparison.load(out.with_suffix(".json")).labels == ("sum", "tuned weights", "pcgrad", "single task")
    assert callable(gs.compare)
