"""Scaling by the training rows alone, missing cells hidden, the policies for zeros."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from gradsurgery.integrations.vae import Batch, Column, Encoding, LogNormal, Normal, Schema, Table
from gradsurgery.integrations.vae.tables.encoder_inputs import Inputs

TRAIN = torch.arange(8)


def encoded(
    kind: str, cells: list[float | None], *, inputs: Inputs = "vae", **options: object
) -> tuple[Table, Encoding, Batch]:
    """A table of one column whose first eight rows are the training rows."""
    frame = pd.DataFrame({"x": pd.Series(cells, dtype="float64")})
    table = Table.from_frame(frame, Schema([Column("x", kind, **options)]))  # type: ignore[arg-type]
    encoding = Encoding(table, TRAIN, inputs)
    return table, encoding, encoding.encode(table)


REAL = [1.0, 4.0, None, 2.0, 8.0, 5.0, 7.0, 1.0, 1000.0, -1000.0]
POSITIVE = [1.0, 4.0, None, 2.0, 8.0, 5.0, 7.0, 1.0, 1000.0, 0.001]


def test_real_columns_are_standardised_by_training_cells() -> None:
    _, encoding, batch = encoded("real", REAL)
    seen = np.array([1.0, 4, 2, 8, 5, 7, 1])
    reference = (np.array([1.0, 4, 1000, -1000]) - seen.mean()) / seen.std()
    rows = torch.tensor([0, 1, 8, 9])
    np.testing.assert_allclose(batch.scaled[rows, 0], reference, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(batch.features[rows, 0], reference, rtol=1e-6, atol=1e-12)
    assert isinstance(encoding.likelihoods[0], Normal)


def test_positive_columns_are_powers_scaled_by_the_logarithm() -> None:
    _, _, batch = encoded("positive", POSITIVE)
    logs = np.log(np.array([1.0, 4, 2, 8, 5, 7, 1]))
    rows = torch.tensor([0, 1, 8, 9])
    scaled = np.log(np.array([1.0, 4, 1000, 0.001])) / logs.std()
    np.testing.assert_allclose(batch.scaled[rows, 0], scaled, rtol=1e-6)
    np.testing.assert_allclose(batch.features[rows, 0], scaled - logs.mean() / logs.std(), rtol=1e-5)


def test_counts_are_unscaled_targets() -> None:
    _, encoding, batch = encoded("count", [0, 3, None, 2, 8, 5, 7, 1, 400, 20])
    assert batch.scaled[[0, 1, 8], 0].tolist() == [0, 3, 400]
    seen = np.log1p(np.array([0.0, 3, 2, 8, 5, 7, 1]))
    reference = (np.log1p(np.array([0.0, 3, 400])) - seen.mean()) / seen.std()
    np.testing.assert_allclose(batch.features[[0, 1, 8], 0], reference, rtol=1e-6)
    assert encoding.likelihoods[0].natural(torch.tensor([1e4])).item() == pytest.approx(np.log(9) + 1)


def test_categories_become_one_hot_and_two_become_signs() -> None:
    frame = pd.DataFrame({"two": ["a", "b", None, "b"] * 3, "three": ["a", None, "b", "c"] * 3})
    table = Table.from_frame(frame)
    encoding = Encoding(table, TRAIN)
    batch = encoding.encode(table)
    assert encoding.num_features == batch.features.shape[1] == 4
    assert batch.features[:4].tolist() == [[-1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    assert batch.scaled[:4].tolist() == [[0, 0], [1, 0], [0, 1], [1, 2]]
    assert batch.observed[:4].tolist() == [[True, True], [True, False], [False, True], [True, True]]


@pytest.mark.parametrize("inputs", ["vae", "hivae"])
def test_hidden_cells_leave_no_trace(table: Table, inputs: Inputs) -> None:
    train = table.split().train
    batch = Encoding(table, train, inputs).encode(table)
    assert not table.observed.all()
    assert (batch.scaled[~batch.observed] == 0).all()
    changed = table.values.clone()
    changed[~table.observed] = torch.nan
    again = Encoding(Table(table.schema, changed), train, inputs).encode(table)
    assert torch.equal(batch.features, again.features)


@pytest.mark.parametrize("inputs", ["vae", "hivae"])
def test_statistics_come_from_training_rows_only(table: Table, inputs: Inputs) -> None:
    parts = table.split()
    changed = table.values.clone()
    others = torch.cat([parts.validation, parts.test])
    changed[others[:, None], torch.arange(3)] *= 7
    before, after = (
        Encoding(each, parts.train, inputs).encode(table) for each in (table, Table(table.schema, changed))
    )
    assert torch.equal(before.scaled, after.scaled)
    assert torch.equal(before.features, after.features)
    changed[parts.train[:20, None], torch.arange(3)] *= 7
    moved = Encoding(Table(table.schema, changed), parts.train, inputs).encode(table)
    assert not torch.equal(before.scaled[:, :2], moved.scaled[:, :2])
    assert not torch.equal(before.features[:, :2], moved.features[:, :2])


@pytest.mark.parametrize(("kind", "cell"), [("real", 0.1), ("real", -3e200), ("positive", 0.1), ("count", 4.0)])
def test_constant_columns_keep_their_scale(kind: str, cell: float) -> None:
    _, encoding, batch = encoded(kind, [cell] * 10)
    assert torch.isfinite(batch.scaled).all()
    assert batch.features.abs().max() < 1e-6
    assert getattr(encoding.likelihoods[0], "weight", 1.0) == 1.0


@pytest.mark.parametrize("size", [1e-250, 1e-30, 1e30, 1e250])
def test_extreme_sizes_are_scaled(size: float) -> None:
    _, _, batch = encoded("real", [size * cell for cell in range(10)])
    assert batch.scaled[:8, 0].std(correction=0).item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("kind", ["real", "positive"])
def test_log_likelihood_in_original_units_does_not_depend_on_the_scaling(kind: str) -> None:
    """The best fit of the scaled values is the best fit of the original ones, with the same density."""
    rng = np.random.default_rng(0)
    cells = rng.lognormal(2, 0.7, 400)
    table = Table.from_frame(pd.DataFrame({"x": cells}), Schema([Column("x", kind)]))
    likelihood = Encoding(table, torch.arange(400)).likelihoods[0]
    scaled = likelihood.transform(table.values[:, 0])
    mean, variance = scaled.mean(), scaled.var(correction=0)
    eta = torch.stack([mean / variance, -0.5 / variance]).expand(400, 2)
    ours = likelihood.log_prob(scaled, eta) + likelihood.log_jacobian(table.values[:, 0])
    logs = np.log(cells)
    reference = {
        "real": scipy.stats.norm(cells.mean(), cells.std()),
        "positive": scipy.stats.lognorm(s=logs.std(), scale=np.exp(logs.mean())),
    }[kind]
    np.testing.assert_allclose(ours, reference.logpdf(cells), rtol=1e-9)


WITH_ZEROS = [1.0, 4.0, 0.0, 2.0, 8.0, 0.5, 7.0, 0.0, 0.01, 0.0]


def test_zeros_shift_by_half_of_the_smallest_training_value() -> None:
    table, encoding, batch = encoded("positive", WITH_ZEROS)
    likelihood = encoding.likelihoods[0]
    assert isinstance(likelihood, LogNormal)
    assert likelihood.shift == 0.25
    assert batch.observed.all()
    eta = torch.stack([200 * likelihood.transform(table.values[:, 0]), torch.full((10,), -100.0)], dim=1)
    torch.testing.assert_close(likelihood.mode(eta), table.values[:, 0], rtol=0.02, atol=0.02)


def test_zeros_outside_the_training_rows_shift_too() -> None:
    _, encoding, _ = encoded("positive", [1.0, 4.0, 3.0, 2.0, 8.0, 0.5, 7.0, 9.0, 0.01, 0.0])
    assert encoding.likelihoods[0].shift == 0.25  # type: ignore[attr-defined]


def test_no_zeros_no_shift() -> None:
    _, encoding, _ = encoded("positive", POSITIVE)
    assert encoding.likelihoods[0].shift == 0  # type: ignore[attr-defined]


def test_zeros_are_missing() -> None:
    _, encoding, batch = encoded("positive", WITH_ZEROS, zeros="missing")
    assert batch.observed[:, 0].tolist() == [cell != 0 for cell in WITH_ZEROS]
    assert encoding.likelihoods[0].shift == 0  # type: ignore[attr-defined]


def test_untrained_columns_are_named() -> None:
    with pytest.raises(ValueError, match=r"column 'x' must have an observed cell among the training rows, got 8"):
        encoded("real", [None] * 8 + [1.0, 2.0])
    with pytest.raises(ValueError, match=r"positive column 'x' must have a number above 0 among the training rows"):
        encoded("positive", [0.0] * 8 + [1.0, 2.0])


def test_other_tables_are_refused() -> None:
    _, encoding, _ = encoded("positive", POSITIVE)
    other, _, _ = encoded("real", REAL)
    with pytest.raises(ValueError, match=r"Encoding: `table` must have the schema it was fitted with"):
        encoding.encode(other)
    zeros, _, _ = encoded("positive", WITH_ZEROS)
    with pytest.raises(ValueError, match=r"positive column 'x' must hold numbers above 0, got zeros"):
        encoding.encode(zeros)


def test_batches_are_selected_by_row(table: Table) -> None:
    batch = Encoding(table, table.split().train).encode(table)
    rows = torch.tensor([5, 0, 5])
    chosen = batch.select(rows)
    assert len(chosen) == 3
    assert torch.equal(chosen.features, batch.features[rows])
    assert torch.equal(chosen.scaled, batch.scaled[rows])
    assert torch.equal(chosen.observed, batch.observed[rows])


def named(
    likelihood: str, cells: list[float | None], kind: str = "positive", inputs: Inputs = "vae"
) -> tuple[Table, Encoding, Batch]:
    return encoded(kind, cells, likelihood=likelihood, inputs=inputs)


def test_gamma_and_exponential_are_scaled_by_the_training_mean() -> None:
    seen = np.array([1.0, 4, 2, 8, 5, 7, 1])
    rows = torch.tensor([0, 1, 8, 9])
    cells = np.array([1.0, 4, 1000, 0.001])
    _, _, batch = named("gamma", POSITIVE)
    np.testing.assert_allclose(batch.scaled[rows, 0], np.log(cells / seen.mean()), rtol=1e-5)
    logs = np.log(seen)
    np.testing.assert_allclose(batch.features[rows, 0], (np.log(cells) - logs.mean()) / logs.std(), rtol=1e-5)
    _, _, batch = named("exponential", POSITIVE)
    np.testing.assert_allclose(batch.scaled[rows, 0], cells / seen.mean(), rtol=1e-5)
    inputs = np.log1p(seen / seen.mean())
    reference = (np.log1p(cells / seen.mean()) - inputs.mean()) / inputs.std()
    np.testing.assert_allclose(batch.features[rows, 0], reference, rtol=1e-5)
    assert batch.features[2, 0] == batch.scaled[2, 0] == 0


def test_hurdles_tell_whether_and_how_much() -> None:
    _, encoding, batch = named("hurdle_lognormal", [*WITH_ZEROS[:6], None, *WITH_ZEROS[7:]])
    assert encoding.num_features == batch.features.shape[1] == 2
    assert batch.features[:, 0].tolist() == [1, 1, -1, 1, 1, 1, 0, -1, 1, -1]
    logs = np.log(np.array([1.0, 4.0, 2.0, 8.0, 0.5]))
    reference = (np.log(np.array([1.0, 8.0, 0.01])) - logs.mean()) / logs.std()
    np.testing.assert_allclose(batch.features[[0, 4, 8], 1], reference, rtol=1e-5)
    assert batch.features[[2, 6, 7, 9], 1].tolist() == [0] * 4
    assert batch.observed[:, 0].tolist() == [row != 6 for row in range(10)]
    assert torch.isfinite(batch.scaled).all()


def test_counts_with_a_hurdle() -> None:
    _, encoding, batch = named("hurdle_poisson", [0, 3, None, 2, 0, 5, 7, 1, 400, 0], "count")
    assert encoding.num_features == 2
    logs = np.log1p(np.array([3.0, 2, 5, 7, 1]))
    np.testing.assert_allclose(batch.features[8, 1], (np.log1p(400) - logs.mean()) / logs.std(), rtol=1e-5)
    assert batch.features[[0, 2, 9]].tolist() == [[-1, 0], [0, 0], [-1, 0]]
    _, _, batch = named("hurdle_poisson", [0.0] * 8 + [1.0, 2.0], "count")
    assert torch.isfinite(batch.features).all()


def test_shares_move_inwards_where_some_are_exactly_zero_or_one() -> None:
    inside = [0.2, 0.4, None, 0.8, 0.5, 0.1, 0.7, 0.3]
    _, encoding, batch = named("beta", [*inside, 0.9, 0.05], "real")
    assert encoding.likelihoods[0].squeeze == 0  # type: ignore[attr-defined]
    np.testing.assert_allclose(batch.scaled[9, 0], np.log(0.05 / 0.95), rtol=1e-5)
    table, encoding, batch = named("beta", [*inside, 1.0, 0.0], "real")
    likelihood = encoding.likelihoods[0]
    assert likelihood.squeeze == pytest.approx(0.05)  # type: ignore[attr-defined]
    np.testing.assert_allclose(batch.scaled[8:, 0], [np.log(19), -np.log(19)], rtol=1e-5)
    sharp = torch.stack([batch.scaled[:, 0].sigmoid(), (-batch.scaled[:, 0]).sigmoid()], dim=1) * 5000
    rows = table.observed[:, 0]
    torch.testing.assert_close(likelihood.mode(sharp.log())[rows], table.values[rows, 0], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("likelihood", "kind", "cell"),
    [
        ("gamma", "positive", 0.1),
        ("gamma", "positive", 1e250),
        ("exponential", "positive", 0.1),
        ("hurdle_lognormal", "positive", 0.1),
        ("hurdle_gamma", "positive", 1e-250),
        ("beta", "real", 0.1),
        ("negative_binomial", "count", 4.0),
        ("negative_binomial", "count", 0.0),
        ("hurdle_poisson", "count", 4.0),
    ],
)
def test_constant_columns_of_any_likelihood(likelihood: str, kind: str, cell: float) -> None:
    _, encoding, batch = named(likelihood, [cell] * 10, kind)
    assert torch.isfinite(batch.scaled).all()
    assert batch.features[:, -1].abs().max() < 1e-6
    raw = torch.zeros(10, encoding.likelihoods[0].num_parameters)
    eta = encoding.likelihoods[0].natural(raw)
    assert torch.isfinite(encoding.likelihoods[0].log_prob(batch.scaled[:, 0], eta)).all()


def test_what_a_likelihood_cannot_take_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"real column 'x' must hold numbers from 0 to 1 with likelihood 'beta', got 2"
    ):
        named("beta", [0.5] * 9 + [2.0], "real")
    with pytest.raises(ValueError, match=r"column 'x' must have a number between 0 and 1 among the training rows"):
        named("beta", [0.0, 1.0] * 4 + [0.5, 0.2], "real")
    with pytest.raises(ValueError, match=r"column 'x' must have at least two categories for likelihood 'ordinal'"):
        named("ordinal", [1.0] * 10, "ordinal")
    with pytest.raises(ValueError, match=r"positive column 'x' must have a number above 0 among the training rows"):
        named("hurdle_gamma", [0.0] * 8 + [1.0, 2.0])
    _, encoding, _ = named("beta", [0.2, 0.4] * 5, "real")
    ends, _, _ = named("beta", [0.2, 0.4] * 4 + [0.0, 1.0], "real")
    with pytest.raises(ValueError, match=r"column 'x' must hold numbers between 0 and 1, got zeros or ones"):
        encoding.encode(ends)


def standardised(cells: object, seen: object) -> object:
    return (np.asarray(cells) - np.mean(seen)) / np.std(seen)  # type: ignore[arg-type,call-overload]


def test_hivae_sees_numbers_by_their_kind() -> None:
    seen, rows, cells = np.array([1.0, 4, 2, 8, 5, 7, 1]), [0, 1, 8, 9], np.array([1.0, 4, 1000, 0.001])
    _, _, batch = encoded("real", REAL, inputs="hivae")
    reference = standardised([1.0, 4, 1000, -1000], seen)
    np.testing.assert_allclose(batch.features[rows, 0], reference, rtol=1e-6, atol=1e-12)
    for likelihood in ("lognormal", "gamma", "exponential"):
        _, _, batch = named(likelihood, POSITIVE, inputs="hivae")
        reference = standardised(np.log1p(cells), np.log1p(seen))
        np.testing.assert_allclose(batch.features[rows, 0], reference, rtol=1e-5)
        assert batch.features[2, 0] == 0
    for likelihood in ("poisson", "negative_binomial"):
        _, _, batch = named(likelihood, [0, 3, None, 2, 8, 5, 7, 1, 400, 20], "count", "hivae")
        np.testing.assert_allclose(batch.features[[0, 1, 2, 8], 0], np.log1p([0, 3, 0, 400]), rtol=1e-6)
    shares: list[float | None] = [0.2, 0.4, None, 0.8, 0.5, 0.1, 0.7, 0.3, 0.9, 0.05]
    _, _, batch = named("beta", shares, "real", "hivae")
    reference = standardised([0.2, 0.05], [0.2, 0.4, 0.8, 0.5, 0.1, 0.7, 0.3])
    np.testing.assert_allclose(batch.features[[0, 9], 0], reference, rtol=1e-5)


def test_hivae_sees_one_hot_categories() -> None:
    frame = pd.DataFrame({"two": ["a", "b", None, "b"] * 3, "three": ["a", None, "b", "c"] * 3})
    table = Table.from_frame(frame)
    encoding = Encoding(table, TRAIN, "hivae")
    batch = encoding.encode(table)
    assert encoding.inputs == "hivae"
    assert encoding.num_features == batch.features.shape[1] == 5
    assert batch.features[:4].tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 1]]


def test_hivae_sees_hurdles_in_two_inputs() -> None:
    _, encoding, batch = named("hurdle_lognormal", [*WITH_ZEROS[:6], None, *WITH_ZEROS[7:]], inputs="hivae")
    assert encoding.num_features == batch.features.shape[1] == 2
    assert batch.features[:, 0].tolist() == [1, 1, -1, 1, 1, 1, 0, -1, 1, -1]
    reference = standardised(np.log1p([1.0, 8.0, 0.01]), np.log1p([1.0, 4.0, 2.0, 8.0, 0.5]))
    np.testing.assert_allclose(batch.features[[0, 4, 8], 1], reference, rtol=1e-5)
    assert batch.features[[2, 6, 7, 9], 1].tolist() == [0] * 4
    _, _, batch = named("hurdle_poisson", [0, 3, None, 2, 0, 5, 7, 1, 400, 0], "count", "hivae")
    np.testing.assert_allclose(batch.features[[0, 2, 8]], [[-1, 0], [0, 0], [1, np.log1p(400)]], rtol=1e-6)


def test_hivae_centres_the_logarithm_of_lognormal_values() -> None:
    logs = np.log(np.array([1.0, 4, 2, 8, 5, 7, 1]))
    rows = [0, 1, 8, 9]
    table, encoding, batch = encoded("positive", POSITIVE, inputs="hivae")
    reference = (np.log([1.0, 4, 1000, 0.001]) - logs.mean()) / logs.std()
    np.testing.assert_allclose(batch.scaled[rows, 0], reference, rtol=1e-5)
    (likelihood,) = encoding.likelihoods
    (plain,) = encoded("positive", POSITIVE)[1].likelihoods
    values = table.values[table.observed]
    assert torch.equal(likelihood.log_jacobian(values), plain.log_jacobian(values))
    sharp = torch.stack([2e6 * likelihood.transform(values), torch.full_like(values, -1e6)], dim=1)
    torch.testing.assert_close(likelihood.mode(sharp), values, rtol=1e-5, atol=0)
    torch.testing.assert_close(likelihood.sample(sharp, torch.Generator()), values, rtol=0.02, atol=0)
    _, _, batch = named("hurdle_lognormal", WITH_ZEROS, inputs="hivae")
    amounts = batch.scaled[[0, 1, 3, 4, 5, 6], 0]
    np.testing.assert_allclose(amounts.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(amounts.std(correction=0), 1, rtol=1e-6)


def test_other_inputs_are_refused(table: Table) -> None:
    with pytest.raises(ValueError, match=r"Encoding: `inputs` must be among vae, hivae, got 'iwae'"):
        Encoding(table, TRAIN, "iwae")  # type: ignore[arg-type]
