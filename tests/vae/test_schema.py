"""Kinds are inferred by the documented rules, corrected by hand and kept as JSON."""

import json

import numpy as np
import pandas as pd
import pytest

from gradsurgery.integrations.vae import Column, Schema

REPEATED = 10


def infer(cells: object) -> Column:
    return Schema.infer(pd.DataFrame({"x": cells}))["x"]


@pytest.mark.parametrize(
    ("cells", "kind", "labels"),
    [
        ([True, False, True], "binary", (False, True)),
        ([True, True, True], "binary", (False, True)),
        ([True, None, False], "binary", (False, True)),
        (pd.array([True, None, True], dtype="boolean"), "binary", (False, True)),
        (["yes", "no", None], "binary", ("no", "yes")),
        (["c", "a", "b"], "categorical", ("a", "b", "c")),
        (["only", "only"], "categorical", ("only",)),
        (pd.array(["b", None, "a"], dtype="string"), "binary", ("a", "b")),
        (pd.Categorical(["low", "high"], ["low", "mid", "high"], ordered=True), "ordinal", ("low", "mid", "high")),
        (pd.Categorical(["low", "high"], ["low", "mid", "high"]), "categorical", ("low", "mid", "high")),
        (pd.Categorical(["b", "b"], ["b", "a"]), "binary", ("b", "a")),
        (pd.Categorical([3, 1, 3]), "binary", (1, 3)),
        ([0, 1, 1, 0], "binary", (0, 1)),
        ([2.5, 7.0, None], "binary", (2.5, 7.0)),
        ([1, 2, 5] * REPEATED, "categorical", (1, 2, 5)),
        ([*range(12)] * REPEATED, "categorical", tuple(range(12))),
        ([0.0, 0.5, 1.0, None] * REPEATED, "categorical", (0.0, 0.5, 1.0)),
        ([*range(13)] * REPEATED, "count", None),
        ([3, 1, 2], "count", None),
        (pd.array([3, None, 1, 2], dtype="Int64"), "count", None),
        ([4.0, None, 1.0, 0.0], "count", None),
        ([0, 0, 0], "count", None),
        ([0, 40, 1000], "count", None),
        ([0, 40, 1001], "positive", None),
        ([1984, 2001, 1999], "real", None),
        ([-1, 40, 1001], "real", None),
        ([0.1, 3.0, 2.2], "positive", None),
        (pd.array([0.1, None, 2.2, 3.0], dtype="Float64"), "positive", None),
        (np.array([0.1, 3.0, 2.2], dtype=object), "positive", None),
        (np.array([0.1, None, pd.NA, np.nan, 3, np.float32(2.2)], dtype=object), "positive", None),
        ([0.0, 3.0, 2.2], "real", None),
        ([-1, 3, 7], "real", None),
        ([-0.5, 3.0, 2.2], "real", None),
        ([1.5, 1.5, 1.5], "real", None),
        ([1.75, 2.5, 5.24], "real", None),
        ([1.75, 2.5, 5.25], "positive", None),
    ],
)
def test_kind_is_inferred(cells: object, kind: str, labels: tuple[object, ...] | None) -> None:
    column = infer(cells)
    assert (column.kind, column.labels) == (kind, labels)


def test_shipped_tables_have_sensible_kinds() -> None:
    datasets = pytest.importorskip("statsmodels.datasets")
    kinds = {column.name: column.kind for column in Schema.infer(datasets.randhie.load_pandas().data)}
    assert kinds == {
        "mdvis": "count",
        "lncoins": "categorical",
        "idp": "binary",
        "lpi": "real",
        "fmde": "real",
        "physlm": "categorical",
        "disea": "real",
        "hlthg": "binary",
        "hlthf": "binary",
        "hlthp": "binary",
    }
    kinds = {column.name: column.kind for column in Schema.infer(datasets.anes96.load_pandas().data)}
    scales = dict.fromkeys(("TVnews", "selfLR", "ClinLR", "DoleLR", "PID", "educ"), "categorical")
    others = {"popul": "positive", "age": "count", "income": "count", "vote": "binary", "logpopul": "real"}
    assert kinds == scales | others


