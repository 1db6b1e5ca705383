"""Which likelihood a column gets: by the rules, by name, never one that does not fit."""

import numpy as np
import pandas as pd
import pytest
import torch

from gradsurgery.integrations.vae import (
    Beta,
    Column,
    Encoding,
    Exponential,
    Gamma,
    Hurdle,
    LogNormal,
    NegativeBinomial,
    Ordinal,
    Schema,
    Table,
    ZeroTruncatedPoisson,
    fit,
)
from gradsurgery.integrations.vae.tables.column import FITTING

RNG = np.random.default_rng(0)
SHARES = RNG.beta(1, 1, 200)
SPIKE = np.where(RNG.random(200) < 0.6, 0.0, RNG.lognormal(1, 1, 200))
DISPERSED = RNG.negative_binomial(0.5, 0.02, 200)


def infer(cells: object, **kinds: str) -> Column:
    return Schema.infer(pd.DataFrame({"x": cells}), kinds=kinds)["x"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cells", "kind", "likelihood"),
    [
        (SHARES, "positive", "beta"),
        (0.1 + 0.81 * (SHARES - SHARES.min()) / np.ptp(SHARES), "positive", "beta"),
        (0.1 + 0.79 * (SHARES - SHARES.min()) / np.ptp(SHARES), "positive", None),
        (0.45 + 0.54 * (SHARES - SHARES.min()) / np.ptp(SHARES), "real", None),
        (np.append(SHARES, 0.0), "real", None),
        (np.append(SHARES, 1.0), "positive", None),
        (np.append(SHARES, np.nan), "positive", "beta"),
        (SPIKE, "positive", "hurdle_lognormal"),
        (np.append(SPIKE, [np.nan] * 30), "positive", "hurdle_lognormal"),
        (1000 * np.rint(SPIKE), "positive", "hurdle_lognormal"),
        (np.append(SPIKE, -1.0), "real", None),
        (np.where(SPIKE > 0, 10 + SPIKE / SPIKE.max(), 0.0), "real", None),
        (SPIKE[SPIKE.argsort()][-2 * int((SPIKE > 0).sum()) :], "positive", "hurdle_lognormal"),
        (SPIKE[SPIKE.argsort()][-2 * int((SPIKE > 0).sum()) + 1 :], "real", None),
        (DISPERSED, "count", "negative_binomial"),
        (np.append(RNG.poisson(8, 200), 30), "count", None),
        (np.zeros(20), "count", None),
        (pd.Categorical(["a", "b", "a"], ["a", "b", "c"], ordered=True), "ordinal", "ordinal"),
        (pd.Categorical(["a", "a"], ["a"], ordered=True), "ordinal", None),
        (pd.Categorical(["a", "b", "a"], ["a", "b", "c"]), "categorical", None),
        ([True, False, True], "binary", None),
    ],
)
def test_rules(cells: object, kind: str, likelihood: str | None) -> None:
    column = infer(cells)
    assert (column.kind, column.likelihood) == (kind, likelihood)


@pytest.mark.parametrize(("cells", "kind"), [(SHARES, "positive"), (SPIKE, "real"), (DISPERSED, "count")])
def test_known_kinds_keep_their_likelihood(cells: object, kind: str) -> None:
    assert infer(cells, x=kind).likelihood is None


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in FITTING.items() for name in names])
def test_named_likelihoods_survive_a_file(kind: str, name: str, tmp_path: object) -> None:
    schema = Schema([Column("x", kind, likelihood=name), Column("y", "real")])  # type: ignore[arg-type]
    assert Schema.from_json(schema.to_json()) == schema
    path = tmp_path / "schema.json"  # type: ignore[operator]
    schema.save(path)
    assert Schema.load(path)["x"].likelihood == name
    assert Schema([Column("x", kind)]).replace("x", likelihood=name)["x"] == schema["x"]  # type: ignore[arg-type]


