"""IMTL-G, ConFIG and M-ConFIG: equal shares for every loss, and the published algorithms taken literally."""

import copy
from collections.abc import Sequence

import pytest
import torch
from precise import equal_cosine_directions, well_posed
from support import DIFFICULT, assert_near, assert_same_bits, condition_of, gaussian, norms_of, state_of, with_cosine
from torch import Tensor, nn

from gradsurgery.aggregators import IMTLG, ConFIG, MConFIG

SIZES = [2, 3, 8, 16, 64]


@pytest.mark.parametrize("kind", well_posed(2))
@pytest.mark.parametrize("count", SIZES)
def test_directions_are_exact(count: int, kind: str) -> None:
    jacobian = torch.from_numpy(well_posed(count)[kind])
    assert condition_of(jacobian) <= 1e6
    expected_of_imtlg, expected_of_config = equal_cosine_directions(jacobian.numpy())
    assert_near(IMTLG()(jacobian), expected_of_imtlg, 1e-8)
    assert_near(ConFIG()(jacobian), expected_of_config, 1e-8)
    single = jacobian.float()
    _, expected = equal_cosine_directions(single.double().numpy())
    assert_near(ConFIG()(single), expected, 1e-5)


# --- IMTL-G ------------------------------------------------------------------------------------------------------


def _with_weights_that_cancel(excess: float) -> Tensor:
    """Three unit directions with shares (a, a, -b): norms for which the weights add up to ``excess``, relatively."""
    unit = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.9, 0.35, 0.26]], dtype=torch.float64)
    unit = unit / unit.norm(dim=1, keepdim=True)
    shares = torch.linalg.solve(unit @ unit.mT, torch.ones(3, dtype=torch.float64))
    assert float(shares.min()) < 0 < float(shares.max())
    weights = shares.abs() / shares.abs().sum()
    positive, negative = weights[shares > 0].sum(), weights[shares < 0].sum()
    scale = torch.where(shares > 0, 1.0, (positive / negative) / (1 + 2 * excess))
    return unit / scale.unsqueeze(1)


def test_imtlg_has_a_pole_where_its_weights_have_no_sum() -> None:
    lengths = []
    for excess in (1e-1, 1e-3, 1e-5, 1e-7, 1e-9, -1e-9, -1e-5, -1e-1):
        jacobian = _with_weights_that_cancel(excess)
        direction = IMTLG()(jacobian)
        projections = jacobian @ direction / norms_of(jacobian)
        assert_near(projections, projections.mean().expand(3), 1e-9)
        lengths.append(excess * float(projections.mean()))
    assert_near(torch.tensor(lengths[1:-1]), torch.full((6,), lengths[4]), 0.01)
    for excess in (1e-11, -1e-12, 1e-13, 1e-14, 1e-15, 0.0, -1e-15):
        direction = IMTLG()(_with_weights_that_cancel(excess))
        assert bool(direction.isfinite().all())
    assert not bool(IMTLG()(_with_weights_that_cancel(0.0)).any())  # its sign is rounding


@pytest.mark.parametrize("excess", [1e-2, 1e-4, 1e-6, -1e-8, 1e-10])
def test_imtlg_has_weights_that_sum_to_one_close_to_the_pole(excess: float) -> None:
    jacobian = _with_weights_that_cancel(excess)
    weights = IMTLG().weights(jacobian @ jacobian.mT)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-14 * float(weights.abs().sum()))
    assert_near(weights @ jacobian, equal_cosine_directions(jacobian.numpy())[0], 1e-13 / abs(excess))


@pytest.mark.parametrize("size", [1e-150, 1e-9, 1.0, 1e9])
def test_imtlg_with_rows_that_have_no_solution_or_none_that_counts(size: float) -> None:
    jacobian = size * DIFFICULT["three"]
    zeros = torch.zeros_like(jacobian)
    problems = torch.stack([zeros, torch.cat([jacobian[:2], -jacobian[:1]]), jacobian])
    weights = IMTLG().weights(problems @ problems.mT)
    assert_near(weights[:2], torch.zeros(2, 3), 0.0)
    assert_near(weights[2] @ jacobian / size, equal_cosine_directions(DIFFICULT["three"].numpy())[0], 1e-9)


# --- ConFIG ------------------------------------------------------------------------------------------------------


