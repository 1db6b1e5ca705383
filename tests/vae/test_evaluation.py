"""Errors and log-likelihoods of columns, against values computed by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from gradsurgery.integrations.vae import VAE, Encoding, Evaluation, Normal, Schema, Table, fit
from gradsurgery.integrations.vae.training.evaluation import column_errors, natural_parameters, reconstruct

FRAME = pd.DataFrame(
    {
        "size": [0.0, 10.0, 2.0, None, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        "visits": [0, 20, 2, 3, 4, 1, 1, 1, 1, 1],
        "colour": ["red", "blue", "red", None, "green", "red", "red", "red", "red", "red"],
        "flag": [True, False, True, False, True, True, True, True, True, True],
    }
)
ROWS = torch.tensor([2, 3, 4])


@pytest.fixture(name="small")
def _small() -> Table:
    return Table.from_frame(FRAME, Schema.infer(FRAME, kinds={"size": "real", "visits": "count"}))


def test_errors_by_hand(small: Table) -> None:
    """Ranges are those of the whole table; missing cells count nowhere; codes are blue, green, red."""
    guess = torch.tensor([[3.0, 2.0, 2.0, 1.0], [99.0, 5.0, 0.0, 1.0], [4.0, 4.0, 0.0, 1.0]], dtype=torch.float64)
    errors = column_errors(small, ROWS, guess)
    expected = [math.sqrt(1 / 2) / 10, math.sqrt(4 / 3) / 20, 1 / 2, 1 / 3]
    torch.testing.assert_close(errors, torch.tensor(expected, dtype=torch.float64))


def test_perfect_reconstruction_has_no_error(small: Table) -> None:
    assert column_errors(small, ROWS, small.values[ROWS]).tolist() == [0, 0, 0, 0]


def test_columns_without_observed_cells_are_left_out_of_the_mean(small: Table) -> None:
    errors = column_errors(small, torch.tensor([3]), torch.ones(1, 4, dtype=torch.float64))
    assert errors.isnan().tolist() == [True, False, True, False]
    evaluation = Evaluation({"a": math.nan, "b": 0.25, "c": 0.75}, {"a": math.nan, "b": -1.0, "c": -3.0})
    assert evaluation.error == 0.5
    assert evaluation.log_likelihood == -2.0


def test_evaluation_reads_modes_and_original_units(table: Table) -> None:
    run = fit(table, epochs=1)
    evaluation = run.evaluate("validation")
    rows = run.split.validation
    features = run.encoding.encode(table).select(rows).features
    modes = reconstruct(run.model, features)
    assert torch.equal(modes, run.reconstruct("validation"))
    np.testing.assert_allclose(list(evaluation.errors.values()), column_errors(table, rows, modes), rtol=1e-12)
    parameters = natural_parameters(run.model, features)
    likelihood, eta = run.model.likelihoods[0], parameters[0]
    assert isinstance(likelihood, Normal)
    seen = table.observed[rows, 0]
    deviation = torch.rsqrt(-2 * eta[seen, 1]) / likelihood.weight
    reference = torch.distributions.Normal(modes[seen, 0], deviation).log_prob(table.values[rows[seen], 0])
    assert evaluation.log_likelihoods["height"] == pytest.approx(float(reference.mean()), rel=1e-10)


def test_evaluation_is_deterministic_and_leaves_the_mode_of_the_model(table: Table) -> None:
    encoding = Encoding(table, table.split().train)
    vae = VAE(encoding.num_features, encoding.likelihoods, generator=torch.Generator().manual_seed(0))
    features = encoding.encode(table).features
    statistics = vae.normalise.running_mean.clone()
    before = torch.get_rng_state()
    first, second = reconstruct(vae, features), reconstruct(vae, features)
    assert torch.equal(first, second)
    assert vae.training
    assert torch.equal(vae.normalise.running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), before)


def test_many_rows_are_reconstructed_in_parts(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = Encoding(table, table.split().train)
    vae = VAE(encoding.num_features, encoding.likelihoods, generator=torch.Generator().manual_seed(0))
    features = encoding.encode(table).features
    whole = reconstruct(vae, features)
    monkeypatch.setattr("gradsurgery.integrations.vae.training.evaluation.ROWS_AT_ONCE", 7)
    torch.testing.assert_close(reconstruct(vae, features), whole, rtol=1e-4, atol=1e-4)


def test_unknown_part_is_named(table: Table) -> None:
    with pytest.raises(ValueError, match=r"Run: `part` must be train, validation or test, got 'all'"):
        fit(table, epochs=1).evaluate("all")  # type: ignore[arg-type]
