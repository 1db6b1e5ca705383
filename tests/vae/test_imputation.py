"""Filling in changes missing cells alone and keeps dtypes; draws follow the model and their generator."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gradsurgery.integrations.vae import VAE, Bernoulli, Categorical, Column, Normal, Schema, Table
from gradsurgery.integrations.vae.estimator.seeding import generator_of, seed_of
from gradsurgery.integrations.vae.training.evaluation import ROWS_AT_ONCE
from gradsurgery.integrations.vae.training.imputation import fill_missing, posterior_rows, prior_rows


def filled(series: pd.Series, cell: float, fitted: pd.Series | None = None, **options: Any) -> pd.Series:
    """A column whose missing cells are filled with one number, or code."""
    known = pd.DataFrame({"x": pd.concat([series] * 12, ignore_index=True) if fitted is None else fitted})
    number = fitted is None and pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series)
    schema = Schema.infer(known, {"x": "real"} if number else None)
    if options:
        schema = schema.replace("x", **options)
    schema = Table.from_frame(known, schema).schema
    frame = pd.DataFrame({"x": series})
    return fill_missing(frame, Table.from_new_rows(frame, schema), torch.full((len(series), 1), cell))["x"]


@pytest.mark.parametrize(
    ("series", "cell", "wanted"),
    [
        (pd.Series([0.1, np.nan, 7.25]), 2.5, 2.5),
        (pd.Series([0.1, np.nan, 7.25], dtype="float32"), 2.5, 2.5),
        (pd.Series([2**60 + 1, None, 5, 7], dtype="Int64"), 3.4, 3),
        (pd.Series([True, None, False], dtype="boolean"), 1.0, True),
        (pd.Series([True, None, False], dtype=object), 0.0, False),
        (pd.Series(["a", None, "b"], dtype=object), 1.0, "b"),
        (pd.Series(["a", None, "b"], dtype="string"), 1.0, "b"),
        (pd.Series(pd.Categorical(["lo", None, "hi"], ["lo", "hi"], ordered=True)), 1.0, "hi"),
    ],
)
def test_cells_are_filled_in_the_column_s_dtype(series: pd.Series, cell: float, wanted: object) -> None:
    done = filled(series, cell)
    assert done.dtype == series.dtype
    assert done.iloc[1] == wanted
    observed = series.notna()
    assert done[observed].tolist() == series[observed].tolist()


def test_a_dtype_that_cannot_hold_the_cells_becomes_that_of_the_fitted_table() -> None:
    colours = pd.Series(["red", "blue", "green"] * 5)
    assert filled(pd.Series([np.nan, np.nan]), 2.0, colours).tolist() == ["red", "red"]
    assert filled(pd.Series([None, None], dtype=object), 2.0, pd.Series(np.linspace(1, 9, 30))).dtype == "float64"
    fractions = pd.Series(np.linspace(1, 9, 30))
    assert filled(pd.Series([3, None], dtype="Int64"), 2.5, fractions).tolist() == [3.0, 2.5]
    few = pd.Series(pd.Categorical(["red", None]))
    done = filled(few, 0.0, colours)
    assert done.tolist() == ["red", "blue"]
    assert done.cat.categories.tolist() == ["red", "blue"]


def test_categories_that_are_lacking_come_in_their_order() -> None:
    grades = pd.Series(pd.Categorical(list("abc") * 5, list("abc"), ordered=True))
    done = filled(pd.Series(pd.Categorical(["a", None, "c"], ["a", "c"], ordered=True)), 1.0, grades)
    assert done.tolist() == ["a", "b", "c"]
    assert done.cat.categories.tolist() == ["a", "b", "c"]
    assert done.max() == "c"
    backwards = filled(pd.Series(pd.Categorical(["a", None, "c"], ["c", "a"], ordered=True)), 1.0, grades)
    assert backwards.cat.categories.tolist() == ["c", "a", "b"]


@pytest.mark.parametrize("dtype", ["bool", "boolean"])
def test_booleans_as_numbers_are_filled_with_numbers(dtype: str) -> None:
    fitted = pd.Series([True, False, True] * 5, dtype=dtype)
    done = filled(pd.Series([True, None], dtype="boolean"), 0.25, fitted, kind="real")
    assert done.tolist() == [1.0, 0.25]


def test_integers_that_lack_cells_stay_integers() -> None:
    """A complete column of integers, fitted, then read again with a hole: pandas makes it floats; they stay whole."""
    assert filled(pd.Series([5.0, np.nan]), 7.6, pd.Series(range(-20, 20))).tolist() == [5.0, 8.0]


def test_zeros_that_mean_missing_are_filled() -> None:
    done = filled(pd.Series([0, 4, 90, 4000]), 7.0, kind="positive", zeros="missing")
    assert done.tolist() == [7, 4, 90, 4000]
    assert done.dtype == "int64"


def test_zeros_that_mean_missing_are_not_filled_with_zeros() -> None:
    assert filled(pd.Series([0, 4, 90, 4000]), 0.3, kind="positive", zeros="missing").tolist() == [1, 4, 90, 4000]


def test_a_number_beyond_the_dtype_leaves_it() -> None:
    fitted = pd.Series(np.arange(1, 60) ** 2)
    series = pd.Series([0, 4, 90], dtype="uint8")
    done = filled(series, 300.0, fitted, kind="positive", zeros="missing")
    assert done.tolist() == [300, 4, 90]


def test_index_order_and_frame_are_left_alone() -> None:
    frame = pd.DataFrame({"b": [1.5, None, 9.0] * 4, "a": ["u", None, "v"] * 4}, index=["same", "same", "other"] * 4)
    before = frame.copy()
    table = Table.from_frame(frame, Schema([Column("a", "binary"), Column("b", "real")]))
    done = fill_missing(frame, table, torch.tensor([[1.0, 2.5]]).expand(12, 2))
    assert done.index.equals(frame.index)
    assert list(done) == ["b", "a"]
    assert done.iloc[1].tolist() == [2.5, "v"]
    pd.testing.assert_frame_equal(frame, before)


@pytest.fixture
def vae() -> VAE:
    """A model that knows its rows well: nearly all draws of a row agree."""
    model = VAE(3, [Normal(), Bernoulli(), Categorical(3)], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.to_scale.bias.fill_(-30.0)
        model.heads.bias.copy_(torch.tensor([0.0, 60.0, 40.0, 0.0, 80.0, 0.0]))
    return model.double().eval()


def test_draws_follow_the_model(vae: VAE) -> None:
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).double()
    rows = posterior_rows(vae, features, torch.Generator().manual_seed(2))
    parameters = vae.decode(vae.posterior_mode(features))
    mean = vae.likelihoods[0].mode(parameters[0])
    assert (rows[:, 0] - mean).abs().max() < 1.0
    assert (rows[:, 0] - mean).abs().min() > 0.0
    assert rows[:, 1].tolist() == [1.0] * 50
    assert rows[:, 2].tolist() == [1.0] * 50
    assert rows.dtype == torch.float64


def test_one_generator_one_result(vae: VAE) -> None:
    features = torch.zeros(3, 3).double()
    before = torch.get_rng_state()
    first, same, other = (posterior_rows(vae, features, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    first, same, other = (prior_rows(vae, 4, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_many_rows_are_drawn_in_parts(vae: VAE) -> None:
    assert prior_rows(vae, ROWS_AT_ONCE + 1, torch.Generator()).shape == (ROWS_AT_ONCE + 1, 3)
    assert (
        posterior_rows(vae, torch.zeros(ROWS_AT_ONCE + 1, 3).double(), torch.Generator()).shape[0] == ROWS_AT_ONCE + 1
    )


def test_seeds() -> None:
    assert [seed_of(seed, "X") for seed in (3, np.int64(3))] == [3, 3]
    state = np.random.RandomState(0)
    sequence = [seed_of(state, "X"), seed_of(state, "X")]
    assert sequence[0] != sequence[1]
    assert sequence == [seed_of(again, "X") for again in [np.random.RandomState(0)] for _ in range(2)]
    assert seed_of(None, "X") != seed_of(None, "X")
    assert generator_of(3, "X").initial_seed() == generator_of(3, "X").initial_seed() != 3


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-1, ValueError, r"X: `random_state` must be at least 0 and less than 2\*\*63, got -1"),
        (1 << 63, ValueError, r"must be at least 0 and less than 2\*\*63"),
        (1.5, TypeError, r"must be an integer, a numpy\.random\.RandomState or None, got 1\.5"),
        (True, TypeError, r"got True"),
    ],
)
def test_seeds_that_are_none(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        seed_of(value, "X")  # type: ignore[arg-type]
