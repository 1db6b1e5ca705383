"""Importance-weighted objectives: their values, and the gradients that their papers derive."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.integrations.vae import IWAE, Batch, Bernoulli, Categorical, DReG, Normal, Poisson
from gradsurgery.integrations.vae.models import importance
from gradsurgery.integrations.vae.models.importance import log_ratio, normalised
from gradsurgery.integrations.vae.models.objective import column_log_probs

LIKELIHOODS = (Normal(), Poisson(9), Bernoulli(), Categorical(3))
ROWS, DRAWS = 12, 5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(name="batch")
def _batch() -> Batch:
    generator = seeded(5)
    scaled = torch.randint(0, 2, (ROWS, 4), generator=generator).double()
    features = torch.randn(ROWS, 6, generator=generator, dtype=torch.float64)
    return Batch(features, scaled, torch.rand(ROWS, 4, generator=generator) < 0.8)


def build(kind: type[IWAE], method: gs.Aggregator | None = None, draws: int = DRAWS) -> IWAE:
    return kind(6, LIKELIHOODS, method, num_samples=draws, dropout=0.0, generator=seeded(0)).double()


def log_weights(model: IWAE, batch: Batch, *, held: bool = False) -> tuple[Tensor, Tensor]:
    """log w and the cells' log-likelihoods, draw by draw; with ``held``, q's density sees z alone."""
    generator = seeded(1)
    posterior = model.encode(batch.features, generator)
    noise = torch.randn(model.num_samples, *posterior.loc.shape, generator=generator, dtype=torch.float64)
    weights, cells = [], []
    for own in noise:
        z = posterior.loc + posterior.scale * own
        q = torch.distributions.Normal(*(part.detach() if held else part for part in posterior))
        prior = torch.distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
        log_probs = column_log_probs(model.likelihoods, model.decode(z), batch.scaled, batch.observed)
        cells.append(log_probs)
        weights.append(log_probs.sum(1) + (prior.log_prob(z) - q.log_prob(z)).sum(1))
    return torch.stack(weights), torch.stack(cells)


def gradients(model: IWAE, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", [IWAE, DReG])
def test_the_value_is_the_bound(kind: type[IWAE], batch: Batch) -> None:
    model = build(kind)
    found = model.objective(batch, seeded(1)).total
    log_w, _ = log_weights(model, batch)
    torch.testing.assert_close(found, -(log_w.logsumexp(0) - math.log(DRAWS)).mean())


def test_the_gradient_of_iwae_is_that_of_the_bound(batch: Batch) -> None:
    model = build(IWAE)
    found = gradients(model, model.objective(batch, seeded(1)).total)
    log_w, _ = log_weights(model, batch)
    expected = gradients(model, -(log_w.logsumexp(0) - math.log(DRAWS)).mean())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_a_column_has_its_share_of_the_bound(batch: Batch) -> None:
    """Its loss is differentiated alone: what is left of the bound when the other columns' likelihoods are held."""
    model = build(IWAE)
    log_w, cells = log_weights(model, batch)
    for column in range(4):
        own = model.objective(batch, seeded(1)).losses[column]
        found = gradients(model, own)["trunk.0.weight"]
        log_w, cells = log_weights(model, batch)
        share = log_w.detach() + cells[..., column] - cells[..., column].detach()
        expected = gradients(model, -share.logsumexp(0).mean())["trunk.0.weight"]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_dreg_is_doubly_reparametrised(batch: Batch) -> None:
    model = build(DReG)
    found = gradients(model, model.objective(batch, seeded(1)).total)
    log_w, cells = log_weights(model, batch, held=True)
    weights = log_w.detach().softmax(0)
    decoder = gradients(model, -(weights * cells.sum(2)).sum(0).mean())
    log_w, _ = log_weights(model, batch, held=True)
    encoder = gradients(model, -(weights.square() * log_w).sum(0).mean())
    for name, gradient in found.items():
        reference = decoder if name.split(".")[0] in ("trunk", "heads") else encoder
        torch.testing.assert_close(gradient, reference[name], rtol=1e-9, atol=1e-12, msg=name)


def test_both_gradients_have_the_same_mean() -> None:
    """DReG's of the encoder is unbiased for the bound's: averaged over many draws of the noise, they agree."""
    rows = 3
    batch = Batch(
        torch.randn(rows, 6, generator=seeded(2), dtype=torch.float64),
        torch.ones(rows, 4, dtype=torch.float64),
        torch.ones(rows, 4, dtype=torch.bool),
    )
    many = Batch(batch.features.repeat(4000, 1), batch.scaled.repeat(4000, 1), batch.observed.repeat(4000, 1))
    found = []
    for kind in (IWAE, DReG):
        model = build(kind, draws=3).eval()  # BatchNorm would tell the rows from each other
        found.append(gradients(model, model.objective(many, seeded(3)).total)["to_loc.weight"])
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()
    assert (found[0] - found[1]).norm() > 0


