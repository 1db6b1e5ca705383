"""Signal and noise: estimates against closed forms, simulations and other implementations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from gradsurgery.diagnostics.diagnosis.noise import (
    BatchProducts,
    Estimate,
    Signal,
    lengths_of_estimates,
    significant,
    student_tail,
)


def products_of(rows: Tensor, present: Tensor | None = None) -> BatchProducts:
    """Of gradients ``(n, K, P)`` in one group."""
    if present is None:
        present = torch.ones(rows.shape[:2], dtype=torch.bool)
    rows = torch.where(present.unsqueeze(-1), rows, 0.0)
    return BatchProducts((rows @ rows.mT).unsqueeze(1), (rows.sum(0) @ rows.mT).unsqueeze(1), present)


def drawn(batches: int, means: Tensor, noise: float, correlation: float, generator: torch.Generator) -> Tensor:
    """Gradients of two losses whose noise in a batch is correlated."""
    own = torch.randn(batches, *means.shape, generator=generator, dtype=torch.float64)
    own[:, 1] = correlation * own[:, 0] + math.sqrt(1 - correlation**2) * own[:, 1]
    return means + noise * own


@given(st.integers(1, 60), st.floats(-40, 40))
def test_tails_are_those_of_scipy(freedom: int, statistic: float) -> None:
    ours = student_tail(torch.tensor(statistic, dtype=torch.float64), torch.tensor(freedom))
    assert float(ours) == pytest.approx(stats.t.sf(statistic, freedom), abs=1e-14)


def test_tails_at_the_ends() -> None:
    tails = student_tail(torch.tensor([math.inf, -math.inf, math.nan, 1.0]), torch.tensor([3, 3, 3, 0]))
    assert tails[:2].tolist() == [0.0, 1.0]
    assert tails[2:].isnan().all()


def test_tests_are_corrected_as_holm_does() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = np.sort(generator.random(6) ** 3)
        expected = np.cumprod(values * np.arange(6, 0, -1) <= 0.05).astype(bool)
        order = generator.permutation(6)
        assert significant(torch.tensor(values[order])).tolist() == expected[order].tolist()


def test_unknown_probabilities_are_no_tests() -> None:
    assert significant(torch.tensor([0.04, math.nan, math.nan])).tolist() == [True, False, False]
    assert significant(torch.tensor([math.nan])).tolist() == [False]


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 1000))
def test_signal_is_the_mean_over_pairs_of_different_batches(batches: int, losses: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(batches, losses, 3, generator=generator, dtype=torch.float64)
    present = torch.rand(batches, losses, generator=generator) < 0.8
    found = Signal(products_of(rows, present)).gramian[0]
    for i in range(losses):
        for j in range(losses):
            pairs = [
                rows[a, i] @ rows[b, j]
                for a in range(batches)
                for b in range(batches)
                if a != b and present[a, i] and present[b, j]
            ]
            if pairs:
                torch.testing.assert_close(found[i, j], torch.stack(pairs).mean())
            else:
                assert found[i, j].isnan()


def test_jackknife_leaves_out_one_batch_after_the_other() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
    present = torch.ones(6, 3, dtype=torch.bool)
    present[0, 1] = present[3, 2] = False
    estimate = Signal(products_of(rows, present)).products()
    left = torch.stack(
        [
            Signal(products_of(rows[keep], present[keep])).gramian
            for keep in (torch.arange(6) != out for out in range(6))
        ]
    )
    for i in range(3):
        for j in range(3):
            own = left[present[:, i] | present[:, j], 0, i, j]  # a batch that has neither says nothing
            expected = (own - own.mean()).square().sum() * (len(own) - 1) / len(own)
            torch.testing.assert_close(estimate.error[0, i, j], expected.sqrt())
            assert estimate.freedom[0, i, j] <= len(own) - 1
    everywhere = Signal(products_of(rows)).products()
    assert everywhere.freedom.eq(5).all()


def test_noise_of_the_batches_does_not_bias_the_signal() -> None:
    means = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    signals, within, noise = [], [], []
    for _ in range(2000):
        products = products_of(drawn(5, means, 1.0, -0.9, generator))
        signal = Signal(products)
        signals.append(signal.gramian[0])
        within.append(products.within[:, 0].mean(0))
        noise.append((products.within[:, 0].mean(0) - signal.gramian[0]).diagonal())
    mean, deviation = torch.stack(signals).mean(0), torch.stack(signals).std(0) / math.sqrt(2000)
    assert (mean - torch.eye(2)).abs().max() < 4 * deviation.max()
    assert torch.stack(within).mean(0)[0, 1] < -2.5  # what a look at single batches would call a conflict
    torch.testing.assert_close(
        torch.stack(noise).mean(0), torch.full((2,), 3.0, dtype=torch.float64), atol=0.2, rtol=0
    )


def test_standard_errors_are_those_of_repeated_draws() -> None:
    means = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 2.0, 0.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    signals = [Signal(products_of(drawn(12, means, 1.0, 0.5, generator))) for _ in range(1500)]
    errors = torch.stack([signal.products().error[0] for signal in signals]).square().mean(0).sqrt()
    spread = torch.stack([signal.gramian[0] for signal in signals]).std(0)
    assert (errors / spread - 1).abs().max() < 0.1
    cosines = [signal.cosines() for signal in signals]
    ratio = (
        torch.stack([c.error[0, 0, 1] for c in cosines]).mean()
        / torch.stack([c.value[0, 0, 1] for c in cosines]).std()
    )
    assert 0.85 < ratio < 1.25


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("size", [3, 100])
def test_noise_is_rarely_a_signal_or_a_conflict(correlation: float, size: int) -> None:
    generator = torch.Generator().manual_seed(4)
    signals = conflicts = 0
    for _ in range(500):
        signal = Signal(products_of(drawn(8, torch.zeros(2, size, dtype=torch.float64), 1.0, correlation, generator)))
        estimate = signal.products()
        signals += bool(significant(estimate.above_zero()[0].diagonal()).any())
        conflicts += bool(estimate.below_zero()[0, 0, 1] < 0.05)
    assert signals <= 0.05 * 500
    assert conflicts <= 0.05 * 500


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 1.0])
def test_orthogonal_signals_are_rarely_a_conflict(correlation: float) -> None:
    generator = torch.Generator().manual_seed(5)
    means = torch.zeros(2, 30, dtype=torch.float64)
    means[0, 0], means[1, 1] = 4.0, 4.0
    wrong = sum(
        bool(
            Signal(products_of(drawn(10, means, 1.0, correlation, generator))).products().below_zero()[0, 0, 1] < 0.05
        )
        for _ in range(600)
    )
    assert 0 < wrong < 0.09 * 600  # a test at 5% that never is wrong would never be right either


def test_a_loss_of_few_batches_has_the_freedom_of_few() -> None:
    generator = torch.Generator().manual_seed(9)
    present = torch.ones(16, 2, dtype=torch.bool)
    present[3:, 1] = False
    wrong, signals = 0, []
    for _ in range(600):
        rows = torch.eye(2, dtype=torch.float64).repeat(16, 1, 1)
        rows[:, 1, 0] = 0.5 * torch.randn(16, generator=generator, dtype=torch.float64)  # noise along the first loss
        signals.append(Signal(products_of(rows, present)))
        wrong += bool(signals[-1].products().below_zero()[0, 0, 1] < 0.02)
    assert 0 < wrong < 0.04 * 600  # 8% with the freedom of 16 batches
    assert all(signal.products().freedom[0, 0, 1] == 2 for signal in signals)
    whole = [signal.of(lambda gramian: gramian[..., 0, 0, 1]).freedom for signal in signals]
    assert all(freedom == 2 for freedom in whole)


def test_conflicts_are_found() -> None:
    generator = torch.Generator().manual_seed(6)
    means = torch.zeros(2, 30, dtype=torch.float64)
    means[0, 0], means[1, 0], means[1, 1] = 4.0, -2.0, 3.0
    estimates = [Signal(products_of(drawn(10, means, 1.0, 0.8, generator))) for _ in range(100)]
    assert sum(bool(signal.products().below_zero()[0, 0, 1] < 0.01) for signal in estimates) > 80
    cosines = torch.stack([signal.cosines().value[0, 0, 1] for signal in estimates])
    assert float(cosines.mean()) == pytest.approx(-2 / math.sqrt(13), abs=0.02)


def test_sixteen_batches_find_a_conflict_beneath_ten_times_as_much_noise() -> None:
    generator = torch.Generator().manual_seed(8)
    means = torch.zeros(2, 300, dtype=torch.float64)
    means[0, 0], means[1, 0], means[1, 1] = 1.0, -0.5, math.sqrt(0.75)
    signals = [Signal(products_of(drawn(16, means, math.sqrt(10 / 300), 0.0, generator))) for _ in range(100)]
    seen = [significant(signal.products().above_zero()[0].diagonal()).all() for signal in signals]
    deep = [signal.products().below_zero()[0, 0, 1] < 0.01 for signal in signals]
    assert sum(bool(one and other) for one, other in zip(seen, deep, strict=True)) >= 95
    ratios = torch.stack([signal.noise[0] / signal.gramian[0].diagonal() for signal in signals])
    assert ratios.median(0).values.tolist() == pytest.approx([10, 10], rel=0.15)


def test_without_noise_there_is_no_doubt() -> None:
    rows = torch.tensor([[[3.0, 0.0], [-1.0, 1.0], [0.0, 0.0]]], dtype=torch.float64).expand(4, 3, 2)
    signal = Signal(products_of(rows))
    torch.testing.assert_close(signal.gramian[0], rows[0] @ rows[0].mT)
    estimate = signal.products()
    assert estimate.below_zero()[0, 0, 1] == 0
    assert estimate.above_zero()[0, 0, 0] == 0
    assert estimate.above_zero()[0, 2, 2] == 0.5  # a zero is neither
    assert signal.noise[0].tolist() == [0.0, 0.0, 0.0]


def test_two_batches_give_no_errors() -> None:
    estimate = Signal(
        products_of(torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0)).double())
    ).products()
    assert estimate.error.isnan().all()
    assert estimate.below_zero().isnan().all()


def test_groups_add_up() -> None:
    rows = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    parts = [products_of(rows[..., :3]), products_of(rows[..., 3:])]
    joined = BatchProducts(
        torch.cat([part.within for part in parts], 1), torch.cat([part.across for part in parts], 1), parts[0].present
    )
    whole = Signal(products_of(rows))
    torch.testing.assert_close(Signal(joined.together()).gramian, whole.gramian)
    torch.testing.assert_close(Signal(joined).gramian.sum(0), whole.gramian[0])
    torch.testing.assert_close(Signal(joined.together()).products().error, whole.products().error)


def test_a_length_that_is_lost_in_noise_is_none() -> None:
    lengths = lengths_of_estimates(torch.tensor([[4.0, 0.0], [0.0, -1.0]]))
    assert lengths[0] == 2.0
    assert lengths[1].isnan()


def test_an_estimate_far_below_is_unlikely() -> None:
    estimate = Estimate(torch.tensor([-2.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([9, 9]))
    below, above = estimate.below_zero(), estimate.above_zero()
    assert float(below[0]) == pytest.approx(stats.t.sf(2, 9), abs=1e-6)
    torch.testing.assert_close(below + above, torch.ones(2))