def papers_config(jacobian: Tensor) -> Tensor:
    """Section 3.1 of Liu et al., with the pseudo-inverse of the unit rows."""
    unit = torch.nan_to_num(jacobian / norms_of(jacobian).unsqueeze(1), 0.0)
    direction = torch.linalg.pinv(unit, rtol=1e-9) @ torch.ones(len(jacobian), dtype=torch.float64)
    if float(direction.norm()) < 1e-9:
        return torch.zeros_like(direction)
    direction = direction / direction.norm()
    return (jacobian @ direction).sum() * direction


@pytest.mark.parametrize("name", DIFFICULT)
def test_config_is_its_formula(name: str) -> None:
    jacobian = DIFFICULT[name]
    assert_near(ConFIG()(jacobian), papers_config(jacobian), 1e-8, 1e-12 * float(norms_of(jacobian).max()))


@pytest.mark.parametrize("cosine", [-0.3, -0.99, -0.9999])
def test_config_of_two_by_orthogonal_components(cosine: float) -> None:
    """Section 3.2 of Liu et al.: the sum of the two unit vectors that are orthogonal to one gradient each."""
    first, second = with_cosine(2, cosine) * torch.tensor([[1.0], [30.0]], dtype=torch.float64)
    from_first = second - (first @ second) / (first @ first) * first
    from_second = first - (first @ second) / (second @ second) * second
    direction = from_first / from_first.norm() + from_second / from_second.norm()
    direction = direction / direction.norm()
    expected = ((first + second) @ direction) * direction
    assert_near(ConFIG()(torch.stack([first, second])), expected, 1e-9)


@pytest.mark.parametrize("count", [2, 5, 12])
def test_config_progresses_equally_by_its_own_length(count: int) -> None:
    jacobian = gaussian(count, 20, seed=count) * torch.logspace(-2, 2, count, dtype=torch.float64).unsqueeze(1)
    direction = ConFIG()(jacobian)
    cosines = jacobian @ direction / norms_of(jacobian) / direction.norm()
    assert_near(cosines, cosines.mean().expand(count), 1e-10)
    assert float(cosines.mean()) > 0
    assert float(direction.norm()) == pytest.approx(float((norms_of(jacobian) * cosines).sum()), rel=1e-10)


# --- M-ConFIG ----------------------------------------------------------------------------------------------------


class LiteralMConFIG:
    """Algorithm 1 of Liu et al. on one vector of parameters: plain averages, Adam's second moment of the estimate.

    With ``wait`` as in the published code: no step, and none counted, before every loss has been seen.
    """

    def __init__(self, parameters: Tensor, count: int, lr: float, betas: tuple[float, float], *, wait: bool) -> None:
        self.parameters, self.lr, self.betas, self.wait = parameters.clone(), lr, betas, wait
        self.moments = torch.zeros(count, len(parameters), dtype=parameters.dtype)
        self.times = [0] * count
        self.previous = torch.zeros_like(parameters)
        self.second = torch.zeros_like(parameters)
        self.time = 0

    def step(self, gradients: Tensor, rows: Sequence[int]) -> None:
        first, second = self.betas
        for gradient, row in zip(gradients, rows, strict=True):
            self.times[row] += 1
            self.moments[row] = first * self.moments[row] + (1 - first) * gradient
        if self.wait and 0 in self.times:
            return
        self.time += 1
        seen = [row for row, time in enumerate(self.times) if time > 0]
        corrected = torch.stack([self.moments[row] / (1 - first ** self.times[row]) for row in seen])
        combined = papers_config(corrected)
        moment = combined * (1 - first**self.time)
        estimate = (moment - first * self.previous) / (1 - first)
        self.previous = moment
        self.second = second * self.second + (1 - second) * estimate**2
        denominator = (self.second / (1 - second**self.time)).sqrt() + 1e-8
        self.parameters = self.parameters - self.lr * combined / denominator


