"""The network is the published one, and with the plain sum the block changes nothing."""

import copy

import pytest
import torch
from torch import nn

import gradsurgery as gs
from gradsurgery.integrations.vae import VAE, Batch, Bernoulli, Categorical, LogNormal, Normal, Poisson

LIKELIHOODS = [Normal(), LogNormal(), Poisson(20), Bernoulli(), Categorical(3)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(rows: int = 32) -> Batch:
    generator = seeded(5)
    scaled = torch.rand(rows, 5, generator=generator).round(decimals=1)
    scaled[:, 2:] = torch.randint(0, 2, (rows, 3), generator=generator).float()
    return Batch(torch.randn(rows, 7, generator=generator), scaled, torch.rand(rows, 5, generator=generator) < 0.8)


def gradients(vae: VAE) -> dict[str, torch.Tensor]:
    vae.objective(make_batch(), seeded(1)).total.backward()
    return {name: parameter.grad for name, parameter in vae.named_parameters()}


def test_plain_sum_in_the_block_is_ordinary_training() -> None:
    vae = VAE(7, LIKELIHOODS, gs.Sum(), generator=seeded(0))
    plain = copy.deepcopy(vae)
    plain.block = None
    with_block, without = gradients(vae), gradients(plain)
    assert with_block.keys() == without.keys()
    for name, gradient in without.items():
        torch.testing.assert_close(with_block[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_other_methods_change_what_lies_before_the_block_only() -> None:
    reference = gradients(VAE(7, LIKELIHOODS, generator=seeded(0)))
    changed = gradients(VAE(7, LIKELIHOODS, gs.MGDA(), generator=seeded(0)))
    for name in ("heads.weight", "heads.bias"):
        torch.testing.assert_close(changed[name], reference[name])
    for name in ("trunk.0.weight", "encoder.0.weight"):
        assert (changed[name] - reference[name]).norm() > 0.1 * reference[name].norm()


def test_kl_divergence_does_not_pass_through_the_block() -> None:
    before, after = (VAE(7, LIKELIHOODS, method, generator=seeded(0)) for method in (gs.Sum(), gs.MGDA()))
    for vae in (before, after):
        vae.objective(make_batch(), seeded(1)).rest.backward()
    assert all(parameter.grad is None for parameter in after.trunk.parameters())
    torch.testing.assert_close(before.encoder[0].weight.grad, after.encoder[0].weight.grad, rtol=0, atol=0)
    assert after.encoder[0].weight.grad.norm() > 0


def test_architecture() -> None:
    vae = VAE(7, LIKELIHOODS)
    assert vae.dropout == 0.1
    assert isinstance(vae.normalise, nn.BatchNorm1d)
    for part, inputs, activation in ((vae.encoder, 7, nn.Tanh), (vae.trunk, 3, nn.ReLU)):
        layers = list(part)
        assert [type(layer) for layer in layers] == [nn.Linear, activation] * 3
        assert [layer.in_features for layer in layers[::2]] == [inputs, 50, 50]
    assert vae.to_loc.weight.shape == vae.to_scale.weight.shape == (3, 50)
    assert vae.heads.weight.shape == (2 + 2 + 1 + 1 + 3, 50)


@pytest.mark.parametrize(("columns", "latent"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (16, 8)])
def test_latent_size_is_half_the_number_of_columns(columns: int, latent: int) -> None:
    assert VAE(3, [Normal()] * columns).latent_size == latent


def test_initial_weights_are_xavier() -> None:
    vae = VAE(40, [Categorical(30)] * 40, hidden_size=200, generator=seeded(0))
    layers = [
        (vae.encoder[2].weight, 5 / 3),
        (vae.trunk[2].weight, 2**0.5),
        (vae.to_loc.weight, 1.0),
        (vae.heads.weight[:30], 1.0),
    ]
    for weight, gain in layers:
        bound = gain * (6 / sum(weight.shape)) ** 0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    biases = [parameter for name, parameter in vae.named_parameters() if "bias" in name and "normalise" not in name]
    assert all((bias == 0.01).all() for bias in biases)


def test_one_seed_one_model_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (VAE(7, LIKELIHOODS, generator=seeded(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["trunk.0.weight"], other["trunk.0.weight"])
    batch = make_batch()
    losses = [VAE(7, LIKELIHOODS, generator=seeded(0)).objective(batch, seeded(2)).total for _ in range(2)]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_scales_and_stops_in_evaluation() -> None:
    vae = VAE(2000, [Normal()], generator=seeded(0))
    seen: list[torch.Tensor] = []
    vae.normalise.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ones = torch.ones(5, 2000)
    vae.encode(ones, seeded(0))
    vae.eval()
    vae.encode(ones, seeded(0))
    dropped = seen[0]
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.9)]
    assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(seen[1], ones)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VAE(0, LIKELIHOODS), r"VAE: `num_features` must be at least 1, got 0"),
        (lambda: VAE(3, []), r"VAE: `likelihoods` must be at least 1, got 0"),
        (lambda: VAE(3, LIKELIHOODS, hidden_size=0), r"VAE: `hidden_size` must be at least 1, got 0"),
        (lambda: VAE(3, LIKELIHOODS, latent_size=0), r"VAE: `latent_size` must be at least 1, got 0"),
        (lambda: VAE(3, LIKELIHOODS, dropout=1.0), r"VAE: `dropout` must be in \[0, 1\), got 1\.0"),
    ],
)
def test_wrong_sizes_are_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
