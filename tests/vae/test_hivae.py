"""HI-VAE: the network is the published one, its two blocks aggregate, several of them train as each does alone."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as Discrete
from torch.distributions import Normal as Gaussian
from torch.distributions import kl_divergence
from torch.nn import functional

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
    Likelihood,
    LogNormal,
    NegativeBinomial,
    Normal,
    Ordinal,
    Poisson,
    Table,
    ZeroTruncatedPoisson,
)
from gradsurgery.integrations.vae.models.hivae import (
    HIVAE,
    divergence_of_s,
    divergence_of_z,
    gumbel,
    relaxed_draw,
    temperature,
)
from gradsurgery.integrations.vae.models.objective import column_losses
from gradsurgery.integrations.vae.models.vae import Posterior
from gradsurgery.integrations.vae.stacked.hivae import StackedHIVAE
from gradsurgery.integrations.vae.stacked.likelihoods import StackedLikelihoods
from gradsurgery.integrations.vae.training.evaluation import column_errors
from gradsurgery.integrations.vae.training.methods import build_method

# Kinds interleaved, so that a stack's groups are not in the order of the columns.
LIKELIHOODS: list[Likelihood] = [
    Normal(),
    Categorical(3),
    LogNormal(),
    Poisson(20),
    Bernoulli(),
    Ordinal(3),
    Normal(),
]
FEATURES, COLUMNS, ROWS, EPOCH = 9, len(LIKELIHOODS), 24, 30
METHODS: dict[str, Callable[[], gs.Aggregator]] = {
    "sum": gs.Sum,
    "lossbalancer": lambda: gs.LossBalancer(beta=0.9),
    "pcgrad": lambda: gs.PCGrad(generator=seeded(3)),
    "mgda": gs.MGDA,
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_model(aggregator: gs.Aggregator | None = None, seed: int = 0, *, rescale: bool = True) -> HIVAE:
    return HIVAE(FEATURES, LIKELIHOODS, aggregator, rescale=rescale, generator=seeded(seed)).double()


def make_batch(seed: int = 5) -> Batch:
    generator = seeded(seed)
    scaled = torch.rand(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    scaled[:, [1, 3, 4, 5]] = torch.randint(0, 2, (ROWS, 4), generator=generator).double()
    observed = torch.rand(ROWS, COLUMNS, generator=generator) < 0.8
    return Batch(torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64), scaled, observed)


def gradients(model: HIVAE, batch: Batch | None = None) -> dict[str, Tensor]:
    model.zero_grad()
    model.objective(batch or make_batch(), seeded(1), epoch=EPOCH).total.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def drawn(model: HIVAE, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """z, s and what does not pass through the blocks, by the formulas."""
    generator = seeded(1)
    logits = batch.features @ model.to_s.weight.T + model.to_s.bias
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    s = functional.softmax((logits - (-uniform.log()).log()) / (1 - 0.01 * EPOCH), 1)
    raw = torch.cat([batch.features, s], 1) @ model.to_z.weight.T + model.to_z.bias
    scale = functional.softplus(raw[:, 10:]) + 1e-6
    z = raw[:, :10] + scale * torch.randn(ROWS, 10, generator=generator, dtype=torch.float64)
    prior = Gaussian(s @ model.prior.weight.T + model.prior.bias, 1.0)
    of_z = kl_divergence(Gaussian(raw[:, :10], scale), prior).sum(1).mean()
    of_s = kl_divergence(Discrete(logits=logits), Discrete(torch.full((10,), 0.1, dtype=torch.float64))).mean()
    return z, s, of_z + of_s


def without_blocks(model: HIVAE) -> HIVAE:
    plain = copy.deepcopy(model)
    plain.block = plain.s_block = None  # type: ignore[assignment]
    return plain


def test_every_parameter_has_a_gradient_and_the_sum_is_ordinary_training() -> None:
    model = make_model(gs.Sum())
    plain = without_blocks(model)
    expected = gradients(plain)
    assert set(expected) == {name for name, _ in model.named_parameters()}
    assert all(gradient.any() for gradient in expected.values())
    found = gradients(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_blocks_aggregate_the_columns_gradients_at_z_and_at_s(name: str, rescale: bool) -> None:
    model, batch = make_model(METHODS[name](), rescale=rescale), make_batch()
    z, s, rest = drawn(model, batch)
    latent = torch.cat([z, s], 1)
    leaf = latent.detach().requires_grad_()
    losses = column_losses(LIKELIHOODS, without_blocks(model).decode(leaf), batch)
    rows = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses])
    passed = []
    for own in rows.split([10, 10], 2):
        direction = METHODS[name]()(own.flatten(1))
        length = own.sum(0).norm() / direction.norm() if rescale else 1.0
        passed.append((direction * length).view(own.shape[1:]))
    encoder = [model.to_s.weight, model.to_s.bias, model.to_z.weight, model.to_z.bias]
    expected = [
        through + beside
        for through, beside in zip(
            torch.autograd.grad(latent, encoder, torch.cat(passed, 1), retain_graph=True),
            torch.autograd.grad(rest, encoder),
            strict=True,
        )
    ]
    gradients(model)
    for weight, gradient in zip(encoder, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-8, atol=1e-11)
    if name != "sum":
        assert (model.to_z.weight.grad - gradients(make_model())["to_z.weight"]).norm() > 1e-3


def test_the_objective_is_the_negative_bound() -> None:
    model, batch = make_model(), make_batch()
    z, s, rest = drawn(model, batch)
    objective = model.objective(batch, seeded(1), epoch=EPOCH)
    torch.testing.assert_close(objective.rest, rest)
    torch.testing.assert_close(
        objective.losses, column_losses(LIKELIHOODS, model.decode(torch.cat([z, s], 1)), batch)
    )
    torch.testing.assert_close(objective.total, objective.losses.sum() + rest)
    assert not torch.equal(objective.losses, model.objective(batch, seeded(1), epoch=EPOCH + 1).losses)


def test_behind_the_blocks_each_column_has_its_own_gradients() -> None:
    expected, found = gradients(make_model()), gradients(make_model(gs.MGDA()))
    for name in ("to_y.weight", "to_y.bias", "locations", "heads.weight", "heads.bias", "prior.weight"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_each_block_has_a_method_of_its_own() -> None:
    method = gs.LossBalancer()
    model = make_model(method)
    assert model.block.aggregator is method
    assert model.s_block.aggregator is not method
    gradients(model)
    averages = [block.aggregator.state_dict()["average"] for block in (model.block, model.s_block)]
    assert all(average.shape == (COLUMNS,) and (average > 0).all() for average in averages)
    assert not torch.equal(*averages)


def test_what_stands_in_missing_cells_changes_nothing() -> None:
    batch = make_batch()
    other = Batch(batch.features, torch.where(batch.observed, batch.scaled, torch.nan), batch.observed)
    expected, found = (gradients(make_model(gs.LossBalancer()), each) for each in (batch, other))
    for name, gradient in expected.items():
        assert gradient.isfinite().all()
        assert torch.equal(found[name], gradient), name


def test_a_column_that_is_missing_altogether_pulls_nowhere() -> None:
    batch = make_batch()
    batch.observed[:, 2] = False
    found = gradients(make_model(gs.LossBalancer()), batch)
    rows = make_model().heads.head_slices()[2]
    assert not found["heads.weight"][rows].any()
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_architecture() -> None:
    model = HIVAE(FEATURES, LIKELIHOODS)
    widths = [2, 3, 2, 1, 1, 2, 2]
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert shapes == {
        "locations": (1 + 3 + 1 + 1 + 1 + 1 + 1, 5),
        "to_s.weight": (10, FEATURES),
        "to_s.bias": (10,),
        "to_z.weight": (20, FEATURES + 10),
        "to_z.bias": (20,),
        "prior.weight": (10, 10),
        "prior.bias": (10,),
        "to_y.weight": (5 * COLUMNS, 10),
        "to_y.bias": (5 * COLUMNS,),
        "heads.weight": (sum(widths), 10),
        "heads.bias": (sum(widths),),
    }
    assert model.latent_size == 20
    parameters = model.decode(torch.zeros(4, 20))
    assert [tuple(eta.shape) for eta in parameters] == [(4, width) for width in widths]


def test_sizes_are_options() -> None:
    model = HIVAE(FEATURES, LIKELIHOODS, latent_size=3, column_size=2, components=4)
    assert model.latent_size == 7
    assert model.posterior_mode(torch.zeros(5, FEATURES)).shape == (5, 7)
    assert model.to_y.weight.shape == (2 * COLUMNS, 3)


@pytest.mark.parametrize(
    ("likelihood", "locations"),
    [
        (Normal(), 1),
        (LogNormal(), 1),
        (Gamma(), 1),
        (Exponential(), 1),
        (Beta(), 2),
        (Poisson(9), 1),
        (NegativeBinomial(9), 1),
        (Bernoulli(), 1),
        (Categorical(4), 4),
        (Ordinal(4), 1),
        (Hurdle(LogNormal()), 2),
        (Hurdle(Gamma()), 2),
        (Hurdle(ZeroTruncatedPoisson(9)), 2),
    ],
)
def test_what_spreads_depends_on_s_alone(likelihood: Likelihood, locations: int) -> None:
    assert likelihood.num_locations == locations
    model = HIVAE(2, [Normal(), likelihood], generator=seeded(0)).double()
    s = functional.one_hot(torch.arange(6), 10).double()
    here, there = (
        model.decode(torch.cat([torch.randn(6, 10, generator=seeded(seed), dtype=torch.float64), s], 1))[1]
        for seed in (0, 1)
    )
    assert (here[:, :locations] - there[:, :locations]).abs().min() > 1e-6
    torch.testing.assert_close(here[:, locations:], there[:, locations:], rtol=0, atol=0)
    assert (here[0, locations:] != here[1, locations:]).all()


def test_a_column_hears_its_own_y_alone() -> None:
    model = make_model()
    latent = torch.randn(3, 20, generator=seeded(0), dtype=torch.float64)
    before = model.decode(latent)
    with torch.no_grad():
        model.to_y.weight[model.to_y.head_slices()[1]] += 1.0
    after = model.decode(latent)
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [
        column != 1 for column in range(COLUMNS)
    ]


def test_draws_of_s_become_one_hot() -> None:
    assert [temperature(epoch) for epoch in (0, 25, 99, 100, 5000)] == pytest.approx([1, 0.75, 0.01, 1e-3, 1e-3])
    logits = torch.randn(4000, 3, generator=seeded(0), dtype=torch.float64)
    uniform = torch.rand(4000, 3, generator=seeded(1), dtype=torch.float64)
    soft, hard = (relaxed_draw(logits, uniform, heat) for heat in (1.0, 1e-3))
    torch.testing.assert_close(soft.sum(1), torch.ones(4000, dtype=torch.float64))
    assert soft.max(1).values.mean() < 0.9
    assert (hard.max(1).values > 0.999).float().mean() > 0.98
    assert torch.equal(soft.argmax(1), hard.argmax(1))
    torch.testing.assert_close(hard.mean(0), logits.softmax(1).mean(0), rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_uniform_noise_are_finite(dtype: torch.dtype) -> None:
    ends = torch.tensor([0.0, 1.0 - torch.finfo(dtype).eps / 2], dtype=dtype)
    logits = torch.zeros(2, 2, dtype=dtype, requires_grad=True)
    draws = relaxed_draw(logits, torch.stack([ends, ends.flip(0)]), 1e-3)
    draws[:, 0].sum().backward()
    assert gumbel(ends).isfinite().all()
    assert draws.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_divergences() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]], dtype=torch.float64)
    expected = (0 + 0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert divergence_of_s(logits).item() == pytest.approx(expected)
    ones = torch.ones(4, 2)
    assert divergence_of_z(Posterior(ones, ones), ones).item() == 0
    assert divergence_of_z(Posterior(ones, ones), -ones).item() == pytest.approx(4)
    both = divergence_of_s(torch.stack([logits, 0 * logits]))
    torch.testing.assert_close(both, torch.tensor([expected, 0.0], dtype=torch.float64))


def test_the_posterior_mode_has_no_randomness_and_one_component() -> None:
    model, features = make_model(), make_batch().features
    latent = model.posterior_mode(features)
    assert torch.equal(latent, model.posterior_mode(features))
    s = latent[:, 10:]
    assert torch.equal(s.argmax(1), model.to_s(features).argmax(1))
    assert torch.equal(s.sort(1).values, functional.one_hot(torch.full((ROWS,), 9), 10).double())
    assert torch.equal(latent[:, :10], model.posterior_of_z(features, s).loc)


def test_draws_follow_posterior_and_prior() -> None:
    model = make_model()
    features = make_batch().features[:1].expand(20_000, FEATURES)
    with torch.no_grad():
        latent = model.posterior_draw(features, seeded(0))
        shares = model.to_s(features[0]).softmax(0)
        torch.testing.assert_close(latent[:, 10:].mean(0), shares, rtol=0, atol=0.02)
        chosen = latent[latent[:, 10 + shares.argmax()] == 1]
        posterior = model.posterior_of_z(features[:1], chosen[:1, 10:])
        torch.testing.assert_close(chosen[:, :10].mean(0), posterior.loc[0], rtol=0, atol=0.08)
        torch.testing.assert_close(chosen[:, :10].std(0), posterior.scale[0], rtol=0.06, atol=0)
        latent = model.prior_draw(20_000, seeded(0))
        torch.testing.assert_close(latent[:, 10:].mean(0), torch.full_like(shares, 0.1), rtol=0, atol=0.02)
        chosen = latent[latent[:, 13] == 1][:, :10]
        loc = model.prior.weight[:, 3] + model.prior.bias
        torch.testing.assert_close(chosen.mean(0), loc, rtol=0, atol=0.1)
        torch.testing.assert_close(chosen.std(0), torch.ones_like(loc), rtol=0.1, atol=0)


def test_one_seed_one_model_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (make_model(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["to_z.weight"], other["to_z.weight"])
    totals = [make_model().objective(make_batch(), seeded(2)).total for _ in range(2)]
    assert torch.equal(*totals)
    model = make_model()
    model.posterior_draw(make_batch().features, seeded(0))
    model.prior_draw(3, seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_dict_brings_back_weights_and_methods() -> None:
    model, other = make_model(gs.LossBalancer()), make_model(gs.LossBalancer(), seed=1)
    gradients(model)
    other.load_state_dict(model.state_dict())
    for _ in range(2):
        expected, found = gradients(model), gradients(other)
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert all("block" in name or name in expected for name in model.state_dict())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HIVAE(0, LIKELIHOODS), r"HIVAE: `num_features` must be at least 1, got 0"),
        (lambda: HIVAE(3, []), r"HIVAE: `likelihoods` must be at least 1, got 0"),
        (lambda: HIVAE(3, LIKELIHOODS, latent_size=0), r"HIVAE: `latent_size` must be at least 1, got 0"),
        (lambda: HIVAE(3, LIKELIHOODS, column_size=0), r"HIVAE: `column_size` must be at least 1, got 0"),
        (lambda: HIVAE(3, LIKELIHOODS, components=0), r"HIVAE: `components` must be at least 1, got 0"),
    ],
)
def test_wrong_sizes_are_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


class Together:
    """Three models, one step after the other, each alone or all at once."""

    def __init__(self, name: str, rescale: bool) -> None:
        self.models = [
            HIVAE(FEATURES, own, build_method(name, seed), rescale=rescale, generator=seeded(seed)).double()
            for seed, own in enumerate(self.likelihoods())
        ]
        self.generators = [seeded(10 + seed) for seed in range(3)]

    @staticmethod
    def likelihoods() -> Sequence[list[Likelihood]]:
        """Scaled by other training rows, as those of seeds are."""
        return [[Poisson(20 + seed) if isinstance(own, Poisson) else own for own in LIKELIHOODS] for seed in range(3)]

    def alone(self, steps: int) -> None:
        for model, generator, seed in zip(self.models, self.generators, range(3), strict=True):
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            for step in range(steps):
                optimizer.zero_grad()
                model.objective(make_batch(20 + 3 * step + seed), generator, epoch=40 * step).total.backward()
                optimizer.step()

    def stacked(self, steps: int) -> list[Tensor]:
        likelihoods = StackedLikelihoods(self.likelihoods())
        stack = StackedHIVAE(self.models, likelihoods)
        optimizer = torch.optim.Adam(stack.weights.values(), lr=0.01)
        losses = []
        for step in range(steps):
            batches = [make_batch(20 + 3 * step + seed) for seed in range(3)]
            batch = Batch(
                torch.stack([own.features for own in batches]),
                torch.stack([own.scaled[:, likelihoods.columns] for own in batches]),
                torch.stack([own.observed[:, likelihoods.columns] for own in batches]),
            )
            optimizer.zero_grad()
            objective = stack.objective(batch, self.draw, 40 * step)
            assert objective.losses.shape == (3, COLUMNS)
            assert objective.rest.shape == (3,)
            objective.total.sum().backward()
            optimizer.step()
            losses.append(objective.total.detach())
        stack.copy_to_models()
        return losses

    def draw(self, fill: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        noise = torch.empty(shape, dtype=torch.float64)
        for own, generator in zip(noise, self.generators, strict=True):
            fill(own, generator=generator)
        return noise


@pytest.fixture(name="precise")
def _precise() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", ["sum", "lossbalancer", "upgrad", "pcgrad", "graddrop", "gradnorm+pcgrad"])
def test_several_at_once_are_what_each_is_alone(name: str, rescale: bool) -> None:
    one, other = Together(name, rescale), Together(name, rescale)
    one.alone(4)
    losses = other.stacked(4)
    assert len({float(loss) for loss in losses[-1]}) == 3
    for mine, theirs in zip(one.models, other.models, strict=True):
        states = mine.state_dict(), theirs.state_dict()
        assert list(states[0]) == list(states[1])
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=1e-8, atol=1e-8, msg=key)


def test_steps_differ_while_the_temperature_falls() -> None:
    likelihoods = StackedLikelihoods([LIKELIHOODS])
    stack = StackedHIVAE([HIVAE(FEATURES, LIKELIHOODS)], likelihoods)
    assert len({stack.phase(epoch) for epoch in range(100)}) == 100
    assert stack.phase(100) == stack.phase(2000)


def test_it_learns_every_column(table: Table) -> None:
    split = table.split()
    encoding = Encoding(table, split.train, "hivae")
    rows = encoding.encode(table).select(split.train)
    model = HIVAE(encoding.num_features, encoding.likelihoods, gs.LossBalancer(), generator=seeded(0))
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=0.01), seeded(0)

    def errors() -> Tensor:
        with torch.no_grad():
            parameters = model.decode(model.posterior_mode(rows.features))
        modes = [own.mode(eta.double()) for own, eta in zip(encoding.likelihoods, parameters, strict=True)]
        return column_errors(table, split.train, torch.stack(modes, 1))

    for step in range(400):
        optimizer.zero_grad()
        model.objective(rows, generator, epoch=step // 4).total.backward()
        optimizer.step()
    typical = torch.stack(
        [
            column[seen].mode().values if kind.discrete else column[seen].mean()
            for column, seen, kind in zip(table.values.T, table.observed.T, table.schema, strict=True)
        ]
    )
    guessed = column_errors(table, split.train, typical.expand(len(split.train), -1))
    assert (errors() < 0.85 * guessed).all(), (errors(), guessed)