def _run(schedule: Sequence[Sequence[int]], *, wait: bool, betas: tuple[float, float] = (0.9, 0.999)) -> None:
    start = gaussian(1, 9, seed=4)[0]
    literal = LiteralMConFIG(start, 3, 0.05, betas, wait=wait)
    parameters = [nn.Parameter(start[:4].clone().view(2, 2)), nn.Parameter(start[4:].clone())]
    adam = torch.optim.Adam(parameters, lr=0.05, betas=betas, eps=1e-8)
    method = MConFIG(beta=betas[0])
    targets, scales = gaussian(3, 9, seed=5), torch.tensor([1.0, 20.0, 0.1], dtype=torch.float64)

    def gradients(point: Tensor, rows: Sequence[int]) -> Tensor:
        return torch.stack([scales[row] * (point - targets[row]) for row in rows])

    for rows in schedule:
        jacobian = gradients(torch.cat([parameter.detach().flatten() for parameter in parameters]), rows)
        blocks = [jacobian[:, :4].reshape(-1, 2, 2), jacobian[:, 4:]]
        for parameter, direction in zip(parameters, method(blocks, rows=rows), strict=True):
            parameter.grad = direction
        adam.step()
        literal.step(gradients(literal.parameters, rows), rows)
        point = torch.cat([parameter.detach().flatten() for parameter in parameters])
        assert_near(point, literal.parameters, 1e-8)
    assert float((literal.parameters - start).norm()) > 0.3  # it went somewhere


def test_mconfig_with_adam_is_its_algorithm() -> None:
    _run([[step % 3] for step in range(40)], wait=False)
    _run([[0], [1], [1], [2, 0], [0, 1, 2], [2], [1, 0], *[[step % 3] for step in range(20)]], wait=False)
    _run([[step % 2 * 2] for step in range(30)], wait=False, betas=(0.5, 0.9))


def test_mconfig_with_adam_is_the_published_code_once_all_losses_have_been_seen() -> None:
    _run([[0, 1, 2], *[[step % 3] for step in range(40)]], wait=True)


def test_mconfig_without_memory_is_config() -> None:
    method = MConFIG(beta=0.0)
    for seed in range(3):
        jacobian = gaussian(4, 7, seed=seed)
        assert_near(method(jacobian), ConFIG()(jacobian), 1e-12)


def test_mconfig_of_one_loss_is_its_gradient() -> None:
    method = MConFIG()
    for seed in range(6):
        row = gaussian(1, 7, seed=seed)
        assert_near(method(row), row[0], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_mconfig_keeps_averages_in_single_precision_at_least(dtype: torch.dtype) -> None:
    method, exact = MConFIG(), MConFIG()
    for step in range(12):
        rows = [step % 3]
        gradient = gaussian(1, 6, seed=step).to(dtype)
        direction = method(gradient, rows=rows)
        assert direction.dtype == dtype
        assert_near(direction, exact(gradient.double(), rows=rows), 20 * torch.finfo(dtype).eps)
    assert method.tracked_0.dtype == torch.float32
    assert method.half().tracked_0.dtype == torch.float32


def test_mconfig_continues_from_a_checkpoint_and_forgets_gradients_that_are_not_finite() -> None:
    method = MConFIG()
    blocks = [gaussian(1, 6, seed=1).view(1, 2, 3), gaussian(1, 2, seed=2)]
    for row in (0, 2, 1, 0):
        method([(row + 1.0) * block for block in blocks], rows=[row])
    before = state_of(method)
    broken = [blocks[0], torch.full_like(blocks[1], torch.inf)]
    assert not any(bool(part.isfinite().any()) for part in method(broken, rows=[1]))
    assert_same_bits(state_of(method), before)
    loaded = MConFIG()
    loaded.load_state_dict(before)
    for row in (1, 2, 3, 0):
        expected = method(blocks, rows=[row])
        assert_same_bits(loaded(blocks, rows=[row]), expected)
    assert_same_bits(state_of(loaded), state_of(method))
    other = copy.deepcopy(method)
    other.reset()
    assert_same_bits(other(blocks, rows=[1]), MConFIG()(blocks, rows=[1]))


def test_mconfig_needs_one_problem_and_blocks_of_one_shape() -> None:
    method = MConFIG()
    with pytest.raises(ValueError, match=r"^MConFIG: `jacobian` must be one \(K, P\) matrix"):
        method(torch.ones(2, 3, 4))
    method(torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"^MConFIG: `jacobian` must keep the shape"):
        method(torch.ones(1, 5))
    for beta in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"^MConFIG: `beta` must be in \[0, 1\), got {beta}\."):
            MConFIG(beta)
