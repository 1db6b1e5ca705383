"""Every method keeps what its row in the registry promises, on Jacobians that are hard to aggregate.

The tests run over flags. Each flag has one check, which is also shown to fail on a method that keeps no promise.
"""

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from references import exact_min_norm
from support import (
    DIFFICULT,
    assert_harms_none,
    assert_near,
    assert_no_host_sync,
    assert_parallel,
    assert_same_bits,
    gaussian,
    losses_of,
    norms_of,
    share_draws,
    state_of,
    with_cosine,
)
from torch import Tensor

import gradsurgery as gs
from gradsurgery import aggregators
from gradsurgery.aggregators import CONTRACTS, Aggregator, Contract, GramianAggregator, Randomized, contrib
from gradsurgery.aggregators.registry import Guarantee

Check = Callable[[Contract, Tensor], None]

FLAGS: tuple[str, ...] = get_args(Guarantee)
GRAMIAN_METHODS = [method for method, contract in CONTRACTS.items() if contract.kind == "gramian"]
ROUNDING = 1e-12
"""Allowed beside the relative error, relative to the longest row: where rows cancel, the direction is rounding."""


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


def _direction(contract: Contract, jacobian: Tensor) -> Tensor:
    return contract.build()(jacobian, losses_of(jacobian))


def _longest(jacobian: Tensor) -> float:
    return float(norms_of(jacobian).max())


# --- one check a flag --------------------------------------------------------------------------------------------


def check_non_conflicting(contract: Contract, jacobian: Tensor) -> None:
    assert_harms_none(jacobian, _direction(contract, jacobian), relative=1e-10)
    single = jacobian.float()
    assert_harms_none(single, _direction(contract, single), relative=1e-6)


def check_permutation_equivariant(contract: Contract, jacobian: Tensor) -> None:
    count = len(jacobian)
    for order in (list(reversed(range(count))), [*range(1, count), 0]):
        straight, permuted = contract.build(), contract.build()
        losses = losses_of(jacobian)
        for _ in range(3):
            expected = straight(jacobian, losses)
            assert_near(permuted(jacobian[order], losses[order]), expected, 1e-8, ROUNDING * _longest(jacobian))


def check_linear_under_scaling(contract: Contract, jacobian: Tensor) -> None:
    draws = torch.Generator().manual_seed(1)
    first, second = (10.0 ** (4 * torch.rand(2, len(jacobian), 1, generator=draws).double() - 2)).unbind()
    expected = 0.3 * _direction(contract, first * jacobian) + 2.0 * _direction(contract, second * jacobian)
    actual = _direction(contract, (0.3 * first + 2.0 * second) * jacobian)
    assert_near(actual, expected, 1e-9, ROUNDING * _longest((first + second) * jacobian))


def check_scale_equivariant(contract: Contract, jacobian: Tensor) -> None:
    plain = contract.build()
    losses = losses_of(jacobian)
    expected = [plain(jacobian, losses) for _ in range(2)]
    for scale in [2.0**power for power in range(-40, 41, 8)]:
        scaled = contract.build()
        for direction in expected:
            assert_same_bits(scaled(scale * jacobian, losses) / scale + 0.0, direction + 0.0)
    for scale in [10.0**power for power in range(-12, 13)]:
        scaled = contract.build()
        for direction in expected:
            found = scaled(scale * jacobian, losses) / scale
            assert_near(found, direction, 1e-8, ROUNDING * _longest(jacobian))


def check_stationary(contract: Contract, jacobian: Tensor) -> None:
    for matrix in (jacobian, _closed(jacobian)):
        shortest = torch.from_numpy(exact_min_norm(matrix.numpy()))
        nonzero = norms_of(matrix) > 0
        direction = _direction(contract, matrix)
        smallest = float(norms_of(matrix)[nonzero].min()) if nonzero.any() else 0.0
        if float(shortest.norm()) <= ROUNDING * smallest:
            assert float(direction.norm()) <= 1e-6 * smallest
        else:
            assert bool(((matrix @ direction)[nonzero] > 0).all())


def _closed(jacobian: Tensor) -> Tensor:
    """With the last row such that a convex combination of the rows is zero."""
    if len(jacobian) == 1:
        return jacobian
    return torch.cat([jacobian[:-1], -jacobian[:-1].mean(0, keepdim=True)])


