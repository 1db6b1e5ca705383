"""One command trains, prints, and writes numbers and a figure that are there whole or not at all."""

import json
import math
import sys
from pathlib import Path

import pandas as pd
import pytest

from gradsurgery.integrations.vae import Run, Schema, Table, draw_comparison, fit, save_figure
from gradsurgery.integrations.vae.cli import main
from gradsurgery.integrations.vae.cli.tables import read_table
from gradsurgery.whole_file import write_whole


@pytest.fixture(name="csv")
def _csv(tmp_path: Path, frame: pd.DataFrame) -> Path:
    path = tmp_path / "small" / "people.csv"
    path.parent.mkdir()
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(name="runs", scope="module")
def _runs(table: Table) -> dict[str, Run]:
    return {name: fit(table, epochs=1, seed=0) for name in ("first", "second")}


def test_numbers_and_figure(csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = tmp_path / "schema.json"
    Schema.infer(pd.read_csv(csv)).replace("grade", kind="ordinal").save(schema)
    out = tmp_path / "out"
    options = ["compare", str(csv), "--schema", str(schema), "--epochs", "2", "--seed", "3", "--out", str(out)]
    assert main([*options, "--methods", "gradnorm", "sum"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["figure.png", "results.json"]
    assert (out / "figure.png").read_bytes()[:4] == b"\x89PNG"
    results = json.loads((out / "results.json").read_text())
    assert list(results["methods"]) == ["gradnorm", "sum"]
    assert [entry["type"] for entry in results["schema"]][-1] == "ordinal"
    for method in results["methods"].values():
        assert len(method["losses"]) == len(method["validation_errors"]) == 2
        assert method["error"] == pytest.approx(sum(method["errors"].values()) / 6)
        assert len(method["log_likelihoods"]) == 6
    printed = capsys.readouterr().out
    for name in ("height", "income", "visits", "smokes", "region", "grade"):
        (line,) = [line for line in printed.splitlines() if line.startswith(name)]
        assert f"{results['methods']['gradnorm']['errors'][name]:.4f}" in line
        assert f"{results['methods']['sum']['log_likelihoods'][name]:.3f}" in line


def test_numbers_are_reproducible(csv: Path, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        assert main(["compare", str(csv), "--methods", "sum", "--epochs", "1", "--out", str(tmp_path / name)]) == 0
        method = json.loads((tmp_path / name / "results.json").read_text())["methods"]["sum"]
        found.append({key: value for key, value in method.items() if key != "seconds"})
    assert found[0] == found[1]


def test_seeds_are_trained_together(csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["compare", str(csv), "--methods", "sum", "upgrad", "--epochs", "2"]
    assert main([*options, "--seed", "1", "--seeds", "3", "--out", str(tmp_path / "all")]) == 0
    results = json.loads((tmp_path / "all" / "results.json").read_text())
    assert (results["settings"]["seed"], results["settings"]["seeds"]) == (1, 3)
    printed = capsys.readouterr().out
    assert main([*options, "--seed", "2", "--out", str(tmp_path / "one")]) == 0
    alone = json.loads((tmp_path / "one" / "results.json").read_text())
    assert "seeds" not in alone["settings"]
    for name, method in results["methods"].items():
        seeds = method["seeds"]
        assert len(seeds) == 3
        assert method["error"] == sorted(seed["error"] for seed in seeds)[1]
        assert method["log_likelihood"] == sorted(seed["log_likelihood"] for seed in seeds)[1]
        assert method["errors"]["income"] == sorted(seed["errors"]["income"] for seed in seeds)[1]
        assert method["seconds"] > 0
        assert "seeds" not in alone["methods"][name]
        assert seeds[1]["losses"] == pytest.approx(alone["methods"][name]["losses"], rel=1e-4)
        assert seeds[1]["best_epoch"] == alone["methods"][name]["best_epoch"]
        (line,) = [line for line in printed.splitlines() if line.startswith("mean")]
        assert f"{method['error']:.4f}" in line
    assert (tmp_path / "all" / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_outputs_go_under_runs(csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(csv), "--methods", "sum", "--epochs", "1"]) == 0
    assert (tmp_path / "runs" / "vae" / "small-people" / "results.json").exists()


def test_shipped_tables() -> None:
    pytest.importorskip("statsmodels")
    assert read_table("randhie").shape == (20190, 10)
    assert read_table("anes96").shape == (944, 11)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("x,y\n1,2\n", "`frame` must have at least 10 rows, got 1"),
        ("x\n" + "1\n" * 5, "`frame` must have at least 10 rows, got 5"),
        ("x\n" + "inf\n1\n" * 6, "column 'x' must hold finite numbers, got 6 infinite cells"),
    ],
)
def test_bad_tables_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cells: str, message: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(cells)
    out = tmp_path / "out"
    assert main(["compare", str(path), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_missing_files_and_wrong_options_are_reported(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
    assert main(["compare", str(csv), "--epochs", "0"]) == 2
    assert "`epochs` must be at least 1" in capsys.readouterr().err
    assert main(["compare", str(csv), "--seeds", "0"]) == 2
    assert "`seeds` must be different and at least one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--methods", "unknown"])


def test_figures_show_every_column(runs: dict[str, Run], tmp_path: Path) -> None:
    figure = draw_comparison(runs, "a title")
    axes = figure.axes
    titles = [panel.get_title() for panel in axes]
    assert [f"{column.name} ({column.kind})" for column in runs["first"].table.schema] == [
        title for title in titles if title
    ][-6:]
    assert [text.get_text() for text in axes[0].get_xticklabels()] == [*runs["first"].table.schema.names, "mean"]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["first", "second"]
    heights = [bar.get_height() for bar in axes[0].containers[0]]
    evaluation = runs["first"].evaluate()
    assert heights == pytest.approx([*evaluation.errors.values(), evaluation.error])
    save_figure(figure, tmp_path / "new" / "figure.svg")
    assert (tmp_path / "new" / "figure.svg").read_text().startswith("<?xml")


def test_figures_need_matplotlib(
    runs: dict[str, Run],
    csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'Run: pip install "gradsurgery\[plots\]"'):
        draw_comparison(runs)
    out = tmp_path / "out"
    assert main(["compare", str(csv), "--methods", "sum", "--epochs", "1", "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == ["results.json"]
    assert "no figure" in capsys.readouterr().err


def test_failed_writes_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text("old")

    def fail(file: Path) -> None:
        file.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("numbers.json", "old")]
    write_whole(path, lambda file: file.write_text("new"))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("numbers.json", "new")]


def test_json_has_no_nan(csv: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(csv)
    rows = Table.from_frame(frame).split(0).test.tolist()
    frame.loc[rows, "income"] = math.nan
    frame.to_csv(csv, index=False)
    out = tmp_path / "out"
    assert main(["compare", str(csv), "--methods", "sum", "--epochs", "1", "--out", str(out)]) == 0
    method = json.loads((out / "results.json").read_text())["methods"]["sum"]
    assert method["errors"]["income"] is None
    assert math.isfinite(method["error"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,a,b\n" + "1,2,3\n" * 12, "must have distinct names, got a more than once"),
        (",a\n" + "1,2\n" * 12, "must name every column, got none for column 1"),
        ("", "must be a CSV file in UTF-8 with a header row"),
        ("a,b\n1,2\n1,2,3,4\n", "must be a CSV file in UTF-8 with a header row"),
    ],
)
def test_files_that_are_no_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(text)
    assert main(["compare", str(path), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    path = tmp_path / "table.csv"
    path.write_text("a,b\n" + "".join(f"{row % 7},{row * 1.5}\n" for row in range(40)))
    assert main(["compare", str(path), "--epochs", "1", "--out", str(taken)]) == 2
    assert "error:" in (printed := capsys.readouterr()).err
    assert "epoch" not in printed.err
    assert taken.read_text() == "mine"


def test_names_are_not_read_as_formulas(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("$\\frac$,b\n" + "".join(f"{row % 7},{row * 1.5}\n" for row in range(40)))
    assert main(["compare", str(path), "--epochs", "1", "--methods", "sum", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "figure.png").stat().st_size > 1000
