"""Every scalarizer computes what its paper says and keeps what its row in the registry promises."""

import copy
import inspect
import math
import pickle
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, get_args

import pytest
import torch
from support import assert_near, assert_no_host_sync, assert_same_bits, state_of
from torch import Tensor, nn

from gradsurgery import scalarizers
from gradsurgery.aggregators import Randomized
from gradsurgery.scalarizers import (
    CONTRACTS,
    COSMOS,
    DWA,
    FAMO,
    IMTLL,
    PBI,
    STCH,
    Constant,
    Contract,
    GeometricMean,
    Mean,
    Random,
    ReLoBRaLo,
    Scalarizer,
    SoftAdapt,
    Sum,
    UncertaintyWeighting,
)
from gradsurgery.scalarizers.registry import Guarantee

FLAGS: tuple[str, ...] = get_args(Guarantee)
STATEFUL = [method for method, contract in CONTRACTS.items() if "state_round_trip" in contract.guarantees]

_FALLING = torch.tensor(
    [[0.7, 1.3, 2.1], [0.6, 1.3, 1.9], [0.65, 1.1, 1.2], [0.3, 1.15, 0.8], [0.2, 0.9, 0.85]], dtype=torch.float64
)
TRAININGS: dict[str, Tensor] = {
    "falling": _FALLING,
    "units a billion apart": _FALLING * torch.tensor([1e-6, 1.0, 1e3], dtype=torch.float64),
    "rising": _FALLING.flip(0),
    "standing still": _FALLING[:1].expand(5, 3),
    "equal": _FALLING[:, :1].expand(5, 3),
}
"""Three positive losses in five steps."""


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def look(method: Scalarizer, losses: Tensor, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """The scalar and its derivatives."""
    point = losses.clone().requires_grad_()
    scalar = method(point, rows=rows)
    (weights,) = torch.autograd.grad(scalar, point)
    return scalar.detach(), weights


def train(method: Scalarizer, steps: Tensor, rows: Sequence[int] | None = None) -> Tensor:
    """The weights in every step. The losses after a step are those of the next one, and each step is an epoch."""
    weights = []
    for losses, after in zip(steps, torch.cat([steps[1:], steps[-1:] / 2]), strict=True):
        weights.append(look(method, losses, rows)[1])
        method.update(after, rows=rows)
        method.next_epoch()
    return torch.stack(weights)


def samples(count: int, size: int, seed: int = 0) -> Tensor:
    """Positive losses of very different sizes."""
    draws = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.exp(draws) * torch.logspace(-1, 2, size, dtype=torch.float64)


# --- one check a flag --------------------------------------------------------------------------------------------


def check_permutation_equivariant(contract: Contract, steps: Tensor) -> None:
    expected = train(contract.build(), steps)
    for order in ([2, 1, 0], [1, 2, 0]):
        assert_near(train(contract.build(), steps[:, order]), expected[:, order], 1e-12)


def check_monotone(contract: Contract, steps: Tensor) -> None:
    assert bool((train(contract.build(), steps) >= 0).all())


def check_linear_under_scaling(contract: Contract, steps: Tensor) -> None:
    assert_near(train(contract.build(), steps * vector(1e-3, 1.0, 1e4)), train(contract.build(), steps), 1e-12)


def check_scale_equivariant(contract: Contract, steps: Tensor) -> None:
    expected = train(contract.build(), steps)
    for power in range(-12, 13):
        assert_near(train(contract.build(), 10.0**power * steps), expected, 1e-10)


def check_invariant_to_units(contract: Contract, steps: Tensor) -> None:
    scaled = steps * vector(1e-3, 1.0, 1e4)
    expected, found = train(contract.build(), steps) * steps, train(contract.build(), scaled) * scaled
    assert_near(found / found.sum(1, keepdim=True), expected / expected.sum(1, keepdim=True), 1e-10)


def check_constant_total(contract: Contract, steps: Tensor) -> None:
    totals = train(contract.build(), steps).sum(1)
    assert_near(totals, totals[:1].expand(len(steps)), 1e-12)


def check_one_loss_is_identity(contract: Contract, steps: Tensor) -> None:
    for scale in (1e-12, 1.0, 1e12):
        weights = train(contract.build(), scale * steps[:, :1])
        assert_near(weights, torch.ones_like(weights), 1e-14)


def check_no_host_sync(contract: Contract, steps: Tensor) -> None:
    method = contract.build()
    device = steps[0].to("meta").requires_grad_()
    try:
        method(device)  # numbers that the user gave move to the device once
    except RuntimeError as error:
        raise AssertionError(f"a value is needed on the host: {error}") from error
    with assert_no_host_sync():
        method(device).backward()


def check_state_round_trip(contract: Contract, steps: Tensor) -> None:
    every = [0, 1, 2]
    original = contract.build()
    train(original, steps, every)
    train(original, steps[:, [2, 0]], [2, 0])
    original(steps[0], rows=every)  # the second look is still to come
    loaded, used = contract.build(), contract.build()
    used(steps[0, :1], rows=[0])
    for other in (loaded, used):
        other.load_state_dict(state_of(original))  # type: ignore[arg-type]
    half = copy.deepcopy(original)
    copies = [loaded, used, copy.deepcopy(original), pickle.loads(pickle.dumps(original)), half.bfloat16().half()]
    assert_same_bits([_state(other) for other in copies], [_state(original)] * len(copies))
    for rows in (every, [2], [1, 2], every):
        expected = [look(original, steps[1, rows], rows), train(original, steps[:, rows], rows)]
        for other in copies:
            assert_same_bits([look(other, steps[1, rows], rows), train(other, steps[:, rows], rows)], expected)
    assert_same_bits([_state(other) for other in copies], [_state(original)] * len(copies))


def _state(method: Scalarizer) -> dict[str, Any]:
    return state_of(method)  # type: ignore[arg-type]


CHECKS: dict[str, Callable[[Contract, Tensor], None]] = {flag: globals()[f"check_{flag}"] for flag in FLAGS}


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize(
    ("method", "flag"),
    [
        pytest.param(method, flag, id=f"{method.__name__}-{flag}")
        for method, contract in CONTRACTS.items()
        for flag in FLAGS
        if flag in contract.guarantees
    ],
)
def test_guarantee(method: type[Scalarizer], flag: str, training: str) -> None:
    CHECKS[flag](CONTRACTS[method], TRAININGS[training])


class _KeepsNoPromise(Scalarizer):
    """Depends on positions, on the scale, on the host and on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def scalar(self, losses: Tensor) -> Tensor:
        self.calls += 1
        positions = 0.75 - torch.arange(len(losses), dtype=torch.float64)
        return (positions * losses).sum() * (self.calls + losses.sum().item())


@pytest.mark.parametrize("flag", FLAGS)
def test_check_can_fail(flag: str) -> None:
    with pytest.raises(AssertionError):
        CHECKS[flag](Contract(_KeepsNoPromise, frozenset()), TRAININGS["falling"])


COUNTEREXAMPLES: list[tuple[type[Scalarizer], str]] = [
    (Constant, "permutation_equivariant"),
    (Random, "permutation_equivariant"),
    (GeometricMean, "constant_total"),
    (GeometricMean, "linear_under_scaling"),
    (UncertaintyWeighting, "scale_equivariant"),
    (UncertaintyWeighting, "constant_total"),
    (UncertaintyWeighting, "one_loss_is_identity"),
    (IMTLL, "scale_equivariant"),
    (IMTLL, "one_loss_is_identity"),
    (DWA, "invariant_to_units"),
    (SoftAdapt, "scale_equivariant"),
    (SoftAdapt, "linear_under_scaling"),
    (FAMO, "linear_under_scaling"),
    (STCH, "scale_equivariant"),
    (COSMOS, "monotone"),
    (COSMOS, "scale_equivariant"),
    (PBI, "monotone"),
    (PBI, "linear_under_scaling"),
]


@pytest.mark.parametrize(("method", "flag"), COUNTEREXAMPLES)
def test_what_is_not_promised_does_not_hold(method: type[Scalarizer], flag: str) -> None:
    assert flag not in CONTRACTS[method].guarantees
    with pytest.raises(AssertionError):
        CHECKS[flag](CONTRACTS[method], TRAININGS["falling"])


@pytest.mark.parametrize("method", [m for m, c in CONTRACTS.items() if "no_host_sync" not in c.guarantees])
def test_no_host_sync_is_promised_where_it_holds(method: type[Scalarizer]) -> None:
    with pytest.raises(AssertionError, match="host"):
        check_no_host_sync(CONTRACTS[method], TRAININGS["falling"])


def test_normalized_slopes_have_no_unit() -> None:
    for training in TRAININGS.values():
        check_scale_equivariant(Contract(lambda: SoftAdapt(variant="normalized"), frozenset()), training)


# --- the registry ------------------------------------------------------------------------------------------------


def test_every_exported_scalarizer_has_a_row() -> None:
    exported = [getattr(scalarizers, name) for name in scalarizers.__all__]
    classes = [item for item in exported if inspect.isclass(item) and issubclass(item, Scalarizer)]
    assert {item for item in classes if not inspect.isabstract(item)} == set(CONTRACTS)
    assert len(CONTRACTS) == 14


@pytest.mark.parametrize("method", CONTRACTS)
def test_docstring_states_the_guarantees_of_the_row(method: type[Scalarizer]) -> None:
    section = re.search(r"^Guarantees:\n((?:    .*\n)+)", inspect.getdoc(method) or "", flags=re.MULTILINE)
    assert section is not None
    stated = re.findall(r"^    (\w+): ", section.group(1), flags=re.MULTILINE)
    assert sorted(stated) == sorted(CONTRACTS[method].guarantees)


@pytest.mark.parametrize("method", CONTRACTS)
def test_row_describes_the_scalarizer(method: type[Scalarizer]) -> None:
    instance = CONTRACTS[method].build()
    assert type(instance) is method
    assert ("state_round_trip" in CONTRACTS[method].guarantees) == instance.stateful


def test_every_flag_is_promised_by_some_scalarizer() -> None:
    assert set().union(*(contract.guarantees for contract in CONTRACTS.values())) == set(FLAGS)


# --- formulas without a memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("losses", [vector(0.7, 1.3, 2.1), vector(1e-6, 3.0, 5e4), vector(2.0), vector(5.0, 5.0)])
def test_closed_forms(losses: Tensor) -> None:
    count = len(losses)
    ones = torch.ones_like(losses)
    weights = torch.arange(1.0, count + 1.0, dtype=torch.float64) - 2.0
    mean = losses.prod() ** (1 / count)
    for method, value, derivative in [
        (Sum(), losses.sum(), ones),
        (Mean(), losses.mean(), ones / count),
        (Constant(weights), (weights * losses).sum(), weights),
        (Constant(weights.tolist()), (weights * losses).sum(), weights),
        (GeometricMean(), mean, mean / (count * losses)),
    ]:
        found = look(method, losses)
        assert_near(found[0], value, 1e-14)
        assert_near(found[1], derivative, 1e-14)


def test_random_draws_a_softmax_of_normal_noise_in_each_step() -> None:
    method = Random(torch.Generator().manual_seed(3))
    draws = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for noise in draws:
        value, weights = look(method, vector(1.0, 2.0, 4.0))
        assert_near(weights, noise.exp() / noise.exp().sum(), 1e-14)
        assert_near(value, weights @ vector(1.0, 2.0, 4.0), 1e-14)


def test_random_weights_are_even_on_average() -> None:
    method = Random()
    weights = torch.stack([look(method, vector(1.0, 2.0, 4.0))[1] for _ in range(2000)])
    assert_near(weights.mean(0), torch.full((3,), 1 / 3), 0.05)


@pytest.mark.parametrize("mu", [0.01, 0.5, 20.0])
def test_smooth_tchebycheff(mu: float) -> None:
    losses, preference, ideal = vector(0.7, 1.3, 2.1), vector(0.2, 0.5, 0.3), vector(0.1, -0.2, 0.3)
    value, weights = look(STCH(mu, weights=preference, ideal=ideal), losses)
    powers = torch.exp(preference * (losses - ideal) / mu)
    assert_near(value, mu * powers.sum().log(), 1e-13)
    assert_near(weights, preference * powers / powers.sum(), 1e-13)
    assert_near(look(STCH(mu), losses)[1], look(STCH(mu, weights=[1 / 3] * 3), losses)[1], 1e-15)


def test_smooth_tchebycheff_becomes_the_maximum() -> None:
    value, weights = look(STCH(1e-9), vector(1e12, 3e12, 2e12))
    assert_near(value, vector(1e12)[0], 1e-15)
    assert_near(weights, vector(0.0, 1 / 3, 0.0), 1e-15)


def test_smooth_tchebycheff_shares_among_equal_maxima() -> None:
    assert_near(look(STCH(1e-9), vector(3e12, 3e12, 2e12))[1], vector(1 / 6, 1 / 6, 0.0), 1e-15)


def test_smooth_tchebycheff_of_logarithms_is_the_published_code() -> None:
    nadir, mu = vector(0.5, 2.0, 30.0), 0.8
    ours = STCH(mu / 3, ideal=nadir.log(), logarithmic=True)
    for losses in samples(5, 3):
        point = losses.clone().requires_grad_()
        terms = torch.log(point / nadir)
        published = mu * torch.log(torch.sum(torch.exp((terms - terms.detach().max()) / mu))) * 3
        (expected,) = torch.autograd.grad(published, point)
        assert_near(9 * look(ours, losses)[1], expected, 1e-12)


@pytest.mark.parametrize("penalty", [0.0, 2.0, 8.0])
def test_cosmos(penalty: float) -> None:
    for preference in (None, vector(0.2, 0.5, 0.3)):
        for losses in samples(5, 3):
            point = losses.clone().requires_grad_()
            ray = torch.ones(3).double() / 3 if preference is None else preference
            cosine = torch.nn.functional.cosine_similarity(point, ray, dim=0)
            expected = (ray * point).sum() - penalty * cosine
            found = look(COSMOS(penalty, weights=preference), losses)
            assert_near(found[0], expected, 1e-12)
            assert_near(found[1], torch.autograd.grad(expected, point)[0], 1e-12)


def test_cosine_of_small_losses() -> None:
    small, large = COSMOS(1.0), COSMOS(1.0)
    scale = 2.0**-60
    expected = look(large, vector(1.0, 2.0))[1] - 0.5  # what the penalty adds to the preference
    assert_near(scale * (look(small, scale * vector(1.0, 2.0))[1] - 0.5), expected, 1e-12)


@pytest.mark.parametrize("theta", [0.0, 5.0])
def test_boundary_intersection(theta: float) -> None:
    losses, preference, ideal = vector(0.7, 1.3, 2.1), vector(0.2, 0.5, 0.3), vector(0.1, -0.2, 0.3)
    direction = preference / preference.norm()
    along = (losses - ideal) @ direction
    off = losses - ideal - along * direction
    value, weights = look(PBI(theta, weights=preference, ideal=ideal), losses)
    assert_near(value, along + theta * off.norm(), 1e-14)
    assert_near(weights, direction + theta * off / off.norm(), 1e-14)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 3e7, 1e12])
def test_boundary_intersection_on_the_line(scale: float) -> None:
    for preference in samples(20, 5):
        value, weights = look(PBI(5.0, weights=preference), scale * preference)
        assert_near(weights, preference / preference.norm(), 1e-13)
        assert_near(value, scale * preference.norm(), 1e-13)
        off = look(PBI(5.0, weights=preference), scale * preference * vector(1.0, 1.0, 1.0, 1.0, 1.0 + 1e-9))[1]
        assert float((off - weights).norm()) == pytest.approx(5.0, rel=1e-3)


def test_boundary_intersection_beyond_the_range_of_the_losses() -> None:
    losses = torch.tensor([1e38, 1.0, 1.0], requires_grad=True)
    value = PBI()(losses)
    assert value.tolist() == math.inf
    (weights,) = torch.autograd.grad(value, losses)
    assert_near(weights, look(PBI(), losses.detach().double())[1], 1e-6)


def test_preference_may_change() -> None:
    losses = vector(0.7, 1.3, 2.1)
    for method in (STCH, COSMOS, PBI):
        changing = method()
        changing.prefer([0.2, 0.5, 0.3])
        assert_same_bits(look(changing, losses), look(method(weights=[0.2, 0.5, 0.3]), losses))
        with pytest.raises(ValueError, match="`weights` must be finite numbers >= 0"):
            changing.prefer([0.2, -0.5, 0.3])
        assert_same_bits(look(changing, losses), look(method(weights=[0.2, 0.5, 0.3]), losses))
        changing.prefer(None)
        assert_same_bits(look(changing, losses), look(method(), losses))


# --- learned weights, against autograd and torch's Adam ----------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"initial": -0.5, "classification": [0, 2], "lr": 0.3}])
def test_uncertainty_weighting(options: dict[str, Any]) -> None:
    method = UncertaintyWeighting(**options)
    factors = vector(1.0, 0.5, 1.0) if options else vector(0.5, 0.5, 0.5)
    log_variances = nn.Parameter(torch.full((3,), options.get("initial", 0.0), dtype=torch.float64))
    optimizer = torch.optim.Adam([log_variances], lr=options.get("lr", 0.025))
    for losses in samples(40, 3):
        expected = (factors * torch.exp(-log_variances) * losses + 0.5 * log_variances).sum()
        value, weights = look(method, losses)
        assert_near(value, expected, 1e-12)
        assert_near(weights, factors * torch.exp(-log_variances), 1e-12)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()


def test_imtl_l() -> None:
    method = IMTLL(lr=0.1)
    scales = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([scales], lr=0.1)
    for losses in samples(40, 3):
        expected = (scales.exp() * losses - scales).sum()
        value, weights = look(method, losses)
        assert_near(value, expected, 1e-12)
        assert_near(weights, scales.exp(), 1e-12)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()


@pytest.mark.parametrize("method", [IMTLL(lr=1.0), UncertaintyWeighting(lr=1.0), UncertaintyWeighting(initial=-1e3)])
def test_learned_weights_of_a_solved_loss_stay_finite(method: Scalarizer) -> None:
    losses = torch.tensor([0.0, 1.0])
    for _ in range(800):
        value, weights = look(method, losses)
        assert bool(value.isfinite())
        assert bool(weights.isfinite().all())
    assert float(weights[0]) > 1e34
    assert all(bool(buffer.isfinite().all()) for buffer in method.buffers())


def test_learned_variance_of_a_cross_entropy() -> None:
    method = UncertaintyWeighting(lr=0.05, classification=[1])
    for _ in range(1500):
        method(vector(3.0, 3.0))
    assert_near(_state(method)["log_variances"], vector(math.log(3.0), math.log(6.0)), 1e-3)


def test_learned_scales_make_the_losses_equal() -> None:
    losses = vector(0.1, 1.0, 20.0)
    for method, goal in ((UncertaintyWeighting(lr=0.05), 0.5), (IMTLL(lr=0.05), 1.0)):
        for _ in range(1500):
            method(losses)
        assert_near(look(method, losses)[1] * losses, torch.full((3,), goal), 1e-3)


@pytest.mark.parametrize("minimum", [None, [0.01, -3.0, 1.0]])
def test_famo(minimum: list[float] | None) -> None:
    method = FAMO(lr=0.1, decay=0.01, minimum=minimum)
    logits = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([logits], lr=0.1, weight_decay=0.01)
    lowest = torch.zeros(3).double() if minimum is None else vector(*minimum)
    for above, fall in zip(samples(40, 3), samples(40, 3, seed=1), strict=True):
        before, after = lowest + above, lowest + above * fall / (1 + fall)
        shares = torch.softmax(logits, -1)
        constant = 1 / (shares / (before - lowest)).sum().detach()
        value, weights = look(method, before)
        assert_near(value, (constant * shares * (before - lowest).log()).sum(), 1e-11)
        assert_near(weights, constant * shares / (before - lowest), 1e-11)
        method.update(after)
        change = (before - lowest).log() - (after - lowest).log()
        (logits.grad,) = torch.autograd.grad(shares, logits, grad_outputs=change)
        optimizer.step()


def test_famo_defaults_are_published() -> None:
    method = FAMO()
    assert (method.adam.lr, method.adam.betas, method.decay) == (0.025, (0.9, 0.999), 1e-3)
    assert FAMO.wants_second_look
    assert not any(other.wants_second_look for other in CONTRACTS if other is not FAMO)


def test_famo_learns_once_from_what_the_last_call_saw() -> None:
    method = FAMO()
    method.update(vector(1.0, 2.0))  # nothing was seen yet
    assert_same_bits(look(method, vector(1.0, 2.0)), look(FAMO(), vector(1.0, 2.0)))
    method.update(vector(0.5), rows=[0])
    learned = _state(method)
    method.update(vector(0.1), rows=[0])
    assert_same_bits(_state(method)["logits"], learned["logits"])
    method(vector(1.0), rows=[1])
    method.update(vector(0.5, 0.5), rows=[0, 1])
    assert_same_bits(_state(method)["adam.steps"], vector(1.0, 1.0))


def test_famo_says_once_that_nobody_takes_a_second_look() -> None:
    method, looked, idle = FAMO(), FAMO(), FAMO().eval()
    losses = vector(1.0, 2.0)
    looked(losses)
    looked.update(losses)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in range(250):
            for one in (method, looked, idle):
                one(losses)
            assert len(caught) == (call >= 99)
    assert caught[0].category is UserWarning
    assert str(caught[0].message).startswith("FAMO: `update` must be called after each step")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("minimum", [None, [0.0, 0.1, 0.0]])
def test_famo_takes_a_loss_below_its_minimum_after_the_step_as_solved(minimum: list[float] | None) -> None:
    below, at = FAMO(minimum=minimum), FAMO(minimum=minimum)
    lowest = 0.0 if minimum is None else 0.1
    for method, after in ((below, lowest - 1e-17 if minimum is None else 0.1 - 2e-17), (at, lowest)):
        look(method, vector(1.0, 1.0, 1.0))
        method.update(vector(0.5, after, 0.8))
    assert_same_bits(_state(below), _state(at))
    assert float(_state(below)["logits"][1]) == 0.0
    assert float(_state(below)["logits"][0]) != 0.0


def test_famo_leaves_out_what_is_solved() -> None:
    method, rest = FAMO(minimum=[0.0, 1.0, 0.0]), FAMO()
    for others in samples(5, 2):
        losses = torch.stack([others[0], torch.ones(()).double(), others[1]])
        value, weights = look(method, losses)
        expected = look(rest, others)
        assert_near(value, expected[0], 1e-13)
        assert_near(weights, torch.stack([expected[1][0], vector(0.0)[0], expected[1][1]]), 1e-13)
        method.update(losses * vector(0.5, 1.0, 0.8))
        rest.update(others * vector(0.5, 0.8))
    assert float(_state(method)["logits"][1]) == 0.0
    method(vector(1.0, 2.0, 3.0))
    before = _state(method)["logits"]
    method.update(vector(1.0, 1.0, 3.0))  # solved by the step itself
    assert_same_bits(_state(method)["logits"][1], before[1])
    assert_same_bits(look(method, vector(0.0, 1.0, 0.0)), (vector(0.0)[0], torch.zeros(3).double()))


# --- weights from progress ---------------------------------------------------------------------------------------


def test_dwa_follows_the_epochs() -> None:
    method = DWA()
    batches = samples(30, 3).view(6, 5, 3)
    means = batches.mean(1)
    for epoch, steps in enumerate(batches):
        expected = torch.ones(3).double()
        if epoch >= 2:
            powers = torch.exp(means[epoch - 1] / means[epoch - 2] / 2.0)
            expected = 3 * powers / powers.sum()
        for losses in steps:
            value, weights = look(method, losses)
            assert_near(weights, expected, 1e-12)
            assert_near(value, expected @ losses, 1e-12)
        method.next_epoch()


def test_dwa_counts_the_calls_itself() -> None:
    counting, told = DWA(every=4), DWA()
    for step, losses in enumerate(samples(24, 3)):
        rows = [[0, 1, 2], [2, 0, 1], [1, 0]][step % 3]
        assert_near(look(counting, losses[rows], rows)[1], look(told, losses[rows], rows)[1], 1e-14)
        if step % 4 == 3:
            told.next_epoch()
            told.next_epoch()  # an epoch without losses is none


def test_dwa_of_losses_that_come_and_go() -> None:
    method = DWA(temperature=1.0)
    for losses, rows in (([4.0], [0]), ([2.0, 1.0], [0, 2]), ([1.0], [0])):
        method(vector(*losses), rows=rows)
        method.next_epoch()
    powers = vector(math.exp(0.5), math.exp(1.0), math.exp(1.0))  # losses 1 and 2 have not been seen twice
    assert_near(look(method, vector(1.0, 1.0, 1.0))[1], 3 * powers / powers.sum(), 1e-14)


@pytest.mark.parametrize("variant", ["original", "normalized", "loss-weighted"])
@pytest.mark.parametrize("beta", [0.1, -2.0])
def test_softadapt(variant: Any, beta: float) -> None:
    method = SoftAdapt(beta, variant=variant)
    steps = samples(10, 3)
    for now, last in zip(steps, torch.cat([steps[:1], steps[:-1]]), strict=True):
        slopes = now - last
        if variant == "normalized" and bool(slopes.any()):
            slopes = slopes / slopes.abs().sum()
        powers = torch.exp(beta * (slopes - (beta * slopes).max() / beta))
        if variant == "loss-weighted":
            powers = powers * (now + last) / 2
        assert_near(look(method, now)[1], powers / powers.sum(), 1e-12)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.9, "temperature": 2.0, "saudade": 0.5}])
def test_relobralo(options: dict[str, Any]) -> None:
    alpha, temperature, saudade = (
        options.get(name, default) for name, default in (("alpha", 0.999), ("temperature", 0.1), ("saudade", 0.99))
    )
    method = ReLoBRaLo(**options, generator=torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)
    steps = samples(12, 3)
    looked_back = 0
    weights = torch.ones(3).double()
    for number, losses in enumerate(steps):
        keep = float(torch.rand((), generator=draws, dtype=torch.float64) < saudade)
        if number == 0:
            a, rho, last = 1.0, 1.0, losses
        else:
            a, rho, last = (0.0, 1.0, steps[0]) if number == 1 else (alpha, keep, steps[number - 1])
        recent = 3 * torch.softmax(losses / (temperature * last), 0)
        start = 3 * torch.softmax(losses / (temperature * steps[0]), 0)
        weights = a * (rho * weights + (1 - rho) * start) + (1 - a) * recent
        looked_back += rho == 0
        assert_near(look(method, losses)[1], weights, 1e-12)
    assert looked_back > 2 or not options


def test_a_quotient_that_overflows_takes_all_the_weight() -> None:
    method = DWA()
    for losses in (vector(1e-300, 1.0), vector(1e300, 1.0)):
        method(losses)
        method.next_epoch()
    assert_same_bits(look(method, vector(1.0, 1.0))[1], vector(2.0, 0.0))


def test_a_zero_that_was_counts_as_unchanged() -> None:
    dwa, relobralo = DWA(temperature=1.0), ReLoBRaLo(temperature=1.0)
    for losses in (vector(0.0, 4.0), vector(3.0, 2.0)):
        dwa(losses)
        dwa.next_epoch()
    powers = vector(math.exp(1.0), math.exp(0.5))
    assert_near(look(dwa, vector(1.0, 1.0))[1], 2 * powers / powers.sum(), 1e-14)
    relobralo(vector(0.0, 4.0))
    assert_near(look(relobralo, vector(3.0, 2.0))[1], 2 * powers / powers.sum(), 1e-14)
    assert_same_bits(_state(relobralo)["initial"], vector(3.0, 4.0))


# --- losses that are missing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [m for m, c in CONTRACTS.items() if "permutation_equivariant" in c.guarantees or m is Constant]
)
def test_losses_are_known_by_number(method: type[Scalarizer]) -> None:
    steps = TRAININGS["falling"]
    straight, turned = CONTRACTS[method].build(), CONTRACTS[method].build()
    expected = train(straight, steps)
    for step, (losses, after) in enumerate(zip(steps, torch.cat([steps[1:], steps[-1:] / 2]), strict=True)):
        order = [[2, 0, 1], [0, 1, 2], [1, 0, 2]][step % 3]
        assert_near(look(turned, losses[order], order)[1], expected[step][order], 1e-13)
        turned.update(after[[1, 2, 0]], rows=[1, 2, 0])
        turned.next_epoch()


@pytest.mark.parametrize("method", STATEFUL)
def test_missing_losses_stand_still(method: type[Scalarizer]) -> None:
    steps = TRAININGS["falling"]
    instance = CONTRACTS[method].build()
    train(instance, steps)
    before = dict(instance.named_buffers())
    train(instance, steps[:, [2, 0]], [2, 0])
    for name, buffer in instance.named_buffers():
        if buffer.ndim == 1:
            assert_same_bits(buffer[1], before[name][1])
    assert CONTRACTS[method].build().state_dict().keys() <= instance.state_dict().keys()


@pytest.mark.parametrize("method", CONTRACTS)
def test_a_loss_may_join_later(method: type[Scalarizer]) -> None:
    steps = TRAININGS["falling"]
    instance = CONTRACTS[method].build()
    train(instance, steps[:, 1:2], [1])
    weights = train(instance, steps, [0, 1, 2])
    assert bool(weights.isfinite().all())


@pytest.mark.parametrize(
    "build",
    [
        lambda: Constant([1.0, 2.0]),
        lambda: STCH(weights=[1.0, 2.0]),
        lambda: STCH(ideal=[1.0, 2.0]),
        lambda: COSMOS(weights=[1.0, 2.0]),
        lambda: PBI(weights=[1.0, 2.0]),
        lambda: PBI(ideal=[1.0, 2.0]),
        lambda: FAMO(minimum=[0.0, 0.5]),
    ],
)
def test_given_numbers_belong_to_objectives(build: Callable[[], Scalarizer]) -> None:
    both = look(build(), vector(3.0, 5.0))
    turned = look(build(), vector(5.0, 3.0), [1, 0])
    assert_near(turned[0], both[0], 1e-15)
    assert_near(turned[1], both[1].flip(0), 1e-15)
    alone = look(build(), vector(5.0), [1])
    assert bool(alone[1].isfinite().all())
    for losses, rows in ((vector(1.0, 1.0, 1.0), None), (vector(1.0), [2])):
        with pytest.raises(ValueError, match="must have one entry an objective, got 2 for the objectives"):
            build()(losses, rows=rows)


@pytest.mark.parametrize("rows", [rows for size in (1, 2, 3) for rows in combinations(range(3), size)])
@pytest.mark.parametrize(
    "build",
    [
        Constant,
        lambda numbers: STCH(weights=numbers, ideal=numbers),
        lambda numbers: COSMOS(weights=numbers),
        lambda numbers: PBI(weights=numbers, ideal=numbers),
        lambda numbers: FAMO(minimum=numbers),
    ],
)
def test_any_losses_may_be_absent(build: Callable[[Tensor], Scalarizer], rows: tuple[int, ...]) -> None:
    numbers, losses = vector(0.2, 1.5, 0.3), vector(3.0, 5.0, 4.0)[list(rows)]
    found, expected = build(numbers), build(numbers[list(rows)])
    assert_same_bits(look(found, losses, rows), look(expected, losses))
    found.update(losses / 2 + 1, rows=rows)
    expected.update(losses / 2 + 1)
    assert_same_bits(look(found, losses, rows), look(expected, losses))


# --- awkward losses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", CONTRACTS)
def test_dtypes(method: type[Scalarizer], dtype: torch.dtype) -> None:
    losses = vector(0.5, 1.5, 2.0)  # exact in all of them
    expected = look(CONTRACTS[method].build(), losses)
    scalar, weights = look(CONTRACTS[method].build(), losses.to(dtype))
    assert scalar.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert weights.dtype == dtype
    assert_near(scalar, expected[0], 1e-7)
    assert_near(weights, expected[1], torch.finfo(dtype).eps)
    instance = CONTRACTS[method].build()
    instance(losses.to(dtype))
    assert all(buffer.dtype == torch.float64 for buffer in instance.buffers() if buffer.ndim)


@pytest.mark.parametrize("losses", [vector(0.0, 0.0, 0.0), vector(1.0, 0.0, 2.0), vector(1e-30, 1.0, 1e30)])
@pytest.mark.parametrize("method", [m for m, c in CONTRACTS.items() if c.domain != "positive"])
def test_zero_and_extreme_losses_have_finite_weights(method: type[Scalarizer], losses: Tensor) -> None:
    instance = CONTRACTS[method].build()
    steps = torch.stack([losses, losses, TRAININGS["falling"][0], losses])
    assert bool(train(instance, steps).isfinite().all())
    assert bool(instance(losses).isfinite())
    variant = SoftAdapt(variant="loss-weighted")
    assert bool(train(variant, steps).isfinite().all())


@pytest.mark.parametrize("method", [m for m, c in CONTRACTS.items() if c.domain == "real"])
def test_negative_losses_are_allowed(method: type[Scalarizer]) -> None:
    assert bool(train(CONTRACTS[method].build(), TRAININGS["falling"] - 1.0).isfinite().all())


@pytest.mark.parametrize(
    ("build", "losses", "rule"),
    [
        (GeometricMean, vector(1.0, -2.0, 3.0), "positive"),
        (GeometricMean, vector(1.0, 0.0, 3.0), "positive"),
        (lambda: STCH(logarithmic=True), vector(1.0, 0.0, 3.0), "positive with logarithmic=True"),
        (FAMO, vector(1.0, -2.0, 3.0), "at least `minimum`"),
        (lambda: FAMO(minimum=[0.0, 5.0, 0.0]), vector(1.0, 4.0, 3.0), "at least `minimum`"),
    ],
)
def test_losses_without_a_logarithm(build: Callable[[], Scalarizer], losses: Tensor, rule: str) -> None:
    method = build()
    value = float(losses[1])
    with pytest.raises(ValueError, match=f"`losses` must be {rule}.*, got {value} for loss 1"):
        method(losses)
    with pytest.raises(ValueError, match=f"got {value} for loss 1"):
        method(losses.flip(0)[:2], rows=[2, 1])
    assert bool(look(method, torch.cat([losses[:1], vector(torch.nan), -losses[2:]]))[0].isnan())  # does not raise


@pytest.mark.parametrize("method", [GeometricMean, lambda: STCH(logarithmic=True)])
def test_losses_without_a_logarithm_elsewhere_have_no_derivative(
    method: Callable[[], Scalarizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a device does where looking would wait for it."""
    monkeypatch.setattr(Scalarizer, "refuse", lambda *_: None)
    for bad in (0.0, -1.0):
        weights = look(method(), vector(1.0, bad, 2.0))[1]
        assert not bool((weights * vector(1.0, 1.0, 1.0)).sum().isfinite())


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("method", CONTRACTS)
def test_nonfinite_propagates(method: type[Scalarizer], bad: float) -> None:
    steps = TRAININGS["falling"]
    instance = CONTRACTS[method].build()
    broken = steps[0] * vector(1.0, bad, 1.0)
    for _ in range(2):  # before and after its first step
        before = _state(instance)
        scalar, weights = look(instance, broken)
        assert bool(scalar.isnan())
        assert bool(weights.isnan().all())
        instance.update(broken)
        assert_same_bits(_state(instance), before)
        train(instance, steps)


def test_finite_losses_with_an_infinite_sum() -> None:
    value, weights = look(Sum(), vector(1e308, 1e308, 1.0))
    assert float(value) == math.inf
    assert_same_bits(weights, vector(1.0, 1.0, 1.0))


@pytest.mark.parametrize("method", CONTRACTS)
def test_evaluation_leaves_no_trace(method: type[Scalarizer]) -> None:
    steps = TRAININGS["falling"]
    instance = CONTRACTS[method].build()
    train(instance, steps[:3])
    instance(steps[2])  # a second look could learn from it
    before = _state(instance)
    instance.eval()
    first = look(instance, steps[3])
    instance.update(steps[4])
    assert_same_bits(_state(instance), before)
    assert_same_bits(look(instance, steps[3]), first)
    assert_same_bits(look(instance.train(), steps[3]), first)


@pytest.mark.parametrize("method", CONTRACTS)
def test_reset_starts_over(method: type[Scalarizer]) -> None:
    steps = TRAININGS["falling"]
    instance = CONTRACTS[method].build()
    draws = [member.generator for member in instance.modules() if isinstance(member, Randomized)]
    expected = train(instance, steps)
    instance.reset()
    for generator in draws:
        generator.manual_seed(torch.initial_seed())
    assert_same_bits(train(instance, steps), expected)


# --- in a training loop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CONTRACTS)
def test_gradients_of_a_network_are_weighed(method: type[Scalarizer]) -> None:
    parameter = torch.tensor([0.3, -0.8], requires_grad=True)
    matrix = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.1]])
    losses = [(row @ parameter).square() + 0.1 for row in matrix]
    gradients = torch.stack([torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses])
    weights = look(CONTRACTS[method].build(), torch.stack(losses).detach())[1]
    instance = CONTRACTS[method].build()
    instance(losses).backward()
    assert parameter.grad is not None
    assert_near(parameter.grad, weights @ gradients, 1e-6)
    assert not any(buffer.requires_grad for buffer in instance.buffers())
    assert list(instance.parameters()) == []


