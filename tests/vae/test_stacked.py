"""Seeds that are trained together become what each becomes alone."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.integrations.vae import (
    Batch,
    Bernoulli,
    Beta,
    Categorical,
    Encoding,
    Exponential,
    Gamma,
    Hurdle,
    LogNormal,
    NegativeBinomial,
    Normal,
    Ordinal,
    Poisson,
    Run,
    Schema,
    Table,
    ZeroTruncatedPoisson,
    fit,
)
from gradsurgery.integrations.vae.likelihoods.base import Likelihood
from gradsurgery.integrations.vae.models.objective import column_losses
from gradsurgery.integrations.vae.models.registry import MODELS, ModelName
from gradsurgery.integrations.vae.stacked import training as stacked_training
from gradsurgery.integrations.vae.stacked.likelihoods import StackedLikelihoods
from gradsurgery.integrations.vae.stacked.surgery import StackedBlocks
from gradsurgery.integrations.vae.stacked.training import fit_seeds
from gradsurgery.integrations.vae.training.best_epoch import BestEpoch, Epoch
from gradsurgery.integrations.vae.training.evaluation import column_errors, reconstruct
from gradsurgery.integrations.vae.training.methods import build_method
from gradsurgery.integrations.vae.training.preparation import Settings, batches, prepare

SEEDS = (0, 3, 5)
METHODS = ("sum", "gradnorm", "lossbalancer", "upgrad", "pcgrad", "graddrop", "gradnorm+upgrad", "gradnorm+pcgrad")


@pytest.fixture(name="precise")
def _precise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64."""
    encode = Encoding.encode

    def wide(self: Encoding, table: Table) -> Batch:
        batch = encode(self, table)
        return Batch(batch.features.double(), batch.scaled.double(), batch.observed)

    monkeypatch.setattr(Encoding, "encode", wide)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(name="mixed")
def _mixed(table: Table) -> Table:
    """The table with its kinds of columns interleaved, so that their groups are not in the order of the columns."""
    order = [3, 0, 4, 2, 1, 5]
    return Table(Schema(table.schema.columns[column] for column in order), table.values[:, order])


def methods(name: str) -> Callable[[int], gs.Aggregator]:
    return functools.partial(build_method, name)


def assert_same(one: Run, other: Run, tolerance: float) -> None:
    """Split, scaling, history and everything that the model holds."""
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(one.split, part), getattr(other.split, part))
    mine, theirs = one.encoding.encode(one.table), other.encoding.encode(other.table)
    assert torch.equal(mine.features, theirs.features)
    assert torch.equal(mine.scaled, theirs.scaled)
    histories = [
        torch.tensor([(epoch.loss, epoch.validation_error) for epoch in run.history], dtype=torch.float64)
        for run in (one, other)
    ]
    torch.testing.assert_close(*histories, rtol=tolerance, atol=tolerance)
    assert one.best_epoch == other.best_epoch
    states = one.model.state_dict(), other.model.state_dict()
    assert list(states[0]) == list(states[1])
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=tolerance, atol=tolerance, msg=key)
    assert not one.model.training
    assert type(one.model.block.aggregator) is type(other.model.block.aggregator)


def alone(table: Table, method: gs.Aggregator, seed: int, epochs: int, **options: Any) -> Run:
    """The training of one model by itself, step by step, without anything that is stacked."""
    settings = Settings(epochs=epochs, **options)
    own, best = prepare(table, method, settings, seed), BestEpoch()
    optimizer = torch.optim.Adam(own.model.parameters(), lr=settings.learning_rate)
    for epoch in range(epochs):
        own.model.train()
        total = 0.0
        for rows in batches(len(own.training), settings.rows_a_step, own.noise):
            optimizer.zero_grad()
            objective = own.model.objective(own.training.select(rows), own.noise, epoch=epoch)
            objective.total.backward()
            optimizer.step()
            total += float(objective.total.detach()) * len(rows)
        errors = column_errors(table, own.split.validation, reconstruct(own.model, own.validation.features))
        best.record(own.model, Epoch(total / len(own.training), float(errors.nanmean())))
    best.restore(own.model)
    return Run(own.model.eval(), table, own.encoding, own.split, tuple(best.history), best.index)


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_each_seed_is_what_it_is_alone(mixed: Table, name: str, model: ModelName) -> None:
    options: dict[str, Any] = {"epochs": 3, "batch_size": 32, "model": model}
    runs = fit_seeds(mixed, methods(name), seeds=SEEDS, **options)
    for seed, run in zip(SEEDS, runs, strict=True):
        assert_same(run, alone(mixed, build_method(name, seed), seed, **options), 1e-8)


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize("model", MODELS)
def test_without_rescaling(mixed: Table, model: ModelName) -> None:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 32, "model": model, "rescale": False}
    (run,) = fit_seeds(mixed, methods("upgrad"), seeds=[3], **options)
    assert_same(run, alone(mixed, build_method("upgrad"), 3, **options), 1e-8)
    (other,) = fit_seeds(mixed, methods("upgrad"), seeds=[3], **{**options, "rescale": True})
    assert run.history != other.history


