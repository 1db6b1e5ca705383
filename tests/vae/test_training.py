"""Training lowers the loss, repeats itself by seed and keeps the best epoch."""

import numpy as np
import pandas as pd
import pytest
import torch

import gradsurgery as gs
from gradsurgery.integrations.vae import Run, Schema, Table, fit
from gradsurgery.integrations.vae.training.methods import METHODS, build_method
from gradsurgery.integrations.vae.training.preparation import batches


def weights(run: Run) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(table: Table, name: str) -> None:
    run = fit(table, build_method(name), epochs=4, batch_size=32)
    losses = [epoch.loss for epoch in run.history]
    assert losses[-1] < 0.8 * losses[0]
    evaluation = run.evaluate()
    assert list(evaluation.errors) == list(table.schema.names)
    assert all(0 <= error < 1 for error in evaluation.errors.values())
    assert all(np.isfinite(list(evaluation.log_likelihoods.values())))


@pytest.mark.parametrize("name", ["sum", "gradnorm", "pcgrad", "graddrop"])
def test_one_seed_one_result(table: Table, name: str) -> None:
    before = torch.get_rng_state()
    first, same, other = (fit(table, build_method(name, seed), epochs=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(weights(first), weights(same))
    assert first.history == same.history
    assert not torch.equal(weights(first), weights(other))
    assert torch.equal(torch.get_rng_state(), before)


def test_methods_share_split_weights_and_noise(table: Table) -> None:
    first, second = fit(table, gs.Sum(), epochs=1), fit(table, gs.MGDA(), epochs=1)
    assert torch.equal(first.split.train, second.split.train)
    tiny = {"epochs": 1, "learning_rate": 1e-30}
    frozen = [fit(table, method, **tiny) for method in (gs.Sum(), gs.MGDA())]  # type: ignore[arg-type]
    torch.testing.assert_close(weights(frozen[0]), weights(frozen[1]), rtol=0, atol=1e-20)
    assert frozen[0].history == frozen[1].history


def test_default_is_the_plain_sum(table: Table) -> None:
    assert torch.equal(weights(fit(table, epochs=1)), weights(fit(table, gs.Sum(), epochs=1)))


def test_best_epoch_is_kept(table: Table) -> None:
    """A learning rate far too large makes later epochs worse; the returned weights are those of the best."""
    run = fit(table, epochs=8, learning_rate=0.1, batch_size=16)
    errors = [epoch.validation_error for epoch in run.history]
    assert run.best_epoch == int(np.argmin(errors))
    assert run.best_epoch < 7, "choose a seed with which the last epoch is not the best"
    assert run.evaluate("validation").error == pytest.approx(errors[run.best_epoch], rel=1e-6)
    assert not run.model.training


def test_a_dependent_column_is_learnt() -> None:
    """A table of three views of one factor: the error falls far below that of a constant guess."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=400)
    frame = pd.DataFrame({"x": factor, "y": -2 * factor, "sign": factor > 0})
    run = fit(Table.from_frame(frame), gs.UPGrad(), epochs=30, batch_size=32, learning_rate=1e-2)
    assert run.evaluate().errors["sign"] < 0.1
    assert run.evaluate().errors["x"] < 0.6 * factor.std() / np.ptp(factor)


def test_one_column_is_a_table() -> None:
    run = fit(Table.from_frame(pd.DataFrame({"x": range(40)})), gs.UPGrad(), epochs=2)
    assert np.isfinite(run.evaluate().errors["x"])


def test_constant_and_nearly_empty_columns_train() -> None:
    cells = [1.0] + [None] * 38 + [2.5]
    frame = pd.DataFrame({"rare": cells, "constant": ["only"] * 40, "fixed": [3.5] * 40, "x": np.linspace(-1, 1, 40)})
    seed = next(s for s in range(99) if {0, 39} <= set(Table.from_frame(frame).split(s).train.tolist()))
    run = fit(Table.from_frame(frame), gs.GradNorm(alpha=0.0), epochs=2, batch_size=4, seed=seed)
    errors = run.evaluate().errors
    assert np.isnan(errors["rare"])
    assert errors["constant"] == 0
    assert np.isfinite([errors["fixed"], errors["x"], run.evaluate().error]).all()


@pytest.mark.parametrize(("rows", "sizes"), [(9, [4, 5]), (8, [4, 4]), (10, [4, 4, 2]), (1, [1]), (5, [5])])
def test_no_batch_of_a_single_row(rows: int, sizes: list[int]) -> None:
    found = list(batches(rows, 4, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in found] == sizes
    assert sorted(torch.cat(found).tolist()) == list(range(rows))


def test_progress_goes_to_standard_error(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    fit(table, epochs=1)
    assert capsys.readouterr() == ("", "")
    fit(table, epochs=2, progress=True, title="a method")
    out, err = capsys.readouterr()
    assert out == ""
    assert "a method" in err
    assert "2/2" in err


def test_progress_needs_tqdm(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    with pytest.raises(ImportError, match=r'Run: pip install "gradsurgery\[vae\]"'):
        fit(table, epochs=1, progress=True)


def test_diverging_columns_are_named(table: Table) -> None:
    message = r"fit: the loss must stay finite, got (nan|inf) for seed 0 \(columns .*visits"
    with pytest.raises(RuntimeError, match=message):
        fit(table, epochs=3, learning_rate=1e30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"fit: `epochs` must be at least 1, got 0"),
        ({"batch_size": 1}, r"fit: `batch_size` must be at least 2, got 1"),
        ({"seed": -1}, r"fit: `seed` must be at least 0, got -1"),
        ({"learning_rate": 0.0}, r"fit: `learning_rate` must be positive and finite, got 0\.0"),
        ({"hidden_size": 0}, r"fit: `hidden_size` must be at least 1, got 0"),
        ({"hidden_size": 5.5}, r"fit: `hidden_size` must be an integer, got 5\.5"),
        ({"latent_size": True}, r"fit: `latent_size` must be an integer, got True"),
        ({"rescale": "no"}, r"fit: `rescale` must be True or False, got 'no'"),
        ({"learning_rate": "fast"}, r"fit: `learning_rate` must be a number, got 'fast'"),
        ({"model": ["vae"]}, r"fit: `model` must be among vae, iwae, dreg, hivae, got \['vae'\]"),
    ],
)
def test_wrong_options_are_named(table: Table, options: dict[str, float], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        fit(table, **options)  # type: ignore[arg-type]


def test_a_frame_is_no_table(frame: pd.DataFrame) -> None:
    with pytest.raises(TypeError, match=r"fit: `table` must be a Table, got DataFrame\. Use Table\.from_frame"):
        fit(frame)  # type: ignore[arg-type]


def test_empty_validation_rows_are_refused() -> None:
    frame = pd.DataFrame({"x": np.arange(20.0)})
    table = Table.from_frame(frame, Schema.infer(frame))
    table.values[table.split().validation] = torch.nan
    with pytest.raises(ValueError, match=r"`table` must have an observed cell among its validation rows, got 2"):
        fit(Table(table.schema, table.values), epochs=1)


@pytest.mark.parametrize("name", ["pcgrad", "graddrop", "gradnorm+pcgrad", "gradnorm+graddrop"])
def test_random_methods_draw_by_seed(name: str) -> None:
    gradients = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    first, same, other = (build_method(name, seed)(gradients) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match=r"`methods` must be among sum, .*, got 'pcgrd'"):
        build_method("pcgrd")