def test_a_new_kind_drops_the_likelihood() -> None:
    schema = Schema([Column("x", "positive", likelihood="gamma", zeros="raise")])
    assert schema.replace("x", zeros="missing")["x"] == Column("x", "positive", zeros="missing", likelihood="gamma")
    assert schema.replace("x", kind="real")["x"] == Column("x", "real")
    assert schema.replace("x", kind="real", likelihood="beta")["x"] == Column("x", "real", likelihood="beta")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "real", "likelihood": "gamma"},
            r"Column: `likelihood` must be one of normal, beta for real column 'x', got 'gamma'. It fits kind pos",
        ),
        ({"kind": "count", "likelihood": "lognormal"}, r"must be one of poisson, .* got 'lognormal'"),
        (
            {"kind": "binary", "likelihood": "categorical"},
            r"must be one of bernoulli .* fits kind categorical or ordinal",
        ),
        ({"kind": "categorical", "likelihood": "ordinal"}, r"must be one of categorical .* It fits kind ordinal"),
        ({"kind": "real", "likelihood": "student"}, r"got 'student'\. Pick one"),
        (
            {"kind": "positive", "likelihood": "hurdle_gamma", "zeros": "missing"},
            r"`zeros` must be None with likelihood 'hurdle_gamma', got 'missing' for column 'x'",
        ),
        (
            {"kind": "positive", "likelihood": "exponential", "zeros": "shift"},
            r"`zeros` must be None, missing or raise with likelihood 'exponential', got 'shift'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Column("x", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Column.from_entry({"name": "x", "type": options.pop("kind"), **options})


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("positive", "gamma", Gamma),
        ("positive", "exponential", Exponential),
        ("positive", "beta", Beta),
        ("real", "beta", Beta),
        ("positive", "hurdle_lognormal", LogNormal),
        ("positive", "hurdle_gamma", Gamma),
        ("count", "negative_binomial", NegativeBinomial),
        ("count", "hurdle_poisson", ZeroTruncatedPoisson),
        ("ordinal", "ordinal", Ordinal),
    ],
)
def test_named_likelihoods_are_used(kind: str, name: str, expected: type) -> None:
    cells = [0, 1, 1, 0, 1] * 4 if kind in ("count", "ordinal") else [0.25, 0.5, 0.75, 0.5] * 5
    column = Column("x", kind, likelihood=name)  # type: ignore[arg-type]
    table = Table.from_frame(pd.DataFrame({"x": cells}), Schema([column]))
    (likelihood,) = Encoding(table, torch.arange(20)).likelihoods
    assert isinstance(likelihood, Hurdle) == name.startswith("hurdle")
    assert type(likelihood.above if isinstance(likelihood, Hurdle) else likelihood) is expected


def table_of_all() -> Table:
    """300 rows with one column of each new likelihood, driven by one hidden factor, a tenth of the cells missing."""
    rng = np.random.default_rng(1)
    factor = rng.normal(size=300)
    rate = np.exp(factor)
    frame = pd.DataFrame(
        {
            "gamma": rng.gamma(3.0, rate),
            "exponential": rng.exponential(rate),
            "beta": rng.beta(2 * rate, 2.0).clip(1e-6, 1 - 1e-6),
            "hurdle_lognormal": np.where(factor > 0, np.exp(factor + 0.2 * rng.normal(size=300)), 0.0),
            "hurdle_gamma": np.where(factor < 0.3, rng.gamma(3.0, rate), 0.0),
            "negative_binomial": rng.poisson(5 * rate * rng.gamma(1.5, 1 / 1.5, 300)).astype(float),
            "hurdle_poisson": np.where(factor > -0.2, 1.0 + rng.poisson(2 * rate), 0.0),
            "ordinal": np.digitize(factor + 0.3 * rng.normal(size=300), [-1, 0, 1]).astype(float),
        }
    )
    frame = frame.mask(rng.random(frame.shape) < 0.1)
    kinds = {name: kind for kind, names in FITTING.items() for name in names}
    columns = [
        Column(name, "positive" if name == "beta" else kinds[name], likelihood=name)  # type: ignore[arg-type]
        for name in frame.columns
    ]
    return Table.from_frame(frame, Schema(columns))


def test_all_are_learnt_together() -> None:
    """Every column's log-likelihood in original units is finite, and better than after a single epoch."""
    table = table_of_all()
    short, long = (fit(table, epochs=epochs, batch_size=64, learning_rate=3e-3) for epochs in (1, 60))
    before, after = (run.evaluate().log_likelihoods for run in (short, long))
    assert all(np.isfinite(list(each.values())).all() for each in (before, after))
    assert all(after[name] > before[name] + 0.05 for name in before), (before, after)
    assert np.isfinite([epoch.loss for epoch in long.history]).all()
    decoded = table.to_frame(long.reconstruct())
    assert list(decoded.columns) == list(table.schema.names)
    assert np.isfinite(decoded.drop(columns="ordinal").to_numpy(dtype=float)).all()