@pytest.mark.parametrize("kind", [IWAE, DReG])
def test_the_blocks_see_all_draws_and_rows_of_a_column(kind: type[IWAE], batch: Batch) -> None:
    """The gradient that reaches the trunk is the method's of the columns' gradients at its output, one by one."""
    model = build(kind, gs.UPGrad())
    seen: list[Tensor] = []
    hook = model.trunk.register_forward_hook(lambda module, inputs, output: seen.append(output))
    objective = model.objective(batch, seeded(1))
    hook.remove()
    (at,) = (output for output in seen[:1])
    (found,) = torch.autograd.grad(objective.losses.sum(), at, retain_graph=True)
    plain = copy.deepcopy(model)
    plain.block = plain.encoder_block = None
    seen.clear()
    plain.trunk.register_forward_hook(lambda module, inputs, output: seen.append(output))
    losses = plain.objective(batch, seeded(1)).losses
    rows = [torch.autograd.grad(loss, seen[0], retain_graph=True)[0] for loss in losses]
    assert rows[0].shape == (DRAWS * ROWS, 50)
    jacobian = torch.stack(rows).flatten(1)
    direction = gs.UPGrad()(jacobian)
    direction = direction * jacobian.sum(0).norm() / direction.norm()
    torch.testing.assert_close(found.flatten(), direction, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("method", [gs.Sum(), gs.UPGrad(), gs.MGDA()])
def test_the_block_of_the_encoder_too(method: gs.Aggregator, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind it are the gradients of the columns' likelihoods, weighed with the squares of the weights."""
    model, seen = build(DReG, method), []

    def call(module: torch.nn.Module, *arguments: Any) -> Any:
        output = torch.func.functional_call(module, *arguments)
        if module is model.trunk:
            seen.append(output)
        return output

    monkeypatch.setattr(importance, "functional_call", call)
    objective = model.objective(batch, seeded(1))
    (found,) = torch.autograd.grad(objective.total, seen[0])
    log_w, _ = log_weights(model, batch)
    at = seen[0].detach().requires_grad_()
    outputs = model.heads(at, gs.ImpartialityBlock(4, gs.Sum()))
    parameters = tuple(kind.natural(own) for kind, own in zip(model.likelihoods, outputs, strict=True))
    scaled, observed = (cells.repeat(DRAWS, 1) for cells in (batch.scaled, batch.observed))
    cells = column_log_probs(model.likelihoods, parameters, scaled, observed).view(DRAWS, ROWS, 4)
    losses = -(log_w.detach().softmax(0).square().unsqueeze(-1) * cells).sum(0).mean(0)
    rows = [torch.autograd.grad(loss, at, retain_graph=True)[0].flatten() for loss in losses]
    direction = method(torch.stack(rows))
    direction = direction * torch.stack(rows).sum(0).norm() / direction.norm()
    torch.testing.assert_close(found.flatten(), direction, rtol=1e-7, atol=1e-12)


def test_the_blocks_of_dreg_learn_apart(batch: Batch) -> None:
    model = build(DReG, gs.LossBalancer())
    model.objective(batch, seeded(1)).total.backward()
    states = [block.aggregator.state_dict()["average"] for block in (model.block, model.encoder_block)]
    assert all((state > 0).all() for state in states)
    assert not torch.allclose(*states)


def test_one_draw_is_the_vae_with_a_sampled_divergence(batch: Batch) -> None:
    model = build(IWAE, draws=1)
    generator = seeded(1)
    posterior = model.encode(batch.features, generator)
    noise = torch.randn(1, *posterior.loc.shape, generator=generator, dtype=torch.float64)
    z = posterior.loc + posterior.scale * noise
    objective = model.objective(batch, seeded(1))
    torch.testing.assert_close(objective.rest, -log_ratio(z, noise, posterior.scale).mean())


def test_weights_of_extreme_draws_are_finite() -> None:
    weights, bound = normalised(torch.tensor([[-1e5, 0.0], [-2e5, 1e4]]))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(bound, torch.tensor([-1e5, 1e4]) - math.log(2))


def test_more_draws_give_a_tighter_bound(batch: Batch) -> None:
    totals = []
    for draws in (1, 10, 100):
        with torch.no_grad():
            model = build(IWAE, draws=draws).eval()
            totals.append(float(torch.stack([model.objective(batch, seeded(s)).total for s in range(40)]).mean()))
    assert totals[0] > totals[1] > totals[2]


def test_wrong_draws_are_named() -> None:
    with pytest.raises(ValueError, match=r"DReG: `num_samples` must be at least 1, got 0"):
        DReG(6, LIKELIHOODS, num_samples=0)
