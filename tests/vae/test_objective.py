"""Missing cells change nothing; the terms are those of the evidence lower bound."""

import pytest
import torch
from torch import Tensor, distributions

from gradsurgery.integrations.vae import VAE, Batch, Encoding, Table
from gradsurgery.integrations.vae.models.objective import column_losses
from gradsurgery.integrations.vae.models.vae import Posterior, kl_divergence


@pytest.fixture(name="batch")
def _batch(table: Table) -> Batch:
    return Encoding(table, table.split().train).encode(table)


@pytest.fixture(name="vae")
def _vae(table: Table) -> VAE:
    encoding = Encoding(table, table.split().train)
    return VAE(encoding.num_features, encoding.likelihoods, generator=torch.Generator().manual_seed(0))


def gradients(vae: VAE, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    vae.zero_grad()
    loss = vae.objective(batch, torch.Generator().manual_seed(1)).total
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in vae.parameters()]


@pytest.mark.parametrize("hidden", [1.0, 0.5, 1e30, torch.nan, torch.inf])
def test_what_stands_in_a_missing_cell_changes_nothing(vae: VAE, batch: Batch, hidden: float) -> None:
    changed = Batch(batch.features, batch.scaled.masked_fill(~batch.observed, hidden), batch.observed)
    assert not torch.equal(changed.scaled, batch.scaled)
    loss, before = gradients(vae, batch)
    same, after = gradients(vae, changed)
    assert torch.isfinite(loss)
    assert torch.equal(loss, same)
    assert all(torch.equal(first, second) for first, second in zip(before, after, strict=True))


def test_what_stands_in_an_observed_cell_does(vae: VAE, batch: Batch) -> None:
    changed = batch.scaled.clone()
    row = int(batch.observed[:, 0].nonzero()[0])
    changed[row, 0] += 1
    loss, _ = gradients(vae, batch)
    assert gradients(vae, Batch(batch.features, changed, batch.observed))[0] != loss


def test_gradients_of_missing_cells_are_zero(vae: VAE, batch: Batch) -> None:
    scaled = batch.scaled.clone().requires_grad_()
    _, parameters = vae(batch.features, torch.Generator().manual_seed(1))
    numbers = slice(0, 3)
    column_losses(vae.likelihoods, parameters, Batch(batch.features, scaled, batch.observed))[
        numbers
    ].sum().backward()
    gradient, observed = scaled.grad[:, numbers], batch.observed[:, numbers]
    assert (gradient[~observed] == 0).all()
    assert (gradient[observed] != 0).all()


def test_a_column_missing_in_a_batch_has_no_loss(vae: VAE, batch: Batch) -> None:
    observed = batch.observed.clone()
    observed[:, [0, 4]] = False
    objective = vae.objective(Batch(batch.features, batch.scaled, observed), torch.Generator().manual_seed(1))
    objective.total.backward()
    assert (objective.losses == 0).tolist() == [True, False, False, False, True, False]
    ends = vae.heads.weight.grad.split([likelihood.num_parameters for likelihood in vae.likelihoods])
    assert [bool((part == 0).all()) for part in ends] == [True, False, False, False, True, False]
    assert all(torch.isfinite(parameter.grad).all() for parameter in vae.parameters())


def test_losses_average_the_observed_cells_over_all_rows(vae: VAE, batch: Batch) -> None:
    _, parameters = vae(batch.features, torch.Generator().manual_seed(1))
    losses = column_losses(vae.likelihoods, parameters, batch)
    for d, (likelihood, eta) in enumerate(zip(vae.likelihoods, parameters, strict=True)):
        seen = batch.observed[:, d]
        reference = -likelihood.log_prob(batch.scaled[seen, d], eta[seen]).sum() / len(batch)
        torch.testing.assert_close(losses[d], reference)


def test_kl_divergence_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    loc, raw = torch.randn(2, 30, 4, dtype=torch.float64, generator=generator)
    posterior = Posterior(loc, raw.exp())
    prior = distributions.Normal(torch.zeros_like(loc), torch.ones_like(loc))
    reference = distributions.kl_divergence(distributions.Normal(*posterior), prior).sum(1).mean()
    torch.testing.assert_close(kl_divergence(posterior), reference)


def test_total_is_the_sum_of_losses_and_kl(vae: VAE, batch: Batch) -> None:
    objective = vae.objective(batch, torch.Generator().manual_seed(1))
    torch.testing.assert_close(objective.total, objective.losses.sum() + objective.rest)
    assert objective.rest > 0
