"""The command of the experiment: what it trains, keeps, skips and tells."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gradsurgery.integrations.vae import Schema, Table, fit_seeds
from gradsurgery.integrations.vae.experiment import corrected_t_test, training
from gradsurgery.integrations.vae.experiment.__main__ import main
from gradsurgery.integrations.vae.experiment.options import parse, plan
from gradsurgery.integrations.vae.experiment.record import finished
from gradsurgery.integrations.vae.experiment.tables import load_tables
from gradsurgery.integrations.vae.stacked import loop as stacked_loop
from gradsurgery.integrations.vae.training.methods import build_method

QUICK = ("--epochs", "2", "--seeds", "2", "--batch-size", "64")


@pytest.fixture(name="csv")
def _csv(tmp_path: Path, frame: pd.DataFrame) -> Path:
    path = tmp_path / "data" / "people.csv"
    path.parent.mkdir()
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, frame: pd.DataFrame) -> Path:
    folder = tmp_path / "data" / "clinic"
    folder.mkdir(parents=True)
    frame.to_csv(folder / "data.csv", index=False)
    Schema.infer(frame).replace("visits", kind="count").save(folder / "schema.json")
    return folder


@pytest.fixture(name="out")
def _out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def cells(out: Path) -> dict[str, dict[str, Any]]:
    """The records by the names of the cells, without the digests."""
    files = [path for path in out.glob("*.json") if path.name != "summary.json"]
    return {re.sub(r"-[0-9a-f]{10}$", "", path.stem): json.loads(path.read_text()) for path in files}


def test_folders_and_files(csv: Path, folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data", folder, csv, "--method", "sum", "upgrad", "--model", "vae", *QUICK, "--out", out) == 0
    found = cells(out)
    assert sorted(found) == ["clinic-vae-sum", "clinic-vae-upgrad", "people-vae-sum", "people-vae-upgrad"]
    assert not list(out.glob("*.checkpoint"))
    kinds = [{entry["name"]: entry["type"] for entry in found[name]["schema"]} for name in sorted(found)]
    assert (kinds[0]["visits"], kinds[2]["visits"]) == ("count", "categorical")
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("vae    upgrad")]
    for name in ("clinic", "people"):
        assert f"{found[f'{name}-vae-upgrad']['error']:.4f}" in line
    page = (out / "summary.md").read_text()
    assert "## clinic" in page
    assert f"| {found['people-vae-sum']['errors']['income']:.4f} |" in page


def test_what_is_kept(folder: Path, out: Path) -> None:
    assert run("--data", folder, "--method", "lossbalancer", *QUICK, "--out", out) == 0
    record = cells(out)["clinic-vae-lossbalancer"]
    table = load_tables([folder])["clinic"]
    runs = fit_seeds(table, lambda seed: build_method("lossbalancer", seed), seeds=range(2), epochs=2, batch_size=64)
    assert record["status"] == "finished"
    assert record["settings"]["seeds"] == [0, 1]
    assert record["settings"]["method_options"].startswith("LossBalancer(beta=")
    assert (record["threads"], record["device"], record["rows"]) == (1, "cpu", 240)
    assert record["seconds"] > 0
    assert {"python", "torch", "gradsurgery"} <= set(record["versions"])
    for seed, (own, trained) in enumerate(zip(record["seeds"], runs, strict=True)):
        evaluation = trained.evaluate()
        assert own["seed"] == seed
        assert own["rows"] == {"train": 168, "validation": 24, "test": 48}
        assert (own["error"], own["errors"]) == (evaluation.error, evaluation.errors)
        assert own["log_likelihoods"] == evaluation.log_likelihoods
        assert own["best_epoch"] == trained.best_epoch
        assert own["losses"] == [epoch.loss for epoch in trained.history]
        assert own["validation_errors"] == [epoch.validation_error for epoch in trained.history]
    assert record["error"] == sum(own["error"] for own in record["seeds"]) / 2
    assert record["errors"]["grade"] == sum(own["errors"]["grade"] for own in record["seeds"]) / 2


def test_finished_cells_are_skipped_and_others_are_not_mixed_up(
    folder: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train = training.fit_seeds

    def count(*arguments: Any, **options: Any) -> Any:
        trained.append(options["title"])
        return train(*arguments, **options)

    monkeypatch.setattr(training, "fit_seeds", count)
    shared = ["--data", folder, "--method", "sum", "--out", out]
    assert run(*shared, *QUICK) == 0
    before = {path: path.read_bytes() for path in out.glob("clinic-*")}
    assert run(*shared, *QUICK) == 0
    assert len(trained) == 1
    assert "finished before" in capsys.readouterr().out
    for options in (["--epochs", "1"], ["--seeds", "3"], ["--batch-size", "32"], ["--hidden"], ["--hidden", "0.3"]):
        assert run(*shared, *QUICK, *options) == 0
    assert len(trained) == 6
    assert run(*shared, *QUICK, "--no-rescale") == 0  # to the plain sum it makes no difference
    assert len(trained) == 6
    frame = pd.read_csv(folder / "data.csv")
    frame.loc[0, "visits"] = 3.0 if frame.loc[0, "visits"] != 3 else 4.0
    frame.to_csv(folder / "data.csv", index=False)
    assert run(*shared, *QUICK) == 0
    assert len(trained) == 7
    assert len(list(out.glob("clinic-*"))) == 7
    assert {path: path.read_bytes() for path in before} == before


def test_comparison_with_the_plain_sum(folder: Path, out: Path) -> None:
    """Also with one that is not asked for this time."""
    shared = ["--data", folder, "--epochs", "3", "--seeds", "3", "--out", out]
    assert run(*shared, "--method", "sum") == 0
    assert run(*shared, "--method", "upgrad") == 0
    (row,) = json.loads((out / "summary.json").read_text())
    found = cells(out)
    errors, baseline = ([own["error"] for own in found[f"clinic-vae-{name}"]["seeds"]] for name in ("upgrad", "sum"))
    test = corrected_t_test(errors, baseline, test_rows=48, train_rows=168)
    assert row["against_sum"]["p_value"] == test.p_value
    assert row["against_sum"]["difference"] == test.difference
    assert set(row["against_sum"]["columns"]) == set(row["errors"])
    assert run(*shared, "--method", "upgrad", "--hidden") == 0
    (other,) = json.loads((out / "summary.json").read_text())
    assert "against_sum" not in other


def test_imputation(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data", folder, "--method", "sum", *QUICK, "--hidden", "--out", out) == 0
    record = cells(out)["clinic-vae-sum"]
    assert record["settings"]["hidden"] == 0.2
    assert record["seeds"][0]["errors"] == record["seeds"][0]["errors_of_hidden_cells"]
    assert "error of hidden test cells (20% hidden)" in capsys.readouterr().out


def test_a_cell_that_fails_stops_no_other(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = training.fit_seeds

    def diverge(*arguments: Any, **options: Any) -> Any:
        return train(*arguments, **{**options, "learning_rate": 1e18 if "sum" in options["title"] else 1e-3})

    command = ["--data", folder, "--method", "sum", "upgrad", *QUICK, "--out", out]
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit_seeds", diverge)
        assert run(*command) == 1
    found = cells(out)
    assert found["clinic-vae-sum"]["status"] == "failed"
    assert "the loss must stay finite" in found["clinic-vae-sum"]["reason"]
    assert found["clinic-vae-upgrad"]["status"] == "finished"
    printed = capsys.readouterr()
    assert "clinic vae sum: failed: fit_seeds: the loss must stay finite" in printed.err
    assert re.search(r"vae +sum +failed", printed.out)
    assert "| failed |" in (out / "summary.md").read_text()
    for path in out.glob("*.checkpoint"):  # of another learning rate
        path.unlink()
    assert run(*command) == 0, "it is tried again"


def test_interrupted(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", folder, "--method", "sum", "upgrad", "--epochs", "3", "--seeds", "2", "--out", out]
    epoch = stacked_loop.StackedLoop.train_epoch

    def interrupt(self: stacked_loop.StackedLoop) -> list[float]:
        if self.epoch == 1:
            raise KeyboardInterrupt
        return epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(stacked_loop.StackedLoop, "train_epoch", interrupt)
        assert run(*command) == 130
    assert "give the same command to go on" in capsys.readouterr().err
    assert [path.name.split("-")[2] for path in out.glob("*.checkpoint")] == ["sum"]
    assert not cells(out)
    assert run(*command) == 0
    assert not list(out.glob("*.checkpoint"))
    assert run(*command[:-1], out.with_name("whole")) == 0
    for name, record in cells(out.with_name("whole")).items():
        assert cells(out)[name]["seeds"] == record["seeds"]


def test_quick(folder: Path, tmp_path: Path) -> None:
    options = parse(["--data", str(folder), "--quick", "--model", "vae", "iwae"])
    (first, *_, last) = plan(options, load_tables(options.data, quick=True))
    assert (first.epochs, first.seeds, last.model) == (3, (0, 1), "iwae")
    assert parse(["--data", "x", "--quick", "--epochs", "9", "--seeds", "4"]).epochs == 9
    pd.DataFrame({"x": range(2500)}).to_csv(tmp_path / "long.csv", index=False)
    assert [len(load_tables([tmp_path / "long.csv"], quick=quick)["long"]) for quick in (True, False)] == [2000, 2500]


def test_published_settings(folder: Path) -> None:
    options = parse(["--data", str(folder), "--model", "hivae", "vae"])
    tables = load_tables(options.data)
    planned = {cell.model: cell for cell in plan(options, tables)}
    assert (planned["hivae"].epochs, planned["hivae"].batch_size) == (2000, 1000)
    assert (planned["vae"].epochs, planned["vae"].batch_size, len(planned["vae"].seeds)) == (2000, 128, 5)
    long = Table(tables["clinic"].schema, tables["clinic"].values.repeat(50, 1))
    assert [cell.epochs for cell in plan(options, {"long": long})] == [2000, 2000, 400, 400]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "`--data` must be a CSV file or a folder with data.csv and schema.json"),
        (["--data", "FOLDER/schema.json"], "`--data` must be a CSV file or a folder with data.csv and schema.json"),
        (["--data", "FOLDER", "FOLDER"], "`--data` must have distinct names, got 'clinic' twice"),
        (["--data", "FOLDER", "--out", "FOLDER/data.csv"], "error: "),
    ],
)
def test_mistakes_are_told_before_training(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(*(argument.replace("FOLDER", str(folder)) for argument in arguments)) == 2
    assert message in (printed := capsys.readouterr().err)
    assert "epoch/s" not in printed


@pytest.mark.parametrize(
    "arguments",
    [["--model", "gan"], ["--method", "magic"], ["--seeds", "0"], ["--epochs", "x"], ["--hidden", "1.5"]],
)
def test_options_out_of_range(folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--data", folder, *arguments)
    assert f"error: argument {arguments[0]}: " in capsys.readouterr().err  # the usage names them all


def test_files_of_something_else_are_not_touched(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--data", folder, "--method", "sum", *QUICK, "--out", out]
    assert run(*command) == 0
    (path,) = out.glob("clinic-*")
    path.write_text("{")
    assert run(*command) == 2
    assert "the cell that the file is named after, got something else" in capsys.readouterr().err
    assert path.read_text() == "{"


def test_cells_without_anything_to_measure(folder: Path, out: Path) -> None:
    """A column of which no test row has a cell."""
    frame = pd.read_csv(folder / "data.csv")
    frame.loc[Table.from_frame(frame).split(0).test.tolist(), "income"] = math.nan
    frame.to_csv(folder / "data.csv", index=False)
    assert run("--data", folder, "--method", "sum", "upgrad", *QUICK, "--out", out) == 0
    record = cells(out)["clinic-vae-sum"]
    assert record["seeds"][0]["errors"]["income"] is None
    assert record["errors"]["income"] == record["seeds"][1]["errors"]["income"]
    assert json.loads((out / "summary.json").read_text())[1]["against_sum"]["columns"]["income"] == {}


@pytest.mark.parametrize(("errors", "expected"), [([0.1, math.inf, 0.3], 0.3), ([0.1, math.nan, 0.3], 0.2)])
def test_a_seed_that_errs_without_bound_counts(folder: Path, errors: list[float], expected: float) -> None:
    """Unlike one in which there was nothing to measure."""
    (cell,) = plan(parse(["--data", str(folder), "--method", "sum"]), load_tables([folder]))
    seeds = [
        {"error": error, "errors": {"x": error}, "log_likelihood": -error, "log_likelihoods": {"x": -error}}
        for error in errors
    ]
    record = finished(cell, seeds, 1.0)
    assert record["error"] == record["errors"]["x"] == -record["log_likelihood"] == pytest.approx(expected)
    assert record["seeds"][1]["error"] is None
    assert finished(cell, seeds[1:2], 1.0)["error"] is None


def test_one_seed_and_strange_names(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my table.v2.csv"
    pd.DataFrame({"a|b": range(40), "two\nlines": [0.5, 1.5, 4.0, 9.25] * 10, "c, d": ["x", "y"] * 20}).to_csv(
        path, index=False
    )
    command = ["--data", path, "--method", "sum", "upgrad", "--epochs", "1", "--seeds", "1", "--out", out]
    assert run(*command) == 0
    assert sorted(cells(out)) == ["my table.v2-vae-sum", "my table.v2-vae-upgrad"]
    page = (out / "summary.md").read_text()
    assert re.search(r"^\| a\\\|b \| [0-9.]+ \| [0-9.]+ \|$", page, re.MULTILINE)
    assert re.search(r"^\| two lines \| [0-9.]+ \| [0-9.]+ \|$", page, re.MULTILINE)
    assert "Test error of a single seed" in capsys.readouterr().out


def test_a_folder_that_may_not_be_written_to(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told before the training, not after it."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != out)
    assert run("--data", folder, *QUICK, "--out", out) == 2
    assert f"`--out` must be a folder that may be written to, got {out}" in (printed := capsys.readouterr().err)
    assert "epoch/s" not in printed