@pytest.mark.usefixtures("precise")
def test_each_seed_may_have_a_table_of_its_own(table: Table) -> None:
    hidden = [Table(table.schema, table.values.clone()) for _ in range(2)]
    hidden[1].values[::3, 1] = torch.nan
    hidden[1] = Table(table.schema, hidden[1].values)
    runs = fit_seeds(hidden, methods("upgrad"), seeds=(0, 1), epochs=2)
    for seed, own, run in zip((0, 1), hidden, runs, strict=True):
        assert run.table is own
        assert_same(run, alone(own, gs.UPGrad(), seed, epochs=2), 1e-8)


def test_the_comparison_can_fail(table: Table) -> None:
    first, second = fit_seeds(table, seeds=(0, 1), epochs=1)
    with pytest.raises(AssertionError):
        assert_same(first, second, 1e-8)
    with pytest.raises(AssertionError):
        assert_same(first, fit(table, gs.UPGrad(), epochs=1), 1e-8)


def test_the_seeds_are_scaled_differently(table: Table) -> None:
    """Else the tests above would not notice a likelihood of another seed."""
    settings = [[vars(own) for own in Encoding(table, table.split(seed).train).likelihoods] for seed in SEEDS]
    kinds = table.schema.names.index("visits"), table.schema.names.index("height")
    assert all(len({str(own[column]) for own in settings}) > 1 for column in kinds)


@pytest.mark.parametrize("name", ["sum", "gradnorm", "upgrad"])
def test_single_precision(mixed: Table, name: str) -> None:
    """Two steps, before rounding has grown; Adam makes a whole step of a gradient whose sign is rounding's."""
    options = {"epochs": 1, "batch_size": 84}
    runs = fit_seeds(mixed, methods(name), seeds=SEEDS, **options)  # type: ignore[arg-type]
    for seed, run in zip(SEEDS, runs, strict=True):
        single = alone(mixed, build_method(name, seed), seed, **options)  # type: ignore[arg-type]
        assert run.history[0].loss == pytest.approx(single.history[0].loss, rel=1e-5)
        mine, theirs = (torch.cat([own.flatten() for own in each.model.parameters()]) for each in (run, single))
        assert mine.dtype == torch.float32
        assert ((mine - theirs).abs() < 1e-5).float().mean() > 0.995


@pytest.mark.usefixtures("precise")
def test_options_reach_every_seed(table: Table) -> None:
    """A last batch of one row, other sizes, and a learning rate with which the last epoch is not the best."""
    options = {"epochs": 4, "batch_size": 167, "hidden_size": 7, "latent_size": 2, "learning_rate": 0.5}
    runs = fit_seeds(table, seeds=SEEDS, **options)  # type: ignore[arg-type]
    assert any(run.best_epoch < 3 for run in runs), "choose a rate with which later epochs are worse"
    for seed, run in zip(SEEDS, runs, strict=True):
        assert_same(run, alone(table, gs.Sum(), seed, **options), 1e-8)  # type: ignore[arg-type]
        assert run.evaluate("validation").error == pytest.approx(run.history[run.best_epoch].validation_error)


