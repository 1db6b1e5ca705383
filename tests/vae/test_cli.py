"""The commands do what they say, what they write can be read again, and what goes wrong is said in one line."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

pytest.importorskip("sklearn")

from gradsurgery.integrations.vae import Column, Evaluation, Schema
from gradsurgery.integrations.vae.cli import main
from gradsurgery.integrations.vae.cli.commands import format_errors, format_schema
from gradsurgery.integrations.vae.cli.tables import read_table

ROOT = Path(__file__).parents[2]
QUICK = ["--epochs", "2", "--quiet"]
Run = Callable[..., str]


@pytest.fixture(name="run")
def _run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that has to work, and returns what it prints."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


@pytest.fixture(name="fails")
def _fails(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that has to fail, and returns the one line on standard error."""

    def fails(*arguments: object) -> str:
        capsys.readouterr()
        try:
            status: object = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = stopped.code
        assert status == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return fails


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with every kind of cell, a tenth of them missing, and a model of it."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    factor = rng.normal(size=150)
    frame = pd.DataFrame(
        {
            "age": (40 + 10 * factor).round().astype(int),
            "pay": np.exp(factor).round(3),
            "level": np.clip(factor.round() + 2, 0, 4),
            "town": np.array(['Paris, "Île"', "NY", " x "], dtype=object)[
                (factor > -0.5).astype(int) + (factor > 0.8)
            ],
            "member": factor > 0.2,
            "code": np.clip(factor.round() + 7, 5, 9).astype(int),
        }
    )
    hidden = pd.DataFrame(rng.random(frame.shape) < 0.1, columns=frame.columns)
    frame = frame.astype(object).mask(hidden)
    frame.to_csv(folder / "people.csv", index=False)
    assert main(["fit", str(folder / "people.csv"), *QUICK, "--out", str(folder / "people.gsvae")]) == 0
    return folder


