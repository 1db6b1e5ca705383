"""Tables keep every cell through encoding and decoding, and refuse what contradicts the schema."""

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings

from gradsurgery.integrations.vae import Column, Schema, Table

ROWS = 12
FINITE = st.floats(-1e9, 1e9, allow_nan=False)


def column_of(elements: st.SearchStrategy[object], dtype: object, missing: bool) -> st.SearchStrategy[pd.Series]:
    """Series of 12 cells of which at least one is observed."""
    cell = st.one_of(st.none(), elements) if missing else elements
    cells = st.lists(cell, min_size=ROWS, max_size=ROWS).filter(lambda drawn: any(c is not None for c in drawn))
    return cells.map(lambda drawn: pd.Series(drawn, dtype=dtype))


WORDS = st.sampled_from(["", "a", "ä", "north west", "1"])
COLUMNS = st.one_of(
    column_of(FINITE, "float64", missing=True),
    column_of(FINITE, "float64", missing=False),
    column_of(st.integers(-(2**40), 2**40), "int64", missing=False),
    column_of(st.integers(-(2**40), 2**40), "Int64", missing=True),
    column_of(st.integers(0, 200), "uint8", missing=False),
    column_of(FINITE.filter(lambda x: x == 0 or abs(x) > 1e-30).map(np.float32), "float32", missing=True),
    column_of(st.booleans(), "bool", missing=False),
    column_of(st.booleans(), "boolean", missing=True),
    column_of(WORDS, "object", missing=False),
    column_of(WORDS, "string", missing=True),
    column_of(WORDS, pd.CategoricalDtype(["1", "a", "ä", "", "north west", "unused"]), missing=True),
    column_of(WORDS, pd.CategoricalDtype(["1", "a", "ä", "", "north west"], ordered=True), missing=True),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(COLUMNS, min_size=1, max_size=4))
def test_decoding_is_the_inverse_of_encoding(columns: list[pd.Series]) -> None:
    frame = pd.DataFrame({f"column {d}": column for d, column in enumerate(columns)})
    table = Table.from_frame(frame)
    pd.testing.assert_frame_equal(table.to_frame(), frame)
    again = Table.from_frame(frame, Schema.from_json(table.schema.to_json()))
    torch.testing.assert_close(again.values, table.values, rtol=0, atol=0, equal_nan=True)


def test_round_trip_comparison_can_fail(table: Table, frame: pd.DataFrame) -> None:
    changed = table.values.clone()
    changed[0, 0] += 1
    with pytest.raises(AssertionError):
        pd.testing.assert_frame_equal(table.to_frame(changed), frame)


def test_object_booleans_and_labels_keep_their_dtype() -> None:
    frame = pd.DataFrame({"flag": [True, None, False, True] * 3, "word": ["a", None, "b", "c"] * 3}, dtype=object)
    decoded = Table.from_frame(frame).to_frame()
    assert decoded.dtypes.tolist() == frame.dtypes.tolist()
    assert decoded.isna().equals(frame.isna())
    assert decoded[frame.notna()].equals(frame[frame.notna()].where(frame.notna(), np.nan))


def test_codes_may_start_anywhere_and_have_gaps() -> None:
    frame = pd.DataFrame({"code": [7, 3, 9, 3] * 3})
    table = Table.from_frame(frame, Schema.from_json('[{"name": "code", "type": "ordinal", "classes": 3}]'))
    assert table.schema["code"].labels == (3, 7, 9)
    assert table.values[:4, 0].tolist() == [1, 0, 2, 0]
    assert table.to_frame().equals(frame)


def test_columns_follow_the_schema(frame: pd.DataFrame) -> None:
    schema = Schema(reversed(Schema.infer(frame).columns))
    assert list(Table.from_frame(frame, schema).to_frame()) == list(reversed(frame.columns))


def test_reconstructions_are_decoded_in_the_columns_dtype() -> None:
    frame = pd.DataFrame(
        {"whole": [-3, 5, 8, 9] * 3, "visits": [0.0, 4.0, 5.0, 19.0] * 3, "size": [0.5, 1.5, 2.5, 4.5] * 3}
    )
    table = Table.from_frame(frame)
    decoded = table.to_frame(torch.tensor([[2.6, 3.7, 1.25]]))
    assert decoded.iloc[0].tolist() == [3, 4.0, 1.25]
    assert decoded.dtypes.tolist() == frame.dtypes.tolist()