def test_the_random_state_is_left_alone_and_runs_repeat(table: Table) -> None:
    before = torch.get_rng_state()
    first, second = (fit_seeds(table, methods("pcgrad"), seeds=(1, 2), epochs=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(first, second, strict=True):
        assert_same(one, other, 0.0)


class Shifted(Likelihood):
    """A kind of its own, whose density depends on a number of the seed."""

    num_parameters = 2

    def __init__(self, shift: object) -> None:
        self.shift = shift

    def natural(self, raw: Tensor) -> Tensor:
        return raw * 2

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        shift = self.shift if isinstance(self.shift, float) else self.shift[0]  # type: ignore[index]
        return -((scaled - eta[..., 0] - shift) ** 2) * eta[..., 1].exp()

    def mode(self, eta: Tensor) -> Tensor:
        return eta[..., 0]

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return eta[..., 0]


def columns_of(seed: int) -> list[Likelihood]:
    return [
        Categorical(3),
        Normal(1.0 + seed),
        Poisson(2.0 + seed),
        Shifted(float(seed)),
        Bernoulli(),
        Poisson(9.0 - seed),
        Shifted([2.0]),
        LogNormal(2.0, shift=seed),
        Bernoulli(),
        Shifted(1.5),
        Categorical(4),
        Gamma(1.0 + seed),
        Gamma(2.0, shift=seed),
        Exponential(1.0 + seed),
        Beta(squeeze=0.1 * seed),
        NegativeBinomial(3.0 + seed),
        Hurdle(LogNormal(1.0 + seed)),
        Hurdle(ZeroTruncatedPoisson(2.0 + seed)),
        Ordinal(3),
    ]


def test_losses_of_groups_are_those_of_each_column() -> None:
    seeds = [columns_of(seed) for seed in range(3)]
    stacked = StackedLikelihoods(seeds)
    assert len(stacked._calls) == 15  # of 19 columns; normal ones, counts, gammas and binary ones come together
    widths = [likelihood.num_parameters for likelihood in seeds[0]]
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 6, sum(widths), generator=generator, dtype=torch.float64) * 4
    observed = torch.rand(3, 6, len(widths), generator=generator) < 0.7
    observed[0, :, 2] = False
    targets = torch.where(observed, torch.randint(0, 2, observed.shape, generator=generator).double(), 0.0)
    found = stacked.losses(outputs[..., stacked.rows], targets[..., stacked.columns], observed[..., stacked.columns])
    for seed, likelihoods in enumerate(seeds):
        parts = outputs[seed].split(widths, -1)
        natural = [likelihood.natural(raw) for likelihood, raw in zip(likelihoods, parts, strict=True)]
        expected = column_losses(likelihoods, natural, Batch(outputs[seed], targets[seed], observed[seed]))
        torch.testing.assert_close(found[seed], expected[stacked.columns], rtol=1e-6, atol=1e-6)


def test_widths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"as many parameters in every seed, got \[3, 4\] for column 0"):
        StackedLikelihoods([[Categorical(3)], [Categorical(4)]])