def check_equals_mean_without_conflict(contract: Contract, jacobian: Tensor) -> None:
    harmless = jacobian.abs()
    assert_near(_direction(contract, harmless), harmless.mean(0), 1e-13)
    if bool((jacobian @ jacobian.mT >= 0).all()):
        assert_near(_direction(contract, jacobian), jacobian.mean(0), 1e-13)


def check_zero_rows_constrain_nothing(contract: Contract, jacobian: Tensor) -> None:
    rows = jacobian[norms_of(jacobian) > 0]
    if "permutation_equivariant" not in contract.guarantees:
        rows = rows[:2]  # where orders are drawn, those of two rows make no difference
    if len(rows) == 0:
        assert_near(_direction(contract, jacobian), torch.zeros_like(jacobian[0]), 0.0)
        return
    expected = _direction(contract, rows)
    zero = torch.zeros_like(rows[:1])
    for padded in (torch.cat([rows, zero]), torch.cat([zero, rows[:1], zero, zero, rows[1:]])):
        method = contract.build()
        found = method(padded, losses_of(padded))
        if float(expected.norm()) > ROUNDING * _longest(rows):
            assert_parallel(found, expected, 1e-9)
            for _ in range(3):
                assert float(method(padded, losses_of(padded)).norm()) > 0
        else:
            assert float(found.norm()) <= 10 * ROUNDING * _longest(rows)


def check_one_loss_is_identity(contract: Contract, jacobian: Tensor) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        method = contract.build()
        for scale in (1.0, 1e-30, 1e30):
            row = (scale * jacobian[:1]).to(dtype)
            assert_same_bits(method(row, torch.ones(1)) + 0.0, row[0] + 0.0)  # -0.0 counts as 0.0
            blocks = [row, row[:, :1], row[:, 0]]
            assert_same_bits(
                [block + 0.0 for block in method(blocks, torch.ones(1))], [block[0] + 0.0 for block in blocks]
            )


def check_batched(contract: Contract, jacobian: Tensor) -> None:
    factors = torch.linspace(0.1, 2.0, 6 * len(jacobian)).double().view(2, 3, -1, 1)
    problems = factors * jacobian
    together = contract.build()
    alone = [contract.build() for _ in range(6)]
    share_draws(alone)
    losses = losses_of(jacobian)
    for _ in range(2):
        found = together(problems, losses)
        assert found.shape == (2, 3, jacobian.shape[1])
        for direction, method, problem in zip(found.flatten(0, 1), alone, problems.flatten(0, 1), strict=True):
            assert_near(direction, method(problem, losses), 1e-8, ROUNDING * _longest(problem))
    if not isinstance(together, GramianAggregator) or together.needs_jacobian:
        return
    weights = together.solve(problems @ problems.mT, losses)
    assert weights.shape == problems.shape[:-1]
    assert weights.dtype == torch.float64
    for row, method, problem in zip(weights.flatten(0, 1), alone, problems.flatten(0, 1), strict=True):
        assert_near(row @ problem, method(problem, losses), 1e-8, ROUNDING * _longest(problem))


def check_no_host_sync(contract: Contract, jacobian: Tensor) -> None:
    method = contract.build()
    device = jacobian.to("meta")
    losses = losses_of(jacobian).to("meta")
    with assert_no_host_sync():
        method(device, losses)
        method([device, device[:, :1]], losses)
        method(device.expand(2, *device.shape), losses)


def check_state_round_trip(contract: Contract, jacobian: Tensor) -> None:
    original = contract.build()
    every = list(range(len(jacobian)))
    steps = [(jacobian, every), (3.0 * jacobian, every), (jacobian[-1:], every[-1:]), (jacobian.flip(1), every[::-1])]
    for step, rows in steps:
        original(step, losses_of(step), rows=rows)
    loaded = contract.build()
    loaded.load_state_dict(state_of(original))
    used = contract.build()
    used(jacobian[:1], losses_of(jacobian[:1]))
    used.load_state_dict(state_of(original))
    half = copy.deepcopy(original)
    copies = [loaded, used, copy.deepcopy(original), pickle.loads(pickle.dumps(original)), half.bfloat16().half()]
    assert_same_bits([state_of(other) for other in copies], [state_of(original)] * len(copies))
    for step, rows in steps * 3:
        expected = original(step, losses_of(step), rows=rows)
        for other in copies:
            assert_same_bits(other(step, losses_of(step), rows=rows), expected)
    assert_same_bits([state_of(other) for other in copies], [state_of(original)] * len(copies))