def test_losses_may_differ_in_dtype_and_shape() -> None:
    mixed = [torch.tensor(1.0, dtype=torch.float64), torch.tensor([2.0]), torch.tensor([[3.0]])]
    assert_same_bits(Sum()(mixed), torch.tensor(6.0, dtype=torch.float64))


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: Constant([]), "weights"),
        (lambda: Constant([1.0, math.inf]), "weights"),
        (lambda: Constant(torch.ones(2, 2)), "weights"),
        (lambda: STCH(0.0), "mu"),
        (lambda: STCH(math.inf), "mu"),
        (lambda: STCH(weights=[0.0, 0.0]), "weights"),
        (lambda: STCH(ideal=[math.nan]), "ideal"),
        (lambda: COSMOS(-1.0), "penalty"),
        (lambda: COSMOS(weights=[-1.0, 2.0]), "weights"),
        (lambda: PBI(-1.0), "theta"),
        (lambda: PBI(weights=torch.tensor(1.0)), "weights"),
        (lambda: UncertaintyWeighting(0.0), "lr"),
        (lambda: UncertaintyWeighting(initial=math.nan), "initial"),
        (lambda: UncertaintyWeighting(classification=[-1]), "classification"),
        (lambda: IMTLL(math.inf), "lr"),
        (lambda: DWA(0.0), "temperature"),
        (lambda: DWA(every=0), "every"),
        (lambda: SoftAdapt(math.nan), "beta"),
        (lambda: SoftAdapt(variant="softer"), "variant"),  # type: ignore[arg-type]
        (lambda: ReLoBRaLo(1.5), "alpha"),
        (lambda: ReLoBRaLo(saudade=-0.1), "saudade"),
        (lambda: ReLoBRaLo(temperature=0.0), "temperature"),
        (lambda: FAMO(0.0), "lr"),
        (lambda: FAMO(decay=-1.0), "decay"),
        (lambda: FAMO(minimum=[math.inf]), "minimum"),
    ],
)
def test_options_are_checked(build: Callable[[], Scalarizer], argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^\w+: `{argument}` must be .*, got "):
        build()


def test_generators_are_checked() -> None:
    for method in (Random, ReLoBRaLo):
        with pytest.raises(TypeError, match="`generator` must be a torch.Generator on the CPU"):
            method(generator=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("losses", "error"),
    [
        ([], ValueError),
        (torch.ones(2, 2), ValueError),
        (torch.ones(()), ValueError),
        (torch.ones(0), ValueError),
        (torch.ones(2, dtype=torch.int64), TypeError),
        ([torch.ones(2), torch.ones(())], TypeError),
        ([1.0, 2.0], TypeError),
    ],
)
def test_losses_are_checked(losses: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="^Sum: `losses` must be "):
        Sum()(losses)


def test_rows_are_checked() -> None:
    for rows in ([0], [0, 0], [-1, 0]):
        with pytest.raises(ValueError, match="`rows` must be 2 different indices >= 0"):
            IMTLL()(vector(1.0, 2.0), rows=rows)


def test_a_refusal_names_the_value_of_a_loss_with_a_graph() -> None:
    losses = torch.tensor([1.0, -2.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"^GeometricMean: `losses` must be .*, got -2\.0 for loss 1\.$"):
        GeometricMean()(losses * 1.0)
