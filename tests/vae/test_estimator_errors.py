"""What the estimator refuses, and what it says then."""

import importlib
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

from gradsurgery.integrations.vae.estimator.estimator import HeterogeneousVAE


@pytest.fixture(scope="module")
def fitted(frame: pd.DataFrame) -> HeterogeneousVAE:
    return HeterogeneousVAE({"visits": "count"}, epochs=1).fit(frame)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"region": "east"}, ValueError, r"column 'region' must hold its 3 labels only, got 'east'"),
        ({"grade": "f"}, ValueError, r"ordinal column 'grade' must hold its 5 labels only, got 'f'"),
        ({"height": "tall"}, TypeError, r"column 'height' must hold numbers, got strings such as 'tall'"),
        ({"height": pd.Timestamp(0)}, TypeError, r"column 'height' must hold numbers, booleans or strings"),
        ({"height": np.inf}, ValueError, r"column 'height' must hold finite numbers, got 240 infinite cells"),
        (
            {"height": 1e300},
            ValueError,
            r"column 'height' must hold numbers that float32 can, once scaled, got 1e\+300",
        ),
        ({"income": -1.0}, ValueError, r"positive column 'income' must hold positive numbers, got -1"),
        ({"income": 0.0}, ValueError, r"positive column 'income' must hold numbers above 0, got zeros that"),
        ({"visits": 1.5}, ValueError, r"count column 'visits' must hold whole numbers from 0 on"),
        ({"extra": 1}, ValueError, r"Feature names unseen at fit time:\n- extra"),
    ],
)
@pytest.mark.parametrize("method", ["transform", "impute", "score", "score_columns"])
def test_rows_that_do_not_fit(
    frame: pd.DataFrame,
    fitted: HeterogeneousVAE,
    method: str,
    change: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        getattr(fitted, method)(frame.assign(**change))


def test_columns_that_are_missing_or_renamed(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    with pytest.raises(ValueError, match=r"Feature names seen at fit time, yet now missing:\n- grade\n- height"):
        fitted.transform(frame.drop(columns=["height", "grade"]))
    with pytest.raises(ValueError, match=r"unseen at fit time:\n- size\n.*missing:\n- height"):
        fitted.transform(frame.rename(columns={"height": "size"}))
    with pytest.raises(ValueError, match=r"`X` must have distinct names, got height more than once"):
        fitted.transform(pd.concat([frame, frame["height"]], axis=1))
    with pytest.raises(ValueError, match=r"`X` must have at least one row, got n_samples = 0"):
        fitted.transform(frame.iloc[:0])


@pytest.mark.parametrize("method", ["transform", "impute", "score", "score_columns", "sample", "save"])
def test_unfitted_use(frame: pd.DataFrame, method: str) -> None:
    argument: Any = {"sample": 3, "save": "nowhere.zip"}.get(method, frame)
    with pytest.raises(NotFittedError):
        getattr(HeterogeneousVAE(), method)(argument)


@pytest.mark.parametrize(
    ("options", "change", "error", "message"),
    [
        (
            {},
            {"height": np.nan},
            ValueError,
            r"column 'height' must have at least one observed cell, got 240 missing",
        ),
        ({}, {"height": np.inf}, ValueError, r"column 'height' must hold finite numbers"),
        ({}, {"height": pd.Timestamp(0)}, TypeError, r"column 'height' must hold numbers, booleans or strings"),
        ({"method": "mean field"}, {}, ValueError, r"`methods` must be among .*, got 'mean field'"),
        ({"method": 3}, {}, TypeError, r"HeterogeneousVAE: `method` must be the name of a method or an aggregator"),
        ({"latent_size": 2.5}, {}, TypeError, r"HeterogeneousVAE: `latent_size` must be an integer, got 2\.5"),
        ({"hidden_size": 0}, {}, ValueError, r"HeterogeneousVAE: `hidden_size` must be at least 1, got 0"),
        ({"model": "gan"}, {}, ValueError, r"`model` must be among vae, .*, got 'gan'"),
        ({"epochs": 0}, {}, ValueError, r"`epochs` must be at least 1, got 0"),
        ({"random_state": -1}, {}, ValueError, r"HeterogeneousVAE: `random_state` must be at least 0"),
        ({"schema": 3}, {}, TypeError, r"HeterogeneousVAE: `schema` must be a Schema, the path of a schema file"),
        ({"schema": {"size": "real"}}, {}, ValueError, r"`schema` must name columns of the table, got \['size'\]"),
        ({"schema": {"visits": "many"}}, {}, ValueError, r"`kind` must be one of .*, got 'many' for column 'visits'"),
        ({"schema": {"visits": {"type": "count"}}}, {}, ValueError, r"no options but kind, labels.*, got \['type'\]"),
    ],
)
def test_what_cannot_be_fitted(
    frame: pd.DataFrame, options: dict[str, Any], change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        HeterogeneousVAE(**{"epochs": 1, **options}).fit(frame.assign(**change))


def test_masked_arrays_are_refused(fitted: HeterogeneousVAE) -> None:
    """NumPy drops the mask where it makes an array of them: what was hidden would be used."""
    masked = np.ma.masked_array(np.ones((20, 6)), mask=np.eye(20, 6))
    for use in (HeterogeneousVAE().fit, fitted.transform):
        with pytest.raises(TypeError, match=r"HeterogeneousVAE: `X` must mark missing cells by NaN, got a masked"):
            use(masked)


def test_too_few_rows(frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"HeterogeneousVAE: `X` must have at least 10 rows, got 9 sample\(s\)"):
        HeterogeneousVAE().fit(frame.iloc[:9])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda vae, frame: vae.impute(frame, draws=0), ValueError, r"`draws` must be at least 1, got 0"),
        (lambda vae, frame: vae.impute(frame, draws=True), TypeError, r"`draws` must be an integer, got True"),
        (
            lambda vae, frame: vae.impute(frame, draws=1, random_state="a"),
            TypeError,
            r"`random_state` must be an int",
        ),
        (lambda vae, frame: vae.sample(0), ValueError, r"`n` must be at least 1, got 0"),
        (lambda vae, frame: vae.sample(2.0), TypeError, r"`n` must be an integer, got 2\.0"),
    ],
)
def test_arguments(
    frame: pd.DataFrame, fitted: HeterogeneousVAE, call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(fitted, frame)


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "gradsurgery.integrations.vae.estimator.estimator"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r'scikit-learn must be installed.*pip install "gradsurgery\[vae\]"'):
        importlib.import_module(name)
