"""A saved estimator comes back bit by bit, and what is none is refused."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import gradsurgery as gs
from gradsurgery.integrations.vae import Column, Schema
from gradsurgery.integrations.vae.estimator.archive import DOCUMENT, write_archive
from gradsurgery.integrations.vae.estimator.estimator import HeterogeneousVAE
from gradsurgery.integrations.vae.models.registry import MODELS
from gradsurgery.integrations.vae.tables.column import FITTING


@pytest.fixture(scope="module")
def fitted(frame: pd.DataFrame) -> HeterogeneousVAE:
    return HeterogeneousVAE({"visits": "count"}, epochs=2).fit(frame)


@pytest.fixture
def saved(fitted: HeterogeneousVAE, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def assert_same(first: HeterogeneousVAE, second: HeterogeneousVAE, rows: Any) -> None:
    """Every number of both, bit by bit."""
    assert np.array_equal(first.transform(rows), second.transform(rows))
    pd.testing.assert_frame_equal(first.impute(rows), second.impute(rows), check_exact=True)
    for one, other in zip(first.impute(rows, draws=2), second.impute(rows, draws=2), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    pd.testing.assert_frame_equal(first.sample(30), second.sample(30), check_exact=True)
    pd.testing.assert_frame_equal(first.score_columns(rows), second.score_columns(rows), check_exact=True)
    assert first.score(rows) == second.score(rows)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_comes_back(frame: pd.DataFrame, tmp_path: Path, model: Any) -> None:
    fitted = HeterogeneousVAE(model=model, epochs=2, latent_size=2, method="gradnorm+graddrop").fit(frame)
    fitted.save(tmp_path / "model.zip")
    loaded = HeterogeneousVAE.load(tmp_path / "model.zip")
    assert_same(fitted, loaded, frame)
    assert loaded.get_params() == fitted.get_params()
    assert loaded.schema_ == fitted.schema_
    assert loaded.history_ == fitted.history_
    assert np.array_equal(loaded.ranges_, fitted.ranges_)
    assert loaded.feature_names_in_.tolist() == fitted.feature_names_in_.tolist()
    assert loaded.n_features_in_ == 6
    assert vars(loaded).keys() == vars(fitted).keys() - {"run_"}
    assert vars(loaded.encoding_).keys() == vars(fitted.encoding_).keys()
    assert loaded.get_feature_names_out().tolist() == fitted.get_feature_names_out().tolist()


def test_the_comparison_can_fail(frame: pd.DataFrame, fitted: HeterogeneousVAE, saved: Path) -> None:
    loaded = HeterogeneousVAE.load(saved)
    next(iter(loaded.model_.state_dict().values())).mul_(1 + 1e-15)
    with pytest.raises(AssertionError):
        assert_same(fitted, loaded, frame)


def test_every_likelihood_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = {
        "real": rng.normal(size=60), "positive": rng.lognormal(size=60), "count": rng.poisson(3, 60),
        "binary": rng.random(60) < 0.5, "categorical": rng.choice(list("abc"), 60), "ordinal": rng.integers(0, 4, 60),
    }  # fmt: skip
    frame, columns = pd.DataFrame(index=range(60)), []
    for kind, names in FITTING.items():
        for name in names:
            own = rng.random(60) if name == "beta" else cells[kind]
            zeros = name.startswith("hurdle") or name == "lognormal"
            frame[f"{kind} {name}"] = np.where(np.arange(60) < 12, 0, own) if zeros else own
            columns.append(Column(f"{kind} {name}", kind, likelihood=name))
    fitted = HeterogeneousVAE(Schema(columns), epochs=1).fit(frame)
    fitted.save(tmp_path / "model.zip")
    loaded = HeterogeneousVAE.load(tmp_path / "model.zip")
    assert_same(fitted, loaded, frame)
    assert loaded.schema == Schema(columns)


def test_arrays_come_back(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(20, 2))
    fitted = HeterogeneousVAE(epochs=1).fit(numbers)
    fitted.save(tmp_path / "model.zip")
    loaded = HeterogeneousVAE.load(tmp_path / "model.zip")
    assert_same(fitted, loaded, numbers)
    assert not hasattr(loaded, "feature_names_in_")


def test_a_loaded_one_is_fitted_and_saved_again(frame: pd.DataFrame, fitted: HeterogeneousVAE, saved: Path) -> None:
    loaded = HeterogeneousVAE.load(saved)
    loaded.save(saved.with_name("again.zip"))
    assert saved.with_name("again.zip").read_bytes() == saved.read_bytes()
    assert_same(fitted, loaded.fit(frame), frame)


def test_parameters_that_are_objects(frame: pd.DataFrame, tmp_path: Path) -> None:
    schema = {"visits": {"kind": "count", "labels": None}}
    fitted = HeterogeneousVAE(schema, method=gs.UPGrad(), epochs=1, random_state=np.random.RandomState(0)).fit(frame)
    fitted.set_params(hidden_size=np.int64(7), schema={"grade": {"labels": np.array(list("abcde"))}})
    fitted.save(tmp_path / "model.zip")
    loaded = HeterogeneousVAE.load(tmp_path / "model.zip")
    assert np.array_equal(loaded.transform(frame), fitted.transform(frame))
    labels = {"grade": {"labels": list("abcde")}}
    assert (loaded.schema, loaded.random_state, loaded.hidden_size) == (labels, None, 7)
    with pytest.raises(ValueError, match=r"must be among .*, got 'UPGrad\(\)'"):
        loaded.fit(frame)


def test_no_row_and_no_code_is_in_the_file(frame: pd.DataFrame, saved: Path) -> None:
    with zipfile.ZipFile(saved) as file:
        assert all(name == DOCUMENT or name.endswith(".npy") for name in file.namelist())
        text = file.read(DOCUMENT).decode()
    assert not any(str(cell) in text for cell in frame["height"].dropna())


def rewritten(saved: Path, **changes: Any) -> Path:
    """The file with another document."""
    with zipfile.ZipFile(saved) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    parts[DOCUMENT] = json.dumps({**json.loads(parts[DOCUMENT]), **changes}).encode()
    with zipfile.ZipFile(saved, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return saved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, r"`path` must be a file of version 1 or earlier, got version 2 .*Upgrade gradsurgery"),
        ({"format": "other"}, r"`path` must be a file that `save` wrote, got one of format 'other'"),
        ({"ranges": None, "schema": 3}, r"`path` must be a file that `save` wrote, got a damaged one"),
        ({"likelihoods": [{"class": "Popen"}]}, r"got a damaged one \(there is no likelihood 'Popen'\)"),
        ({"network": {"name": "vae", "rescale": True, "hidden_size": 9, "latent_size": None}}, r"a damaged one"),
        ({"parameters": {"schema": None, "future": 1}}, r"a damaged one"),
        ({"version": 0}, r"`path` must be a file that `save` wrote, got one of version 0"),
        ({"version": None}, r"`path` must be a file that `save` wrote, got one of version None"),
        ({"inputs": "other"}, r"a damaged one \(inputs must be 'vae', got 'other'\)"),
        ({"ranges": [1.0]}, r"a damaged one \(ranges and input_statistics must be of 6 columns\)"),
        ({"ranges": [float("nan")] * 6}, r"a damaged one \(ranges must be positive\)"),
        (
            {"input_statistics": [[float("nan"), 1.0]] * 6},
            r"a damaged one \(weights and input_statistics must be fin",
        ),
        ({"feature_names_in": list("abcdef")}, r"a damaged one \(feature_names_in must be height, income"),
    ],
)
def test_other_documents(saved: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeterogeneousVAE.load(rewritten(saved, **changes))


def test_damaged_files(saved: Path) -> None:
    """Bytes lost at the end, changed in the middle, an array gone; none loads as something else."""
    whole = saved.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF
    for damaged in (b"", whole[: len(whole) // 2], whole[:-30], bytes(middle)):
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"`path` must be a file that `save` wrote, got (another|a damaged) one"):
            HeterogeneousVAE.load(saved)
    saved.write_bytes(whole)
    HeterogeneousVAE.load(saved)
    with zipfile.ZipFile(saved) as file:
        document = json.loads(file.read(DOCUMENT))
    write_archive(saved, document, {})
    with pytest.raises(ValueError, match=r"got a damaged one \(weights must be "):
        HeterogeneousVAE.load(saved)


def test_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("height,income\n1,2\n")
    with pytest.raises(
        ValueError, match=r"HeterogeneousVAE: `path` must be a file that `save` wrote, got another one"
    ):
        HeterogeneousVAE.load(tmp_path / "text.txt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme", "nothing")
    with pytest.raises(ValueError, match=r"`path` must be a file that `save` wrote"):
        HeterogeneousVAE.load(tmp_path / "other.zip")
    with pytest.raises(FileNotFoundError):
        HeterogeneousVAE.load(tmp_path / "nowhere.zip")
    with pytest.raises(IsADirectoryError):
        HeterogeneousVAE.load(tmp_path)


def test_files_that_would_fill_the_memory_are_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    with pytest.raises(ValueError, match=r"`path` must be a file that `save` wrote, .*\(compressed\)"):
        HeterogeneousVAE.load(saved)
    name = next(name for name in parts if name.endswith(".npy"))
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1" + b"0" * 14 + b",), }\n"
    parts[name] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(saved, "w") as file:
        for own, content in parts.items():
            file.writestr(own, content)
    with pytest.raises(ValueError, match=r"`path` must be a file that `save` wrote"):
        HeterogeneousVAE.load(saved)


def test_pickles_in_arrays_are_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved) as file:
        document = json.loads(file.read(DOCUMENT))
        name = next(name for name in file.namelist() if name.endswith(".npy"))
    with saved.with_name("array.npy").open("wb") as buffer:
        np.save(buffer, np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(saved, "w") as file:
        file.writestr(DOCUMENT, json.dumps(document))
        file.writestr(name, saved.with_name("array.npy").read_bytes())
    with pytest.raises(ValueError, match=r"`path` must be a file that `save` wrote, .*allow_pickle=False"):
        HeterogeneousVAE.load(saved)