@pytest.mark.parametrize("name", ["randhie", "anes96"])
def test_shipped_tables_keep_the_usual_likelihoods(name: str) -> None:
    """The published figures rest on them."""
    datasets = pytest.importorskip("statsmodels.datasets")
    schema = Schema.infer(getattr(datasets, name).load_pandas().data)
    assert [column.likelihood for column in schema] == [None] * len(schema)
    assert "likelihood" not in schema.to_json()


def test_known_kinds_are_not_inferred() -> None:
    frame = pd.DataFrame({"code": range(30), "label": [f"row {n}" for n in range(30)]})
    schema = Schema.infer(frame, kinds={"code": "ordinal", "label": "categorical"})
    assert [column.kind for column in schema] == ["ordinal", "categorical"]
    assert schema["code"].classes == 30


def test_json_round_trip(frame: pd.DataFrame) -> None:
    schema = Schema.infer(frame).replace("income", kind="positive", zeros="missing")
    assert Schema.from_json(schema.to_json()) == schema
    assert [list(entry)[:2] for entry in json.loads(schema.to_json())] == [["name", "type"]] * len(schema)


def test_file_round_trip(tmp_path: object, frame: pd.DataFrame) -> None:
    schema = Schema.infer(frame)
    path = tmp_path / "new" / "schema.json"  # type: ignore[operator]
    schema.save(path)
    assert Schema.load(path) == schema
    assert [file.name for file in path.parent.iterdir()] == ["schema.json"]


def test_plain_entries_are_enough() -> None:
    text = '[{"name": "year", "type": "categorical", "classes": 3}, {"name": "age", "type": "count"}]'
    assert Schema.from_json(text).columns == (Column("year", "categorical", classes=3), Column("age", "count"))


