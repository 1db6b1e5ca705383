"""The estimator is one of scikit-learn's, and does to tables what it says."""

import copy
import pickle
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

import gradsurgery as gs
from gradsurgery.integrations.vae import Column, Schema, Table
from gradsurgery.integrations.vae.estimator.estimator import HeterogeneousVAE, expected_failed_checks
from gradsurgery.integrations.vae.models.registry import MODELS
from gradsurgery.integrations.vae.training.evaluation import reconstruct

KINDS = {"visits": "count"}


@pytest.fixture(scope="module")
def fitted(frame: pd.DataFrame) -> HeterogeneousVAE:
    return HeterogeneousVAE(KINDS, epochs=3, batch_size=32).fit(frame)


# --- one of scikit-learn's ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_checks_of_scikit_learn(model: Any) -> None:
    estimator = HeterogeneousVAE(model=model, epochs=1)
    expected = dict(expected_failed_checks(estimator))
    results = estimator_checks.check_estimator(
        estimator, expected_failed_checks=expected, on_skip=None, on_fail="raise"
    )
    assert len(results) > 30
    assert {result["check_name"] for result in results if result["status"] == "skipped"} <= {"check_array_api_input"}


FURTHER = (
    "check_transformer_get_feature_names_out", "check_transformer_get_feature_names_out_pandas",
    "check_set_output_transform", "check_set_output_transform_pandas", "check_global_output_transform_pandas",
    "check_n_features_in_after_fitting", "check_dataframe_column_names_consistency",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:X (has|does not have valid) feature names:UserWarning")  # as the checks want
@pytest.mark.parametrize("name", FURTHER)
def test_checks_that_scikit_learn_keeps_to_itself(name: str) -> None:
    estimator = HeterogeneousVAE(epochs=1)
    run = getattr(estimator_checks, name)
    if name in expected_failed_checks(estimator):
        with pytest.raises(AssertionError):
            run("HeterogeneousVAE", estimator)
    else:
        run("HeterogeneousVAE", estimator)


def test_clones_copies_and_pickles(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    wanted = fitted.transform(frame)
    for other in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(other.transform(frame), wanted)
    assert np.array_equal(clone(fitted).fit(frame).transform(frame), wanted)
    with pytest.raises(NotFittedError):
        clone(fitted).transform(frame)


def test_in_a_pipeline(frame: pd.DataFrame) -> None:
    pipeline = make_pipeline(HeterogeneousVAE(epochs=1), StandardScaler()).set_output(transform="pandas")
    latent = pipeline.fit_transform(frame)
    assert list(latent) == [f"heterogeneousvae{d}" for d in range(3)]
    assert latent.index.equals(frame.index)


# --- training -----------------------------------------------------------------------------------------------------


def test_fit_is_that_of_the_package(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    table = Table.from_frame(frame, Schema.infer(frame, kinds=KINDS))
    assert fitted.schema_ == table.schema
    assert fitted.ranges_.tolist() == table.ranges().tolist()
    assert fitted.n_features_in_ == 6
    assert fitted.feature_names_in_.tolist() == list(frame)
    assert fitted.history_ == fitted.run_.history
    assert len(fitted.history_) == 3
    features = fitted.encoding_.encode(table).features
    latent = fitted.run_.model.posterior_mode(features).detach().numpy()
    np.testing.assert_allclose(fitted.transform(frame), latent, rtol=0, atol=1e-5)


def test_random_state(frame: pd.DataFrame) -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]

    def latent(state: Any) -> Any:
        return HeterogeneousVAE(epochs=1, random_state=state).fit(frame).transform(frame)

    assert np.array_equal(latent(3), latent(np.int64(3)))
    assert not np.array_equal(latent(3), latent(4))
    assert np.array_equal(latent(np.random.RandomState(0)), latent(np.random.RandomState(0)))
    assert not np.array_equal(latent(None), latent(None))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # type: ignore[index]


@pytest.mark.parametrize("method", [gs.LossBalancer(), gs.PCGrad(generator=torch.Generator().manual_seed(0))])
def test_an_aggregator_is_copied(frame: pd.DataFrame, method: gs.Aggregator) -> None:
    state = copy.deepcopy(method.state_dict())
    estimator = HeterogeneousVAE(method=method, epochs=1)
    first, again = (estimator.fit(frame).transform(frame) for _ in range(2))
    assert np.array_equal(first, again)
    assert estimator.method is method
    assert str(method.state_dict()) == str(state)
    plain = HeterogeneousVAE(method="sum", epochs=1).fit(frame).transform(frame)
    assert not np.array_equal(first, plain)


def test_an_aggregator_by_name_is_the_same(frame: pd.DataFrame) -> None:
    by_name, by_hand = (
        HeterogeneousVAE(method=method, epochs=1).fit(frame).transform(frame)
        for method in ("lossbalancer", gs.LossBalancer())
    )
    assert np.array_equal(by_name, by_hand)


def test_schema_in_every_form(frame: pd.DataFrame, tmp_path: Any) -> None:
    schema = Schema.infer(frame).replace("visits", kind="count", likelihood="negative_binomial")
    schema.save(tmp_path / "schema.json")
    overrides = {"visits": {"kind": "count", "likelihood": "negative_binomial"}}
    for form in (schema, tmp_path / "schema.json", str(tmp_path / "schema.json"), overrides):
        assert HeterogeneousVAE(form, epochs=1).fit(frame).schema_ == schema


# --- what it says of rows -----------------------------------------------------------------------------------------


def test_a_row_alone_is_the_row_among_others(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    whole = fitted.transform(frame)
    alone = np.concatenate([fitted.transform(frame.iloc[[row]]) for row in range(20)])
    np.testing.assert_allclose(alone, whole[:20], rtol=0, atol=1e-12)


def test_columns_are_found_by_name(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    backwards = frame.iloc[:, ::-1]
    assert np.array_equal(fitted.transform(backwards), fitted.transform(frame))
    assert fitted.score(backwards) == fitted.score(frame)
    pd.testing.assert_frame_equal(fitted.impute(backwards), fitted.impute(frame).iloc[:, ::-1])


def test_only_missing_cells_are_filled(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    before = frame.copy()
    tables = [fitted.impute(frame), *fitted.impute(frame, draws=3)]
    for done in tables:
        assert not done.isna().any().any()
        assert done.dtypes.equals(frame.dtypes)
        assert done.index.equals(frame.index)
        pd.testing.assert_frame_equal(done.where(frame.notna()), frame)
    assert all(not first.equals(second) for first, second in combinations(tables, 2))
    pd.testing.assert_frame_equal(frame, before)


def test_imputations_are_modes_of_the_model(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    table = Table.from_frame(frame, fitted.schema_)
    modes = table.to_frame(fitted.run_.reconstruct("test"))
    done = fitted.impute(frame).iloc[fitted.run_.split.test.numpy()].reset_index(drop=True)
    hidden = frame.isna().iloc[fitted.run_.split.test.numpy()].reset_index(drop=True)
    assert hidden.to_numpy().sum() > 20
    for name in ("smokes", "region", "grade", "visits"):
        assert done[name][hidden[name]].tolist() == modes[name][hidden[name]].tolist()
    np.testing.assert_allclose(done["height"][hidden["height"]], modes["height"][hidden["height"]], rtol=1e-5)


def test_draws_repeat_themselves_by_random_state(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    first, same, other = (fitted.impute(frame, draws=1, random_state=state)[0] for state in (0, None, 1))
    assert first.equals(same)
    assert not first.equals(other)
    assert fitted.sample(5).equals(fitted.sample(5, random_state=0))
    assert not fitted.sample(5).equals(fitted.sample(5, random_state=1))
    state = np.random.RandomState(0)
    assert not fitted.sample(5, random_state=state).equals(fitted.sample(5, random_state=state))


def test_samples_are_rows_of_such_a_table(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    rows = fitted.sample(2000)
    assert rows.dtypes.equals(frame.dtypes)
    assert list(rows) == list(frame)
    assert not rows.isna().any().any()
    assert set(rows["region"]) <= {"north", "south", "west"}
    assert (rows["income"] > 0).all()
    assert len(fitted.sample()) == 1


def test_rows_that_are_all_missing(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    blank = pd.DataFrame(np.nan, index=range(2), columns=frame.columns)
    done = fitted.impute(blank)
    assert done.iloc[0].equals(done.iloc[1])
    assert done["region"][0] in ("north", "south", "west")
    assert fitted.impute(blank, draws=1)[0].notna().all().all()


def test_scores(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    test = frame.iloc[fitted.run_.split.test.numpy()]
    evaluation, columns = fitted.run_.evaluate(), fitted.score_columns(test)
    np.testing.assert_allclose(columns["error"], list(evaluation.errors.values()), rtol=1e-5)
    np.testing.assert_allclose(columns["log_likelihood"], list(evaluation.log_likelihoods.values()), rtol=1e-4)
    assert fitted.score(test) == pytest.approx(-columns["error"].mean(), rel=1e-12)
    assert columns.index.tolist() == list(frame)
    assert columns["kind"].tolist() == ["real", "positive", "count", "binary", "categorical", "ordinal"]
    assert columns["likelihood"].tolist()[2:] == ["poisson", "bernoulli", "categorical", "ordinal"]
    assert np.isnan(fitted.score_columns(test.assign(height=np.nan))["error"]["height"])


def test_errors_are_measured_against_the_fitted_range(frame: pd.DataFrame, fitted: HeterogeneousVAE) -> None:
    """Of one row, whose own range is none."""
    row = frame[frame["height"].notna()].iloc[[0]]
    features = fitted.encoding_.encode(Table.from_new_rows(row, fitted.schema_)).features.double()
    wrong = abs(float(reconstruct(fitted.model_, features)[0, 0]) - row["height"].iloc[0])
    assert fitted.score_columns(row)["error"]["height"] == pytest.approx(wrong / fitted.ranges_[0], rel=1e-12)


def test_arrays(frame: pd.DataFrame) -> None:
    numbers = np.random.default_rng(0).normal(size=(40, 3))
    numbers[::7, 1] = np.nan
    fitted = HeterogeneousVAE(epochs=1).fit(numbers)
    assert fitted.schema_.names == ("x0", "x1", "x2")
    assert not hasattr(fitted, "feature_names_in_")
    done = fitted.impute(numbers)
    assert list(done) == list(fitted.sample()) == ["x0", "x1", "x2"]
    assert done.notna().all().all()
    assert np.array_equal(done.to_numpy()[~np.isnan(numbers)], numbers[~np.isnan(numbers)])
    with pytest.raises(ValueError, match=r"X has 2 features, but HeterogeneousVAE is expecting 3"):
        fitted.transform(numbers[:, :2])
    labels = frame[["region", "height"]].to_numpy(dtype=object)
    assert HeterogeneousVAE(epochs=1).fit(labels).schema_["x0"].kind == "categorical"


def test_samples_of_arrays_are_in_their_order() -> None:
    numbers = np.random.default_rng(0).normal([0, 1000], size=(40, 2))
    backwards = Schema([Column("x1", "real"), Column("x0", "real")])
    rows = HeterogeneousVAE(backwards, epochs=1).fit(numbers).sample(5)
    assert list(rows) == ["x0", "x1"]
    assert (rows["x1"] > 500).all()


def test_grids_of_numpy_integers(frame: pd.DataFrame) -> None:
    grid = {"epochs": np.arange(1, 2), "batch_size": np.array([32]), "latent_size": np.array([1, 2])}
    search = GridSearchCV(HeterogeneousVAE(KINDS), grid, cv=2, error_score="raise").fit(frame[["height", "visits"]])
    assert search.best_params_["latent_size"] in (1, 2)


def test_frames_without_names_keep_their_own(frame: pd.DataFrame) -> None:
    unnamed = frame.set_axis(range(10, 16), axis=1)
    fitted = HeterogeneousVAE({"x2": "count"}, epochs=1).fit(unnamed)
    assert fitted.schema_.names == ("x0", "x1", "x2", "x3", "x4", "x5")
    assert list(fitted.impute(unnamed)) == list(range(10, 16))
