"""Hidden cells are observed ones, drawn by seed, and nothing of them reaches the training."""

import pytest
import torch

from gradsurgery.integrations.vae import Run, Table, fit_seeds
from gradsurgery.integrations.vae.experiment import hide_cells, imputation_errors
from gradsurgery.integrations.vae.experiment.seed_result import seed_result
from gradsurgery.integrations.vae.training.evaluation import column_errors


@pytest.fixture(name="hidden", scope="module")
def _hidden(table: Table) -> Table:
    return hide_cells(table, 0.2, seed=4)


@pytest.fixture(name="run", scope="module")
def _run(hidden: Table) -> Run:
    (run,) = fit_seeds(hidden, seeds=[4], epochs=2, batch_size=32)
    return run


def test_the_share_of_the_observed_cells_of_every_column(table: Table, hidden: Table) -> None:
    assert not (hidden.observed & ~table.observed).any()
    assert torch.equal(hidden.values[hidden.observed], table.values[hidden.observed])
    gone = (table.observed & ~hidden.observed).sum(0)
    assert gone.tolist() == [round(0.2 * count) for count in table.observed.sum(0).tolist()]
    assert table.observed.sum() > hidden.observed.sum()


def test_by_seed(table: Table, hidden: Table) -> None:
    assert torch.equal(hide_cells(table, 0.2, seed=4).observed, hidden.observed)
    assert not torch.equal(hide_cells(table, 0.2, seed=5).observed, hidden.observed)


def test_in_all_rows(table: Table, hidden: Table) -> None:
    split = table.split(4)
    for rows in (split.train, split.validation, split.test):
        share = (table.observed & ~hidden.observed)[rows].sum() / table.observed[rows].sum()
        assert 0.1 < share < 0.3


def test_hidden_values_change_nothing(table: Table, hidden: Table, run: Run) -> None:
    """The same cells hidden of a table that differs in those."""
    gone = table.observed & ~hidden.observed
    other = Table(table.schema, torch.where(gone, 1.0, table.values))
    again = hide_cells(other, 0.2, seed=4)
    assert torch.equal(again.observed, hidden.observed)
    assert not torch.equal(other.values[gone], table.values[gone])
    (trained,) = fit_seeds(again, seeds=[4], epochs=2, batch_size=32)
    assert trained.history == run.history
    for part in ("train", "validation", "test"):
        assert torch.equal(trained.reconstruct(part), run.reconstruct(part))


def test_errors_are_those_of_hidden_cells(table: Table, hidden: Table, run: Run) -> None:
    rows, found = run.split.test, run.reconstruct("test")
    errors = imputation_errors(table, hidden, rows, found)
    gone = (table.observed & ~hidden.observed)[rows]
    truth = table.values[rows]
    height, smokes = table.schema.names.index("height"), table.schema.names.index("smokes")
    wrong = (found - truth)[gone[:, height], height]
    assert errors["height"] == pytest.approx(float(wrong.square().mean().sqrt() / table.ranges()[height]), rel=1e-12)
    assert errors["smokes"] == pytest.approx(float((found != truth)[gone[:, smokes], smokes].double().mean()))
    shown = torch.where(gone, truth, 1e9)
    assert set(imputation_errors(table, hidden, rows, shown).values()) == {0.0}, "other cells do not count"
    none = imputation_errors(table, table, rows, found)
    assert all(error != error for error in none.values())


def test_what_is_kept_of_a_seed(table: Table, hidden: Table, run: Run) -> None:
    result = seed_result(run, 4, table)
    expected = imputation_errors(table, hidden, run.split.test, run.reconstruct("test"))
    assert result["errors"] == result["errors_of_hidden_cells"] == pytest.approx(expected)
    assert result["error"] == pytest.approx(sum(expected.values()) / len(expected))
    assert result["errors_of_shown_cells"] == pytest.approx(run.evaluate().errors)
    everywhere = torch.cat([run.reconstruct(part) for part in ("train", "validation", "test")])
    rows = torch.cat([run.split.train, run.split.validation, run.split.test])
    assert result["errors_of_all_hidden_cells"] == imputation_errors(table, hidden, rows, everywhere)
    plain = seed_result(run, 4, hidden)
    assert plain["errors"] == dict(
        zip(hidden.schema.names, column_errors(hidden, run.split.test, run.reconstruct()).tolist(), strict=True)
    )
    assert "errors_of_shown_cells" not in plain


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_shares_out_of_range(table: Table, share: float) -> None:
    with pytest.raises(ValueError, match="hide_cells: `share` must be between 0 and 1"):
        hide_cells(table, share, seed=0)


def test_a_share_of_no_cell(table: Table) -> None:
    with pytest.raises(ValueError, match="`share` must be enough for one cell"):
        hide_cells(table, 0.001, seed=0)