@pytest.mark.parametrize("cancelling", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_surgery_is_that_of_each_model(name: str, cancelling: bool) -> None:
    """Heads in another order; with all of a head's rows equal, the gradient of its input is what is left of them."""
    widths, rows, generator = (1, 3, 2), [1, 2, 3, 0, 4, 5], torch.Generator().manual_seed(0)
    z, targets = (torch.randn(2, 7, size, generator=generator, dtype=torch.float64) for size in (4, 6))
    each = [
        (gs.FusedHeads(4, widths).double(), gs.ImpartialityBlock(3, build_method(name, seed))) for seed in range(2)
    ]
    if cancelling:
        targets[..., 1:4] = torch.tensor([1.0, 1.0, -2.0 + 1e-3], dtype=torch.float64)
        for heads, _ in each:
            heads.weight.data[1:4] = heads.weight.data[1]
    blocks = StackedBlocks([gs.ImpartialityBlock(3, build_method(name, seed)) for seed in range(2)], widths, rows)
    weight, bias = (
        torch.stack([parts.detach()[rows] for parts in stacked]).requires_grad_()
        for stacked in zip(*[(heads.weight, heads.bias) for heads, _ in each], strict=True)
    )
    stacked_z = z.clone().requires_grad_()
    for _ in range(2):
        outputs = blocks.heads(stacked_z, weight, bias)
        stacked_z.grad = None
        (outputs * targets[..., rows]).sum().backward()
    blocks.hand_back()
    for index, (heads, block) in enumerate(each):
        own = z[index].clone().requires_grad_()
        for _ in range(2):
            own.grad = None
            alone = torch.cat(heads(own, block), -1)
            (alone * targets[index]).sum().backward()
        torch.testing.assert_close(outputs[index], alone[:, rows])
        torch.testing.assert_close(stacked_z.grad[index], own.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(weight.grad[index], heads.weight.grad[rows])
        torch.testing.assert_close(bias.grad[index], heads.bias.grad[rows])
        state = blocks.blocks[index].aggregator.state_dict()
        for key, value in block.aggregator.state_dict().items():
            torch.testing.assert_close(state[key], value)


def test_diverging_seeds_and_columns_are_named(table: Table) -> None:
    with pytest.raises(RuntimeError, match=r"must stay finite, got (nan|inf) for seed 4 \(columns .*visits"):
        fit_seeds(table, seeds=(4, 5), epochs=3, learning_rate=1e30)


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (ValueError, {"seeds": []}, r"fit_seeds: `seeds` must be different and at least one, got \[\]"),
        (ValueError, {"seeds": [1, 1]}, r"fit_seeds: `seeds` must be different and at least one, got \[1, 1\]"),
        (TypeError, {"seeds": 5}, r"fit_seeds: `seeds` must be a sequence of integers, got 5\. Try range\(5\)"),
        (ValueError, {"seeds": [0, -1]}, r"`seed` must be at least 0, got -1"),
        (TypeError, {"seeds": [[0], [1]]}, r"fit_seeds: `seed` must be an integer, got \[0\]"),
        (TypeError, {"build_method": gs.UPGrad()}, r"`build_method` must be a function of the seed, got UPGrad\(\)"),
        (TypeError, {"build_method": "upgrad"}, r"`build_method` must be a function of the seed, got 'upgrad'"),
        (TypeError, {"build_method": str}, r"`aggregator` must be an aggregator such as gs\.PCGrad\(\), got '0'"),
        (ValueError, {"epochs": 0}, r"`epochs` must be at least 1, got 0"),
        (ValueError, {"learning_rate": 0.0}, r"fit_seeds: `learning_rate` must be positive and finite, got 0\.0"),
    ],
)
def test_wrong_options_are_named(
    table: Table, error: type[Exception], options: dict[str, object], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_seeds(table, **{"seeds": (0, 1), **options})  # type: ignore[arg-type]


def test_methods_must_be_new_and_of_one_kind(table: Table) -> None:
    shared = gs.GradNorm(alpha=0.0)
    with pytest.raises(ValueError, match="must make a new method for each seed"):
        fit_seeds(table, lambda seed: shared, seeds=(0, 1))
    with pytest.raises(ValueError, match="must make one kind of method, got Sum, UPGrad"):
        fit_seeds(table, lambda seed: gs.UPGrad() if seed else gs.Sum(), seeds=(0, 1))
    with pytest.raises(ValueError, match="must make a new method for each seed"):
        fit_seeds(table, lambda seed: gs.Chain(shared, gs.PCGrad()), seeds=(0, 1))
    with pytest.raises(ValueError, match=r"the same options, got FairGrad\(alpha=1\.0\) and FairGrad\(alpha=2\.0\)"):
        fit_seeds(table, lambda seed: gs.FairGrad(alpha=seed + 1.0), seeds=(0, 1))


def test_what_is_wrong_with_one_seed_is_told_with_the_seed(table: Table) -> None:
    values = table.values.clone()
    values[table.split(3).train, table.schema.names.index("income")] = torch.nan
    partly = Table(table.schema, values)
    with pytest.raises(ValueError, match="fit_seeds: with seed 3, Encoding: column 'income' must have an observed"):
        fit_seeds(partly, seeds=(0, 3), epochs=1)
    with pytest.raises(ValueError, match="^Encoding: column 'income'"):
        fit_seeds(partly, seeds=[3], epochs=1)
    with pytest.raises(ValueError, match="fit_seeds: `table` must have at least 10 rows, got 9"):
        fit_seeds(Table(table.schema, table.values[:9]), seeds=[0])


def test_an_epoch_of_broken_weights_is_not_the_best(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the columns that are not broken err less."""
    found = iter([torch.nan, 0.0, torch.nan])

    def broken(model: Any, features: torch.Tensor) -> torch.Tensor:
        cells = table.values[table.split(0).validation].nan_to_num()  # right, but for a column
        cells[:, table.schema.names.index("income")] = next(found)
        return cells

    monkeypatch.setattr(stacked_training, "reconstruct", broken)
    (run,) = fit_seeds(table, seeds=[0], epochs=3)
    assert [math.isnan(epoch.validation_error) for epoch in run.history] == [True, False, True]
    assert run.best_epoch == 1


def test_progress_shows_medians(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    fit_seeds(table, seeds=range(2), epochs=2, progress=True, title="a method")
    out, err = capsys.readouterr()
    assert out == ""
    assert "a method" in err
    assert "median validation error" in err


def test_one_seed_and_one_column_are_enough() -> None:
    frame = pd.DataFrame({"x": np.linspace(-1, 1, 40)})
    table = Table.from_frame(frame, Schema.infer(frame))
    (run,) = fit_seeds(table, lambda seed: gs.UPGrad(), seeds=[7], epochs=2)
    assert_same(run, alone(table, gs.UPGrad(), 7, epochs=2), 1e-5)