def _cells(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_fit_prints_the_schema_and_the_errors(folder: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "model.gsvae"
    printed = run("fit", folder / "people.csv", *QUICK, "--seed", 3, "--method", "sum", "--out", out)
    assert out.stat().st_size > 1000
    (schema,) = [line.split() for line in printed.splitlines() if line.startswith("town") and "categorical" in line]
    assert schema[1:3] == ["categorical", "categorical"]
    assert schema[3].endswith("%")
    assert "Paris" in " ".join(schema)
    errors = printed.split("test error")[1].splitlines()
    names = [line.split()[0] for line in errors if line and line[-1].isdigit() and "." in line]
    assert names == ["age", "pay", "level", "town", "member", "code", "mean"]
    assert "kept epoch" in printed
    assert str(out) in printed


def test_the_model_is_named_after_the_table(
    folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("fit", folder / "people.csv", *QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["people.gsvae"]


def test_a_schema_is_written_corrected_and_used(folder: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    assert "test error" not in run("fit", folder / "people.csv", "--write-schema", path)
    assert [column.kind for column in Schema.load(path)][:2] == ["count", "positive"]
    Schema.load(path).replace("level", kind="ordinal", likelihood="ordinal").save(path)
    printed = run("fit", folder / "people.csv", *QUICK, "--schema", path, "--out", tmp_path / "m.gsvae")
    assert "level   ordinal      ordinal" in printed
    printed = run("report", folder / "people.csv", *QUICK, "--schema", path, "--out", tmp_path / "r.html")
    assert "<td>ordinal</td>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_impute_fills_the_empty_cells_and_leaves_the_others(folder: Path, run: Run, tmp_path: Path) -> None:
    printed = run("impute", folder / "people.gsvae", folder / "people.csv", "--out", tmp_path / "filled.csv")
    before, after = _cells(folder / "people.csv"), _cells(tmp_path / "filled.csv")
    empty = before == ""
    assert empty.to_numpy().any()
    assert f"{int(empty.to_numpy().sum())} cells filled in" in printed
    assert after[~empty].equals(before[~empty])
    assert not (after == "").to_numpy().any()
    for name in ("level", "town", "member", "code"):  # labels as they are written
        assert set(after[name]) <= set(before[name])
    assert after["age"].str.fullmatch("[0-9]+").all()


def test_columns_may_come_in_another_order(folder: Path, run: Run, tmp_path: Path) -> None:
    turned = _cells(folder / "people.csv").iloc[:20, ::-1]
    turned.to_csv(tmp_path / "turned.csv", index=False)
    run("impute", folder / "people.gsvae", tmp_path / "turned.csv", "--out", tmp_path / "a.csv")
    run("impute", folder / "people.gsvae", folder / "people.csv", "--out", tmp_path / "b.csv")
    found, expected = _cells(tmp_path / "a.csv"), _cells(tmp_path / "b.csv")
    assert list(found.columns) == list(turned.columns)
    labels = ["town", "member", "level", "code", "age"]
    assert found[labels].equals(expected.loc[:19, labels])


def test_several_draws_are_several_files(folder: Path, run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        out = tmp_path / name / "filled.csv"
        run("impute", folder / "people.gsvae", folder / "people.csv", "--draws", 2, "--seed", 4, "--out", out)
        assert sorted(path.name for path in out.parent.iterdir()) == ["filled-1.csv", "filled-2.csv"]
    first, second = (_cells(tmp_path / "a" / f"filled-{m}.csv") for m in (1, 2))
    assert not first.equals(second)
    assert first.equals(_cells(tmp_path / "b" / "filled-1.csv"))


def test_zeros_that_stand_for_missing_are_filled_too(run: Run, tmp_path: Path) -> None:
    pay = np.where(np.arange(60) % 5, 10.0 + np.arange(60) % 7, 0.0)
    pd.DataFrame({"pay": pay, "x": np.arange(60) / 7}).to_csv(tmp_path / "t.csv", index=False)
    Schema.from_json('[{"name": "pay", "type": "positive", "zeros": "missing"}, {"name": "x", "type": "real"}]').save(
        tmp_path / "s.json"
    )
    run("fit", tmp_path / "t.csv", *QUICK, "--schema", tmp_path / "s.json", "--out", tmp_path / "m.gsvae")
    run("impute", tmp_path / "m.gsvae", tmp_path / "t.csv", "--out", tmp_path / "filled.csv")
    found = pd.read_csv(tmp_path / "filled.csv")["pay"].to_numpy()
    assert (found > 0).all()
    assert (found[pay > 0] == pay[pay > 0]).all()


def test_sample_writes_rows_of_the_same_types(folder: Path, run: Run, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("sample", folder / "people.gsvae", "--rows", 300, "--seed", seed, "--out", tmp_path / f"{name}.csv")
    found, table = _cells(tmp_path / "a.csv"), _cells(folder / "people.csv")
    assert found.equals(_cells(tmp_path / "b.csv"))
    assert not found.equals(_cells(tmp_path / "c.csv"))
    assert list(found.columns) == list(table.columns)
    assert len(found) == 300
    for name in ("level", "town", "member", "code"):
        assert set(found[name]) <= set(table[name])
    assert found["age"].str.fullmatch("[0-9]+").all()
    assert (found["pay"].astype(float) > 0).all()
    types = read_table(folder / "people.csv").dtypes
    assert read_table(tmp_path / "a.csv").dtypes["age"].kind == types["age"].kind == "i"


def test_report_of_a_table_and_of_a_model(folder: Path, run: Run, tmp_path: Path) -> None:
    assert "report.html" in run("report", folder / "people.csv", *QUICK, "--out", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "plain sum" in text
    assert "LossBalancer" in text
    assert "people.csv" in text
    run("report", folder / "people.gsvae", "--out", tmp_path / "alone.html")
    assert "Error of every column" not in (tmp_path / "alone.html").read_text(encoding="utf-8")
    run("report", folder / "people.gsvae", "--table", folder / "people.csv", "--out", tmp_path / "beside.html")
    assert "Error of every column" in (tmp_path / "beside.html").read_text(encoding="utf-8")


def test_inputs_are_not_overwritten(folder: Path, fails: Run, tmp_path: Path) -> None:
    table, model = folder / "people.csv", folder / "people.gsvae"
    other = tmp_path / "link.csv"
    other.symlink_to(table)
    before = table.read_bytes(), model.read_bytes()
    for command in (
        ["fit", table, *QUICK, "--out", table],
        ["fit", table, "--write-schema", other],
        ["impute", model, table, "--out", table],
        ["impute", model, table, "--out", model],
        ["sample", model, "--rows", 3, "--out", model],
        ["report", table, *QUICK, "--out", other],
        ["report", model, "--table", table, "--out", table],
    ):
        assert "`--out` must be another file than what is read" in fails(*command)
    assert (table.read_bytes(), model.read_bytes()) == before


def test_what_goes_wrong_is_one_line(folder: Path, fails: Run, tmp_path: Path) -> None:
    table, model = folder / "people.csv", folder / "people.gsvae"
    out = tmp_path / "out.csv"
    wrong = _cells(table)
    wrong.drop(columns="town").to_csv(tmp_path / "less.csv", index=False)
    wrong.assign(town="Rome").to_csv(tmp_path / "unseen.csv", index=False)
    (tmp_path / "broken.csv").write_text("a,b\n1,2\n1,2,3,4\n")
    (tmp_path / "semicolons.csv").write_text("a;b\n" + "1;2,5\n" * 20)  # which pandas reads as one column of fives
    (tmp_path / "tabs.csv").write_text("a\tb\n" + "1\t2\n" * 20)
    (tmp_path / "longer.csv").write_text("a,b\n" + "1,2,3\n" * 20)  # of which pandas makes the first an index
    for command, said in (
        (["fit", tmp_path / "none.csv"], "none.csv"),
        (["fit", tmp_path / "broken.csv"], "must be a CSV file"),
        (["fit", tmp_path / "semicolons.csv"], "commas between its cells, got semicolons"),
        (["fit", tmp_path / "tabs.csv"], "commas between its cells, got tabs"),
        (["fit", tmp_path / "longer.csv"], "as many cells in a row as its header, 2, got more"),
        (["fit", table, "--epochs", 0, "--quiet", "--out", out], "`epochs` must be at least 1"),
        (["fit", table, "--epochs", "many"], "--epochs: invalid int value"),
        (["fit", table, "--method", "best"], "--method: invalid choice"),
        (["fit", table, "--schema", tmp_path / "none.json"], "none.json"),
        (["fit", table, *QUICK, "--out", tmp_path], "must be a file, got the folder"),
        (["impute", table, table, "--out", out], "must be a file that `save` wrote"),
        (["impute", model, tmp_path / "less.csv", "--out", out], "town"),
        (["impute", model, tmp_path / "unseen.csv", "--out", out], "Rome"),
        (["impute", model, table, "--draws", 0, "--out", out], "`--draws` must be at least 1"),
        (["impute", model, table], "--out"),
        (["sample", model, "--rows", 0, "--out", out], "`--rows` must be at least 1"),
        (["report", table, "--method", "sum", *QUICK, "--out", out], "must be other than the plain sum"),
        (["report", table, "--table", table, "--out", tmp_path / "r.html"], "`--table` must go with a model"),
        ([], "COMMAND"),
        (["train"], "invalid choice: 'train'"),
    ):
        assert said in fails(*command)
    assert not out.exists()


@pytest.mark.parametrize("command", [[], ["fit"], ["impute"], ["sample"], ["report"]])
def test_help_says_what_there_is(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: gradsurgery-vae")
    for word in {"fit": ["--schema", "lossbalancer"], "impute": ["--draws"], "sample": ["--rows"]}.get(
        "".join(command), ["report"]
    ):
        assert word in printed


@pytest.mark.skipif(tomllib is None, reason="Python 3.10 has no tomllib")
def test_the_command_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, name = project["project"]["scripts"]["gradsurgery-vae"].split(":")
    assert getattr(importlib.import_module(module), name) is main
    for package in ("cli", "report"):
        assert f"gradsurgery.integrations.vae.{package}" in project["tool"]["setuptools"]["packages"]


def test_reports_of_tables_need_no_estimator(
    folder: Path, run: Run, fails: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradsurgery.integrations.vae.estimator.estimator", None)
    run("report", folder / "people.csv", *QUICK, "--out", tmp_path / "r.html")
    assert "estimator" in fails("sample", folder / "people.gsvae", "--rows", 1, "--out", tmp_path / "s.csv")


def test_it_runs_as_a_module(folder: Path, tmp_path: Path) -> None:
    arguments = ["sample", str(folder / "people.gsvae"), "--rows", "2", "--out", str(tmp_path / "s.csv")]
    command = [sys.executable, "-m", "gradsurgery.integrations.vae", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(_cells(tmp_path / "s.csv")) == 2


def test_lines_stay_short_with_long_names() -> None:
    schema = Schema([Column("weight " * 30, "categorical", labels=["label " * 30, "b", "c"])])
    frame = pd.DataFrame({"weight " * 30: ["b"] * 3})
    text = format_schema(frame, schema) + "\n" + format_errors(Evaluation({"weight " * 30: 0.5}, {}))
    assert max(map(len, text.splitlines())) < 140


def test_whole_numbers_stay_whole_beside_missing_ones(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n,x,f,b\n1,1.0,2,True\n,2.0,,\n-3,,2.5,False\n")
    frame = read_table(path)
    assert [str(dtype) for dtype in frame.dtypes] == ["Int64", "float64", "float64", "object"]
    assert frame["n"].tolist()[2] == -3


def test_columns_can_be_left_out_and_are_carried_along(folder: Path, tmp_path: Path, run: Run, fails: Run) -> None:
    table = pd.read_csv(folder / "people.csv", dtype=str, keep_default_na=False)
    table.insert(1, "id", [f"person-{row:04}" for row in range(len(table))])
    path, model, out = tmp_path / "named.csv", tmp_path / "named.gsvae", tmp_path / "filled.csv"
    table.to_csv(path, index=False)
    assert "'id'" in fails("fit", path, "--out", model)
    run("fit", path, "--drop", "id", "--epochs", "1", "--quiet", "--out", model)
    assert "not the model's, left as they are: id" in run("impute", model, path, "--out", out)
    filled = pd.read_csv(out, dtype=str, keep_default_na=False)
    assert list(filled.columns) == list(table.columns)
    assert filled["id"].equals(table["id"])
    assert (filled != "").all().all()
    assert "`--drop` must name columns, got nobody" in fails("fit", path, "--drop", "nobody")