def test_replace_drops_what_no_longer_applies() -> None:
    schema = Schema([Column("x", "ordinal", labels=(1, 2, 3)), Column("y", "positive", zeros="raise")])
    assert schema.replace("x", kind="categorical")["x"].labels == (1, 2, 3)
    assert schema.replace("x", kind="count")["x"] == Column("x", "count")
    assert schema.replace("x", labels=(3, 2, 1))["x"] == Column("x", "ordinal", labels=(3, 2, 1))
    assert schema.replace("y", kind="real")["y"] == Column("y", "real")
    assert schema.replace("y", zeros="shift")["y"].zeros == "shift"
    assert schema.replace("y", kind="positive")["y"].zeros == "raise"
    assert schema["x"].labels == (1, 2, 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Column("x", "integer"), r"Column: `kind` must be one of real, .*, got 'integer' for column 'x'"),
        (
            lambda: Column("x", "real", zeros="shift"),
            r"`zeros` must be None unless .* got 'shift' for real column 'x'",
        ),
        (lambda: Column("x", "positive", zeros="drop"), r"`zeros` must be one of shift, missing, raise, got 'drop'"),
        (
            lambda: Column("x", "count", classes=3),
            r"must be None unless the kind is discrete, got 3 for count column 'x'",
        ),
        (lambda: Column("x", "binary", labels=(1, 2, 3)), r"`labels` must be two for a binary column, got 3"),
        (lambda: Column("x", "binary", classes=3), r"`classes` must be 2 for a binary column, got 3"),
        (lambda: Column("x", "ordinal", labels=(1, 1)), r"`labels` must be distinct and at least one, got \(1, 1\)"),
        (lambda: Column("x", "ordinal", labels=()), r"`labels` must be distinct and at least one, got \(\)"),
        (
            lambda: Column("x", "ordinal", labels=(1, 2), classes=3),
            r"`classes` must equal the number of labels, got 3",
        ),
        (lambda: Column("x", "ordinal", classes=0), r"`classes` must be at least 1, got 0"),
        (lambda: Column.from_entry({"name": "x"}), r"`entry` must have the keys name and type"),
        (lambda: Column.from_entry({"name": "x", "type": "real", "kind": 1}), r"got \['kind', 'name', 'type'\]"),
        (lambda: Schema([]), r"Schema: `columns` must be at least one, got none"),
        (lambda: Schema([Column("x", "real")] * 2), r"`columns` must have distinct names, got x more than once"),
        (lambda: Schema.from_json("{}"), r"`text` must be a JSON list with one object a column, got '\{\}'"),
        (lambda: Schema.from_json("[{"), r"`text` must be JSON, got '\[\{'"),
        (lambda: Schema.infer(pd.DataFrame({"x": [1.0]})), r"`frame` must have at least two rows, got 1"),
        (lambda: Schema.infer(pd.DataFrame()), r"`frame` must have at least one column, got none"),
        (lambda: Schema.infer(pd.DataFrame({"x": []})), r"`frame` must have at least two rows, got 0"),
        (
            lambda: Schema.infer(pd.DataFrame([[1, 2], [3, 4]], columns=["x", "x"])),
            r"`frame` must have distinct names, got x more than once",
        ),
        (lambda: Schema.infer(pd.DataFrame({"x": [1, 2]}), kinds={"y": "real"}), r"`kinds` must name .* got \['y'\]"),
        (lambda: infer([f"row {n}" for n in range(30)]), r"column 'x' must repeat its labels, got 30 different"),
        (lambda: infer([None, None]), r"column 'x' must have at least one observed cell, got 2 missing"),
        (lambda: infer([1.0, np.inf, -np.inf]), r"column 'x' must hold finite numbers, got 2 infinite cells"),
    ],
)
def test_wrong_values_are_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Column(3, "real"), r"Column: `name` must be a string, got 3"),  # type: ignore[arg-type]
        (lambda: Schema.infer([1, 2]), r"`frame` must be a pandas DataFrame, got list"),  # type: ignore[arg-type]
        (lambda: Schema.infer(pd.DataFrame([[1, 2]])), r"`frame` must have strings as column names, got \[0, 1\]"),
        (
            lambda: infer(pd.to_datetime(["2020-01-01", "2021-01-01"])),
            r"column 'x' must hold numbers, booleans or strings, got Timestamp",
        ),
        (lambda: infer(pd.to_timedelta([1, 2], unit="D")), r"column 'x' .* got Timedelta"),
        (lambda: infer([1 + 2j, 3 + 0j]), r"column 'x' .* got complex"),
        (lambda: infer([1, "a"]), r"column 'x' .* got int, str"),
        (lambda: infer([True, 2]), r"column 'x' .* got bool, int"),
        (lambda: infer([[1], [2]]), r"column 'x' .* got list"),
        (lambda: infer(pd.Categorical(pd.to_datetime(["2020-01-01", "2021-01-01"]))), r"column 'x' .* got Timestamp"),
    ],
)
def test_wrong_types_are_named(build: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build()  # type: ignore[operator]


def test_unknown_column() -> None:
    with pytest.raises(KeyError, match=r"`name` must be one of a, b, got 'c'"):
        Schema([Column("a", "real"), Column("b", "real")])["c"]


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        ({"classes": "5"}, TypeError, "`classes` must be an integer, got '5' for column 'x'"),
        ({"classes": 2.5}, TypeError, "`classes` must be an integer, got 2.5 for column 'x'"),
        ({"labels": 5}, TypeError, "`labels` must be a list of strings, numbers or booleans, got 5 for column 'x'"),
        ({"labels": "abc"}, TypeError, "`labels` must be a list of .* got 'abc' for column 'x'"),
        ({"labels": [["a"]]}, TypeError, "`labels` must be a list of .* for column 'x'"),
        (
            {"dtype": "nonsense"},
            ValueError,
            "`dtype` must be the name of a pandas dtype, got 'nonsense' for column 'x'",
        ),
    ],
)
def test_entries_of_the_wrong_type(entry: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Column.from_entry({"name": "x", "type": "categorical", **entry})


def test_labels_may_be_a_list() -> None:
    column = Column("x", "categorical", labels=["a", "b", "c"])
    assert column.labels == ("a", "b", "c")
    assert hash(column) == hash(Column("x", "categorical", labels=("a", "b", "c")))


def test_whole_numbers_beyond_float_precision_are_not_taken_for_codes() -> None:
    frame = pd.DataFrame({"x": [2**60 + 7 * row for row in range(60)]})
    assert Schema.infer(frame)["x"].kind != "categorical"