def test_missing_integers_become_nullable() -> None:
    frame = pd.DataFrame({"amount": [0, 4, 5, 19] * 3, "whole": [0, 1, 0, 1] * 3, "flag": [True, False] * 6})
    schema = Schema.infer(frame).replace("amount", kind="positive", zeros="missing")
    table = Table.from_frame(frame, schema)
    assert table.observed[:4, 0].tolist() == [False, True, True, True]
    assert str(table.to_frame()["amount"].dtype) == "Int64"
    decoded = table.to_frame(torch.full((1, 3), torch.nan))
    assert [str(dtype) for dtype in decoded.dtypes] == ["Int64", "Int64", "boolean"]


def test_split_is_a_partition_by_seed(table: Table) -> None:
    parts = table.split(seed=3)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [168, 24, 48]
    together = torch.cat([parts.train, parts.validation, parts.test])
    assert sorted(together.tolist()) == list(range(240))
    assert torch.equal(parts.train, table.split(seed=3).train)
    assert not torch.equal(parts.train, table.split(seed=4).train)


def test_smallest_table_has_rows_in_every_part() -> None:
    parts = Table.from_frame(pd.DataFrame({"x": range(10)})).split()
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [7, 1, 2]


def test_ranges_are_those_of_observed_cells() -> None:
    frame = pd.DataFrame({"x": [None, -2.0, 3.5, 0.5, 1.5, 2.5] * 2, "constant": [4.5] * 12})
    assert Table.from_frame(frame).ranges().tolist() == [5.5, 1.0]


def test_csv(tmp_path: object) -> None:
    path = tmp_path / "table.csv"  # type: ignore[operator]
    path.write_text("size,colour\n" + "1.5,red\n,blue\n3.5,\n2.5,red\n" * 3)
    table = Table.read_csv(path)
    assert table.schema.names == ("size", "colour")
    assert table.observed[:3].tolist() == [[True, True], [False, True], [True, False]]


def test_integers_beyond_their_dtype_go_to_its_end() -> None:
    frame = pd.DataFrame(
        {"small": pd.array(range(-100, 20, 10), dtype="int8"), "large": [2**62, -(2**62), 5] * 4}, dtype=None
    )
    frame["unsigned"] = np.arange(12, dtype="uint64") * 10**6
    decoded = Table.from_frame(frame).to_frame(torch.tensor([[1e3, 1e30, -1.0], [-1e3, -1e30, 1e30]]).double())
    assert decoded.dtypes.tolist() == frame.dtypes.tolist()
    assert decoded["small"].tolist() == [127, -128]
    assert decoded["large"].tolist() == [2**63 - 1024, -(2**63)]
    assert decoded["unsigned"].tolist() == [0, 2**64 - 2048]


def test_new_rows_are_encoded_as_those_of_the_table(frame: pd.DataFrame, table: Table) -> None:
    shuffled = frame.iloc[[5, 3], ::-1]
    new = Table.from_new_rows(shuffled, table.schema, table.ranges())
    assert new.schema == table.schema
    torch.testing.assert_close(new.values, table.values[[5, 3]], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(new.ranges(), table.ranges())
    assert not torch.equal(Table.from_new_rows(shuffled, table.schema).ranges(), table.ranges())


@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA])
def test_new_rows_may_be_all_missing(table: Table, nothing: object) -> None:
    blank = pd.DataFrame({name: [nothing] for name in table.schema.names}, dtype=object)
    assert Table.from_new_rows(blank, table.schema).values.isnan().all()
    assert Table.from_new_rows(blank.astype(object).iloc[:0], table.schema).values.shape == (0, 6)


def test_new_rows_take_numbers_as_any_dtype() -> None:
    schema = Table.from_frame(pd.DataFrame({"code": [7, 3, 9] * 5, "flag": [True, False, True] * 5})).schema
    floats = pd.DataFrame({"code": [9.0, None], "flag": pd.array([None, True], dtype="boolean")})
    assert Table.from_new_rows(floats, schema).values[:, 0].tolist()[0] == 2
    assert Table.from_new_rows(floats, schema).observed.tolist() == [[True, False], [False, True]]


def test_new_rows_follow_the_policy_for_zeros() -> None:
    frame = pd.DataFrame({"amount": [0.0, 4.5, 90.0] * 5})
    shift = Table.from_frame(frame, Schema([Column("amount", "positive")])).schema
    missing = Table.from_frame(frame, Schema([Column("amount", "positive", zeros="missing")])).schema
    zero = pd.DataFrame({"amount": [0.0]})
    assert Table.from_new_rows(zero, shift).values.tolist() == [[0.0]]
    assert not Table.from_new_rows(zero, missing).observed.any()