CHECKS: dict[str, Check] = {flag: globals()[f"check_{flag}"] for flag in FLAGS}


@pytest.mark.parametrize("difficulty", DIFFICULT)
@pytest.mark.parametrize(
    ("method", "flag"),
    [
        pytest.param(method, flag, id=f"{method.__name__}-{flag}")
        for method, contract in CONTRACTS.items()
        for flag in FLAGS
        if flag in contract.guarantees
    ],
)
def test_guarantee(method: type[Aggregator], flag: str, difficulty: str) -> None:
    CHECKS[flag](CONTRACTS[method], DIFFICULT[difficulty])


# --- the checks can fail -----------------------------------------------------------------------------------------


class _KeepsNoPromise(GramianAggregator):
    """Depends on positions, on the scale, on the batch, on the host and on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        self.calls += 1
        positions = 0.75 - torch.arange(gramian.shape[-1], dtype=torch.float64)
        return positions * (self.calls + gramian.sum().item()) + (gramian[..., 0] == 0)


@pytest.mark.parametrize("flag", FLAGS)
def test_check_can_fail(flag: str) -> None:
    contract = Contract(_KeepsNoPromise, "gramian", frozenset(FLAGS))
    with pytest.raises(AssertionError):
        CHECKS[flag](contract, DIFFICULT["three"])


# --- what the documentation says does not hold -------------------------------------------------------------------

COUNTEREXAMPLES: list[tuple[type[Aggregator], str, Tensor]] = [
    (gs.Sum, "non_conflicting", DIFFICULT["two in conflict"]),
    (gs.Mean, "non_conflicting", DIFFICULT["two in conflict"]),
    (gs.MGDA, "linear_under_scaling", DIFFICULT["two in harmony"]),
    (gs.MGDA, "equals_mean_without_conflict", DIFFICULT["two in harmony"]),
    (gs.PCGrad, "non_conflicting", gaussian(4, 3, seed=0)),
    (gs.PCGrad, "permutation_equivariant", with_cosine(4, -0.5)),
    (aggregators.GradVac, "non_conflicting", gaussian(4, 3, seed=0)),
    (aggregators.GradVac, "permutation_equivariant", with_cosine(4, -0.5)),
    (aggregators.Constant, "permutation_equivariant", DIFFICULT["two in harmony"]),
    (aggregators.Constant, "one_loss_is_identity", DIFFICULT["one row"]),
    (aggregators.Random, "permutation_equivariant", DIFFICULT["two in harmony"]),
    (aggregators.Random, "equals_mean_without_conflict", DIFFICULT["two in harmony"]),
    (aggregators.NormalizedSGD, "non_conflicting", gaussian(4, 3, seed=0)),
    (aggregators.NormalizedSGD, "equals_mean_without_conflict", DIFFICULT["two in harmony"]),
    (aggregators.Krum, "zero_rows_constrain_nothing", DIFFICULT["five"]),
    (aggregators.TrimmedMean, "zero_rows_constrain_nothing", DIFFICULT["five"]),
    (aggregators.TrimmedMean, "equals_mean_without_conflict", DIFFICULT["five"]),
    (gs.IMTLG, "non_conflicting", gaussian(3, 3, seed=1)),
    (aggregators.ConFIG, "non_conflicting", DIFFICULT["opposed, and others"]),
    (aggregators.ConFIG, "equals_mean_without_conflict", DIFFICULT["two in harmony"]),
    (aggregators.AlignedMTL, "non_conflicting", torch.tensor([[1.0, 0.0], [-9.0, 4.0]]).double()),
    (aggregators.AlignedMTL, "equals_mean_without_conflict", DIFFICULT["two in harmony"]),
    (aggregators.NashMTL, "stationary", torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]).double()),
    (aggregators.NashMTL, "linear_under_scaling", DIFFICULT["two in harmony"]),
    (aggregators.FairGrad, "scale_equivariant", DIFFICULT["three"]),
    (aggregators.FairGrad, "one_loss_is_identity", DIFFICULT["one row"]),
    (aggregators.MConFIG, "one_loss_is_identity", DIFFICULT["two in harmony"]),
    (aggregators.DualProj, "linear_under_scaling", DIFFICULT["two in conflict"]),
    (aggregators.DualProj, "stationary", torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]).double()),
    (aggregators.CAGrad, "non_conflicting", DIFFICULT["two in conflict"]),
    (aggregators.CAGrad, "linear_under_scaling", DIFFICULT["two in conflict"]),
    (aggregators.CAGrad, "stationary", DIFFICULT["two in conflict"]),
    (aggregators.CAGrad, "equals_mean_without_conflict", DIFFICULT["two in harmony"]),
    (aggregators.CAGrad, "one_loss_is_identity", DIFFICULT["one row"]),
    (gs.UPGrad, "stationary", torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]).double()),
]


@pytest.mark.parametrize(("method", "flag", "jacobian"), COUNTEREXAMPLES)
def test_what_is_not_promised_does_not_hold(method: type[Aggregator], flag: str, jacobian: Tensor) -> None:
    assert flag not in CONTRACTS[method].guarantees
    with pytest.raises(AssertionError):
        CHECKS[flag](CONTRACTS[method], jacobian)


@pytest.mark.parametrize("method", [m for m, c in CONTRACTS.items() if "no_host_sync" not in c.guarantees])
def test_no_host_sync_is_promised_where_it_holds(method: type[Aggregator]) -> None:
    with pytest.raises(AssertionError, match="host"):
        check_no_host_sync(CONTRACTS[method], DIFFICULT["three"])


# --- the registry ------------------------------------------------------------------------------------------------


def _exported() -> list[type[Aggregator]]:
    packages = (aggregators, contrib)
    objects = [getattr(package, name) for package in packages for name in package.__all__]
    classes = [item for item in objects if inspect.isclass(item) and issubclass(item, Aggregator)]
    return [item for item in classes if not inspect.isabstract(item)]


def _stated(documentation: str) -> list[str]:
    section = re.search(r"^Guarantees:\n((?:    .*\n)+)", documentation, flags=re.MULTILINE)
    return [] if section is None else re.findall(r"^    (\w+): ", section.group(1), flags=re.MULTILINE)


def test_every_exported_method_has_a_row() -> None:
    assert set(_exported()) == set(CONTRACTS)
    assert len(_exported()) >= 9


@pytest.mark.parametrize("method", CONTRACTS)
def test_docstring_states_the_guarantees_of_the_row(method: type[Aggregator]) -> None:
    stated = _stated(inspect.getdoc(method) or "")
    assert sorted(stated) == sorted(CONTRACTS[method].guarantees)


@pytest.mark.parametrize("method", CONTRACTS)
def test_row_describes_the_method(method: type[Aggregator]) -> None:
    contract = CONTRACTS[method]
    instance = contract.build()
    assert type(instance) is method
    assert contract.kind == ("jacobian" if instance.needs_jacobian else "gramian")
    assert ("state_round_trip" in contract.guarantees) == instance.stateful


def test_every_flag_is_promised_by_some_method() -> None:
    assert set().union(*(contract.guarantees for contract in CONTRACTS.values())) == set(FLAGS)


# --- what all methods promise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CONTRACTS)
def test_stateless_methods_round_trip_too(method: type[Aggregator]) -> None:
    check_state_round_trip(CONTRACTS[method], DIFFICULT["three"])


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("method", CONTRACTS)
def test_nonfinite_propagates(method: type[Aggregator], bad: float) -> None:
    jacobian = DIFFICULT["five"]
    losses = losses_of(jacobian)
    disturbed = CONTRACTS[method].build()
    disturbed(jacobian, losses)
    undisturbed = copy.deepcopy(disturbed)
    before = state_of(disturbed)
    for entry in ((0, 0), (3, 7)):
        broken = jacobian.clone()
        broken[entry] = bad
        assert not bool(disturbed(broken, losses).isfinite().any())
        for direction in disturbed([jacobian, broken, jacobian[:, 0]], losses):
            assert not bool(direction.isfinite().any())
        assert_same_bits(state_of(disturbed), before)
    assert_same_bits(disturbed(jacobian, losses), undisturbed(jacobian, losses))


VARIANTS: list[Callable[[], Aggregator]] = [
    *(contract.build for contract in CONTRACTS.values()),
    *(lambda kind=kind: gs.MGDA(kind) for kind in ("l2", "loss", "loss+")),
    lambda: gs.GradNorm(alpha=0.0),
    lambda: gs.GradNorm(progress="gradient"),
    lambda: aggregators.MoCo(normalization="loss"),
    lambda: gs.Chain(gs.GradNorm(), gs.Mean()),
    lambda: gs.Chain(gs.Mean(), aggregators.DBMTL()),
    lambda: aggregators.CRMOGM(gs.MGDA("loss")),
]


def _depends_on_losses(build: Callable[[], Aggregator], jacobian: Tensor) -> bool:
    """Found out by asking: without losses, and with others."""
    first = build()
    second = copy.deepcopy(first)
    try:
        build()(jacobian)
    except ValueError:
        return True
    losses = losses_of(jacobian)
    pairs = [(first(jacobian, losses), second(jacobian, losses.flip(0) ** power)) for power in range(3)]
    return not all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("build", VARIANTS)
def test_nonfinite_losses(build: Callable[[], Aggregator], bad: float) -> None:
    jacobian = DIFFICULT["five"]
    losses = losses_of(jacobian)
    method = build()
    assert method.uses_losses == _depends_on_losses(build, jacobian)
    method(jacobian, losses)
    before = state_of(method)
    losses[2] = bad
    if not method.uses_losses:
        assert bool(method(jacobian, losses).isfinite().all())
        return
    assert not bool(method(jacobian, losses).isfinite().any())
    assert not any(bool(part.isfinite().any()) for part in method([jacobian, jacobian[:, 0]], losses))
    assert_same_bits(state_of(method), before)
    if isinstance(method, GramianAggregator) and not method.needs_jacobian:
        assert bool(method.solve(jacobian @ jacobian.mT, losses).isnan().all())
        assert_same_bits(state_of(method), before)


@pytest.mark.parametrize("method", [method for method, c in CONTRACTS.items() if "batched" in c.guarantees])
def test_nonfinite_problem_leaves_the_rest_of_a_batch(method: type[Aggregator]) -> None:
    jacobian = DIFFICULT["two in conflict"]
    batch = jacobian.repeat(3, 1, 1)
    batch[1, 0, 0] = torch.nan
    direction = CONTRACTS[method].build()(batch, losses_of(jacobian))
    assert direction.isfinite().all(-1).tolist() == [True, False, True]


@pytest.mark.parametrize("method", GRAMIAN_METHODS)
def test_nonfinite_gramian(method: type[GramianAggregator]) -> None:
    gramians = torch.stack([torch.eye(3), torch.full((3, 3), torch.nan)])
    weights = CONTRACTS[method].build().solve(gramians, torch.ones(3))
    assert weights.shape == (2, 3)
    assert weights.isfinite().tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("method", [m for m, c in CONTRACTS.items() if isinstance(c.build(), Randomized)])
def test_problems_of_a_batch_have_draws_of_their_own(method: type[Aggregator]) -> None:
    copies = with_cosine(4, -0.5).repeat(50, 1, 1)
    directions = CONTRACTS[method].build()(copies)
    assert len({tuple(direction.tolist()) for direction in directions}) > 1


@pytest.mark.parametrize("method", CONTRACTS)
def test_global_random_state_is_left_alone(method: type[Aggregator]) -> None:
    before = torch.get_rng_state()
    _direction(CONTRACTS[method], DIFFICULT["strong conflict"])
    assert_same_bits(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", CONTRACTS)
def test_direction_looks_like_a_row(method: type[Aggregator], dtype: torch.dtype) -> None:
    jacobian = DIFFICULT["five"].to(dtype)
    losses = losses_of(jacobian)
    before = jacobian.clone()
    blocks = [jacobian[:, :4].reshape(5, 2, 2), jacobian[:, 4:8], jacobian[:, 8]]
    direction = CONTRACTS[method].build()(jacobian, losses)
    assert (direction.dtype, direction.shape) == (dtype, (9,))
    parts = CONTRACTS[method].build()(blocks, losses)
    assert [(part.dtype, part.shape) for part in parts] == [(dtype, (2, 2)), (dtype, (4,)), (dtype, ())]
    assert_same_bits(jacobian, before)
    assert not direction.requires_grad


@pytest.mark.parametrize("method", GRAMIAN_METHODS)
def test_blocks_are_one_jacobian(method: type[Aggregator]) -> None:
    jacobian = DIFFICULT["five"]
    losses = losses_of(jacobian)
    whole = CONTRACTS[method].build()(jacobian, losses)
    parts = CONTRACTS[method].build()([jacobian[:, :4].reshape(5, 2, 2), jacobian[:, 4:]], losses)
    assert_near(torch.cat([part.flatten() for part in parts]), whole, 1e-12)


@pytest.mark.parametrize("method", CONTRACTS)
def test_results_share_no_memory_with_state_or_input(method: type[Aggregator]) -> None:
    jacobian = DIFFICULT["three"].clone()
    losses = losses_of(jacobian)
    instance = CONTRACTS[method].build()
    for _ in range(3):
        results = [instance(jacobian, losses)]
        if isinstance(instance, GramianAggregator) and not instance.needs_jacobian:
            gramian = jacobian @ jacobian.mT
            results.append(instance.solve(gramian, losses))
            assert_same_bits(gramian, jacobian @ jacobian.mT)
        held = {buffer.untyped_storage().data_ptr() for buffer in instance.buffers()}
        held |= {tensor.untyped_storage().data_ptr() for tensor in (jacobian, losses)}
        assert not held & {result.untyped_storage().data_ptr() for result in results}


@pytest.mark.parametrize("method", GRAMIAN_METHODS)
def test_no_problem_is_a_batch_too(method: type[GramianAggregator]) -> None:
    assert CONTRACTS[method].build().solve(torch.zeros(0, 3, 3), torch.ones(3)).shape == (0, 3)


@pytest.mark.parametrize("method", CONTRACTS)
def test_gradients_may_require_a_gradient(method: type[Aggregator]) -> None:
    jacobian = DIFFICULT["three"]
    losses = losses_of(jacobian)
    expected = CONTRACTS[method].build()(jacobian, losses)
    found = CONTRACTS[method].build()(jacobian.clone().requires_grad_(), losses.clone().requires_grad_())
    assert_same_bits(found, expected)
    if method in GRAMIAN_METHODS:
        gramian = (jacobian @ jacobian.mT).requires_grad_()
        assert not CONTRACTS[method].build().solve(gramian, losses).requires_grad


@pytest.mark.parametrize("method", CONTRACTS)
def test_losses_must_be_as_many_as_rows(method: type[Aggregator]) -> None:
    jacobian = DIFFICULT["three"]
    name = method.__name__
    with pytest.raises(ValueError, match=rf"^{name}: `losses` must be \(3,\), one value a row, got shape \(2,\)\."):
        CONTRACTS[method].build()(jacobian, torch.ones(2))
    with pytest.raises(TypeError, match=rf"^{name}: `losses` must be a tensor, got list\."):
        CONTRACTS[method].build()(jacobian, [1.0, 2.0, 3.0])


@pytest.mark.parametrize("method", CONTRACTS)
def test_nonfinite_losses_count_where_losses_do(method: type[Aggregator]) -> None:
    jacobian = DIFFICULT["three"]
    losses = losses_of(jacobian)
    for bad in (torch.nan, torch.inf):
        broken = losses.clone()
        broken[1] = bad
        instance, other = CONTRACTS[method].build(), CONTRACTS[method].build()
        assert_same_bits(instance(jacobian, losses), other(jacobian, losses))
        before = state_of(instance)
        found = instance(jacobian, broken)
        if instance.uses_losses:
            assert bool(found.isnan().all())
            assert_same_bits(state_of(instance), before)
        else:
            assert_same_bits(found, other(jacobian, losses))


@pytest.mark.parametrize("method", CONTRACTS)
def test_losses_are_used_where_they_are_said_to_be(method: type[Aggregator]) -> None:
    jacobian = DIFFICULT["three"]
    losses = losses_of(jacobian)
    one, other = CONTRACTS[method].build(), CONTRACTS[method].build()
    changes = []
    for step in range(6):
        changed = losses * torch.tensor([3.0, 1.0, 1 / 3]) ** step
        changes.append(not torch.equal(one(jacobian, losses), other(jacobian, changed)))
    assert any(changes) == one.uses_losses


@pytest.mark.parametrize("method", CONTRACTS)
def test_reset_forgets_all_but_the_draws(method: type[Aggregator]) -> None:
    jacobian = DIFFICULT["three"]
    losses = losses_of(jacobian)
    used, unused = CONTRACTS[method].build(), CONTRACTS[method].build()
    for step in range(5):
        used((1.0 + step) * jacobian.roll(step, 0), losses)
    used.reset()
    for member, other in zip(used.modules(), unused.modules(), strict=True):
        if isinstance(member, Randomized):
            other.generator.set_state(member.generator.get_state())
    for _ in range(3):
        assert_same_bits(used(jacobian, losses), unused(jacobian, losses))