NEW_ROWS = pd.DataFrame(
    {"size": np.linspace(1.5, 30.0, 15), "visits": range(15), "colour": ["red", "blue", "green"] * 5}
)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"colour": "pink"}, ValueError, r"column 'colour' must hold its 3 labels only, got 'pink'"),
        ({"colour": 1}, ValueError, r"column 'colour' must hold its 3 labels only, got 1"),
        ({"colour": pd.Timestamp(0)}, TypeError, r"column 'colour' must hold numbers, booleans or strings"),
        ({"colour": np.inf}, ValueError, r"column 'colour' must hold finite numbers"),
        ({"size": "big"}, TypeError, r"column 'size' must hold numbers, got strings such as 'big'"),
        ({"size": np.inf}, ValueError, r"column 'size' must hold finite numbers, got 15 infinite"),
        ({"size": -1.0}, ValueError, r"positive column 'size' must hold positive numbers, got -1"),
        ({"visits": 0.5}, ValueError, r"count column 'visits' must hold whole numbers from 0 on, got 0\.5"),
        ({"other": 1}, ValueError, r"got \[\] that the table lacks and lacks \['other'\]"),
    ],
)
def test_new_rows_that_contradict_the_schema(change: dict[str, object], error: type[Exception], message: str) -> None:
    schema = Table.from_frame(NEW_ROWS).schema
    Table.from_new_rows(NEW_ROWS, schema)
    with pytest.raises(error, match=message):
        Table.from_new_rows(NEW_ROWS.assign(**change), schema)


def one(kind: str, cells: list[object], **options: object) -> Table:
    frame = pd.DataFrame({"x": (cells * 10)[: 10 * len(cells)]})
    return Table.from_frame(frame, Schema([Column("x", kind, **options)]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: one("positive", [1.0, -2.0]),
            r"Table: positive column 'x' must hold positive numbers, got -2 \(10 such",
        ),
        (lambda: one("positive", [0.0, 0.0]), r"positive column 'x' must hold a number above 0, got zeros only"),
        (lambda: one("positive", [0.0, 1.0], zeros="raise"), r"positive column 'x' must hold numbers above 0, got 0"),
        (lambda: one("count", [1, -1]), r"count column 'x' must hold whole numbers from 0 on, got -1"),
        (lambda: one("count", [1.5, 1]), r"count column 'x' must hold whole numbers from 0 on, got 1\.5"),
        (lambda: one("binary", [1, 2, 3]), r"binary column 'x' must hold 2 different values, got 3: 1, 2, 3\."),
        (lambda: one("binary", [1, 1]), r"binary column 'x' must hold 2 different values, got 1: 1\."),
        (
            lambda: one("categorical", [1, 2, 3], classes=2),
            r"categorical column 'x' must hold 2 different values, got 3",
        ),
        (lambda: one("ordinal", ["a", "b", "c"], labels=("a", "b")), r"must hold its 2 labels only, got 'c'"),
        (lambda: one("real", [np.inf, 1.0]), r"column 'x' must hold finite numbers, got 10 infinite cells"),
        (lambda: one("ordinal", [np.inf, 1.0]), r"column 'x' must hold finite numbers, got 10 infinite cells"),
        (lambda: one("real", [None, None]), r"column 'x' must have at least one observed cell, got 20 missing"),
        (lambda: Table.from_frame(pd.DataFrame({"x": [1, 2, 3]})), r"`frame` must have at least 10 rows, got 3"),
        (lambda: Table.from_frame(pd.DataFrame({"x": []})), r"`frame` must have at least 10 rows, got 0"),
        (
            lambda: Table.from_frame(pd.DataFrame({"x": range(10)}), Schema([Column("y", "real")])),
            r"`schema` must have the columns of the table, got \['y'\] that the table lacks and lacks \['x'\]",
        ),
        (
            lambda: one("real", [1.0, 2.0]).to_frame(torch.zeros(3, 2)),
            r"`values` must have shape \(rows, 1\), got \(3, 2\)",
        ),
    ],
)
def test_contradictions_are_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["real", "positive", "count"])
def test_numbers_are_asked_for(kind: str) -> None:
    with pytest.raises(TypeError, match=r"column 'x' must hold numbers, got strings such as 'a'"):
        one(kind, ["a", "b"])


@pytest.mark.parametrize("first", ["0,1,2", "7,9,8"])
def test_rows_longer_than_the_header_are_refused(tmp_path: Path, first: str) -> None:
    """Else pandas takes their first cells, counted up or not, for an index and shifts all other columns."""
    path = tmp_path / "long.csv"
    path.write_text("x,p,c\n" + "".join(f"{number},1.5,2,a\n" for number in first.split(",")))
    with pytest.raises(ValueError, match=r"`path` must have as many cells in a row as its header, 3, got more"):
        Table.read_csv(path)
