"""Problems with known answers: the verdict and the method recommended are right."""

import math

import pytest
import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.diagnostics.diagnosis.advice import Recommendation, headline, recommended, weights_of
from gradsurgery.diagnostics.diagnosis.findings import Findings, find, nearest_gramian
from gradsurgery.diagnostics.diagnosis.noise import BatchProducts
from gradsurgery.diagnostics.diagnosis.reasons import listed


def products_of(rows: Tensor, present: Tensor | None = None) -> BatchProducts:
    """Of gradients ``(n, K, P)`` in one group."""
    if present is None:
        present = torch.ones(rows.shape[:2], dtype=torch.bool)
    rows = torch.where(present.unsqueeze(-1), rows, 0.0)
    return BatchProducts((rows @ rows.mT).unsqueeze(1), (rows.sum(0) @ rows.mT).unsqueeze(1), present)


def found(
    means: Tensor | list[list[float]], *, batches: int = 16, noise: float | Tensor = 0.0, seed: int = 0
) -> Findings:
    """Findings on gradients with these means, in 100 dimensions, with noise so many times as long as the means."""
    means = torch.as_tensor(means, dtype=torch.float64)
    full = torch.zeros(len(means), 100, dtype=torch.float64)
    full[:, : means.shape[1]] = means
    noise = noise * full.norm(dim=1, keepdim=True)
    own = torch.randn(batches, *full.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 10
    return find(tuple("abcdefghij"[: len(full)]), products_of(full + noise * own))


def unit(cosine: float) -> list[list[float]]:
    """Two gradients of length 1 with this cosine."""
    return [[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]]


def scaled(rows: list[list[float]], *factors: float) -> list[list[float]]:
    return [[factor * number for number in row] for factor, row in zip(factors, rows, strict=True)]


KNOWN = {
    "orthogonal": (unit(0.0), "none"),
    "aligned": (unit(0.9), "none"),
    "identical": ([[1.0, 2.0], [1.0, 2.0]], "none"),
    "identical in other units": ([[1.0, 2.0], [100.0, 200.0]], "none"),
    "slightly opposed": (unit(-0.15), "none"),
    "three times as long": (scaled(unit(0.0), 1, 3), "none"),
    "opposed": (unit(-0.8), "direction"),
    "exactly opposed": ([[1.0, 0.0], [-1.0, 0.0]], "direction"),
    "opposed and three times as long": (scaled(unit(-0.8), 1, 3), "direction"),
    "imbalanced": (scaled(unit(0.0), 1, 50), "magnitude"),
    "imbalanced and a little aligned": (scaled(unit(0.3), 1, 50), "magnitude"),
    "harmed by a longer one, slightly opposed": (scaled(unit(-0.2), 1, 8), "magnitude"),
    "imbalanced and opposed": (scaled(unit(-0.8), 1, 50), "both"),
    "imbalanced and exactly opposed": ([[1.0, 0.0], [-50.0, 0.0]], "both"),
    "one loss": ([[1.0, 0.0]], "none"),
    "the other has no gradient": ([[1.0, 0.0], [0.0, 0.0]], "none"),
    "no gradient at all": ([[0.0, 0.0], [0.0, 0.0]], "none"),
    "a third that helps": ([[1.0, 0.0], [-0.3, math.sqrt(0.91)], [0.7, 0.7]], "none"),
}
METHODS = {"none": "sum", "noise": "sum", "magnitude": "lossbalancer", "direction": "upgrad", "both": "chain"}


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name: str, noise: float) -> None:
    means, trouble = KNOWN[name]
    findings = found(means, noise=noise)
    assert findings.trouble == trouble
    assert recommended(findings).method == METHODS[trouble]


@pytest.mark.parametrize("seed", range(10))
def test_pure_noise_is_no_conflict(seed: int) -> None:
    rows = torch.randn(16, 4, 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    findings = find(tuple("abcd"), products_of(rows))
    assert findings.trouble == "noise"
    assert recommended(findings).method == "sum"
    assert "stands out from the noise" in recommended(findings).reason


def test_verdicts_are_rarely_wrong() -> None:
    verdicts = [
        found([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.5, 1.0]], noise=1.0, seed=seed) for seed in range(100)
    ]
    assert sum(findings.trouble == "none" for findings in verdicts) >= 97


def test_noise_that_conflicts_in_every_batch_is_no_conflict() -> None:
    means = torch.zeros(16, 2, 100, dtype=torch.float64)
    means[:, 0, 0] = means[:, 1, 1] = 1.0
    common = torch.randn(16, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 5
    means[:, 0] += common
    means[:, 1] -= common
    findings = find(("a", "b"), products_of(means))
    assert findings.conflict_shares[0, 1] == 1.0
    assert findings.batch_cosines[0, 1] < -0.5
    assert findings.trouble == "none"
    assert findings.standing == {(0, 1): "noise"}
    assert "noise" in recommended(findings).reason


def test_conflict_beneath_noise_is_found() -> None:
    findings = found(scaled(unit(-0.8), 1, 1), noise=1.5, seed=1)
    assert findings.trouble == "direction"
    assert findings.standing == {(0, 1): "systematic"}
    assert float(findings.noise[0]) == pytest.approx(2.25, rel=0.5)


def test_the_signal_of_one_loss_alone_is_noise_still() -> None:
    rows = torch.randn(16, 2, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 0, 0] += 20.0
    findings = find(("strong", "lost"), products_of(rows))
    assert findings.with_signal.tolist() == [True, False]
    assert findings.trouble == "noise"
    assert "Only the gradient of 'strong'" in recommended(findings).reason


@pytest.mark.parametrize(
    ("cosine", "standing"), [(-0.5, "systematic"), (-0.05, "shallow"), (-0.01, "none"), (0.0, "none"), (0.5, "none")]
)
def test_what_pairs_are_called(cosine: float, standing: str) -> None:
    assert found(unit(cosine)).standing == {(0, 1): standing}


@pytest.mark.parametrize(("cosine", "noise"), [(-0.5, 3.5), (-0.06, 0.6)])
def test_pairs_that_may_conflict(cosine: float, noise: float) -> None:
    kinds = [found(unit(cosine), noise=noise, seed=seed).standing[0, 1] for seed in range(40)]
    assert kinds.count("unclear") > 5
    assert "none" not in kinds or cosine > -0.1


def test_many_slight_conflicts_are_one_trouble() -> None:
    rows = torch.eye(6, dtype=torch.float64) - 0.12 * (1 - torch.eye(6, dtype=torch.float64))
    findings = found(rows)
    assert set(findings.standing.values()) == {"systematic"}
    assert findings.trouble == "direction"


@pytest.mark.parametrize("batches", [1, 2])
def test_few_batches_are_not_enough(batches: int) -> None:
    findings = found(unit(-0.8), batches=batches)
    assert not findings.judged
    assert findings.trouble == "direction"  # as it looks
    advice = recommended(findings)
    assert advice.method == "sum"
    assert "gs.UPGrad()" in advice.reason
    assert headline(findings).startswith("Not certain.")
    assert findings.noise.isnan().all()
    calm = recommended(found(unit(0.0), batches=batches))
    assert "cannot tell noise from conflict" in calm.reason
    assert "pass it three times" in calm.reason


def test_one_batch_three_times_is_enough() -> None:
    findings = found(unit(-0.8), batches=3)
    assert findings.judged
    assert recommended(findings).method == "upgrad"


def test_losses_that_come_and_go() -> None:
    rows = torch.tensor(unit(-0.8), dtype=torch.float64).expand(8, 2, 2)
    present = torch.tensor([[True, True]] * 2 + [[True, False]] * 3 + [[False, True]] * 3)
    findings = find(("a", "b"), products_of(rows, present))
    assert findings.trouble == "direction"
    torch.testing.assert_close(findings.gramian, rows[0] @ rows[0].mT)
    assert findings.conflict_shares[0, 1] == 1.0  # of the two batches that have both


def test_slight_conflicts_that_add_up_are_told() -> None:
    findings = found(torch.eye(9, dtype=torch.float64) - 0.05 * (1 - torch.eye(9, dtype=torch.float64)))
    assert set(findings.standing.values()) == {"shallow"}
    assert findings.trouble == "direction"
    reason = recommended(findings).reason
    cosine = float(findings.cosines[0, 1])
    assert f"the others would take {-800 * cosine:.0f}% of the progress of" in reason


def test_the_pair_that_is_told_is_that_of_the_loss_in_trouble() -> None:
    rows = torch.eye(8, dtype=torch.float64)
    rows[0, 1:6] = -0.09  # five slight conflicts of the first are the trouble, not the one of the last two
    rows[7, 6] = -0.15
    findings = found(rows)
    assert findings.crowded.tolist() == [True] + [False] * 7
    assert headline(findings) == "Direction: the other losses pull against 'a'."
    reason = recommended(findings).reason
    assert reason.startswith("Slight conflicts add up")
    assert reason.endswith(f"the others would take {100 * findings.taken[0]:.0f}% of the progress of 'a'.")


def test_why_a_conflict_is_no_trouble_is_told() -> None:
    slight = found(scaled(unit(-0.15), 1, 4))
    assert float(slight.progress(torch.ones(2))[0]) < 0.5  # so much for three quarters
    assert "with gradients of one length neither would take more than a quarter" in recommended(slight).reason
    helped = recommended(found(KNOWN["a third that helps"][0])).reason
    assert "'a' and 'b' do conflict on average (cosine -0.30), but the other losses make up for it." in helped


def test_nothing_is_said_of_pairs_lost_in_noise() -> None:
    rows = torch.randn(16, 3, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 0, 0] += 20.0
    rows[:, 1, 1] += 20.0
    rows[:, 2] -= 0.05 * rows[:, 0]
    findings = find(("strong", "too", "lost"), products_of(rows))
    assert findings.trouble == "none"
    assert findings.conflict_shares[0, 2] > 0.25
    assert findings.standing[0, 2] == "unclear"
    reason = recommended(findings).reason
    assert "that is noise" not in reason
    assert "may conflict" not in reason
    assert "Nothing can be said of 'lost', lost in noise." in reason


@pytest.mark.parametrize(("factor", "said"), [(30.0, True), (3.0, False)])
def test_a_loss_that_drowns_another_in_every_batch_is_told(factor: float, said: bool) -> None:
    rows = torch.randn(16, 2, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 1] *= factor
    findings = find(("small", "big"), products_of(rows))
    assert findings.trouble == "noise"
    torch.testing.assert_close(findings.batch_lengths, rows.square().sum(2).mean(0).sqrt())
    rows[:, 0, 0] += 20.0  # a signal does not help against longer noise
    for own in (findings, find(("small", "big"), products_of(rows))):
        assert own.trouble == "noise"
        assert ("times shorter than that of 'big', which may drown it" in recommended(own).reason) == said


def test_one_loss_is_asked_for_its_terms() -> None:
    one = found([[1.0, 0.0]])
    assert headline(one) == "One loss: nothing can conflict with it."
    assert "return its terms one by one" in recommended(one).reason


def test_who_is_made_worse_is_told() -> None:
    reason = recommended(found(KNOWN["harmed by a longer one, slightly opposed"][0])).reason
    assert "the plain sum makes 'a' worse; with gradients of one length it would not." in reason
    opposed = recommended(found(KNOWN["opposed and three times as long"][0])).reason
    assert "the plain sum makes 'a' worse." in opposed
    assert "-0.80 ± 0.00" in opposed
    longer = [recommended(found(scaled(unit(cosine), 1, 50))).reason for cosine in (-0.5, 0.0)]
    assert "makes it worse" in longer[0]
    assert "brings it 2.0% of what a step along its own would" in longer[1]
    draws = (found(scaled(unit(0.0), 1, 1000), noise=0.3, seed=seed) for seed in range(20))
    by_chance = next(findings for findings in draws if findings.progress(torch.ones(2))[0] < 0)
    assert not by_chance.harmed.any()
    assert "brings it nothing" in recommended(by_chance).reason


def test_losses_that_never_come_together() -> None:
    rows = torch.tensor(unit(-0.8), dtype=torch.float64).expand(8, 2, 2)
    present = torch.tensor([[True, False], [False, True]] * 4)
    findings = find(("a", "b"), products_of(rows, present))
    assert findings.trouble == "direction"
    assert findings.conflict_shares[0, 1].isnan()
    assert "pull against each other" in recommended(findings).reason


def test_nothing_shared() -> None:
    empty = torch.zeros(4, 0, 2, 2, dtype=torch.float64)
    findings = find(("a", "b"), BatchProducts(empty, empty, torch.ones(4, 2, dtype=torch.bool)))
    assert findings.trouble == "nothing shared"
    assert recommended(findings).method == "sum"


def test_who_is_in_trouble() -> None:
    findings = found([[100.0, 0.0, 0.0], [-0.7, 0.7, 0.0], [0.0, 0.0, 1.0], [60.0, 80.0, 0.0]])
    assert findings.overlooked.tolist() == [False, True, True, False]
    assert findings.harmed.tolist() == [False, True, False, False]
    assert "'b' and 'c'" in headline(findings)


def test_what_a_step_does() -> None:
    findings = found(scaled(unit(-0.5), 1, 10))
    jacobian = torch.tensor(scaled(unit(-0.5), 1, 10), dtype=torch.float64)
    for weights in (torch.tensor([1.0, 1.0]), torch.tensor([10.0, 1.0])):
        direction = weights.double() @ jacobian
        expected = jacobian @ direction / jacobian.norm(dim=1) / direction.norm()
        torch.testing.assert_close(findings.progress(weights), expected)
    balanced = weights_of(gs.LossBalancer(), findings)
    assert balanced is not None
    torch.testing.assert_close(balanced[0] / balanced[1], torch.tensor(10.0, dtype=torch.float64))
    assert weights_of(gs.GradDrop(), findings) is None


def test_however_far_apart_the_lengths_are() -> None:
    findings = found([[1.0, 0.0], [0.0, 1e9]])
    balanced = weights_of(gs.LossBalancer(), findings)
    assert balanced is not None
    assert findings.progress(balanced).tolist() == pytest.approx([math.sqrt(0.5)] * 2)


def test_no_direction_is_left_of_opposed_gradients() -> None:
    findings = found([[1.0, 0.0], [-1.0, 0.0]])
    assert findings.progress(torch.ones(2)).isnan().all()


def test_nearest_gramian_has_no_negative_eigenvalues() -> None:
    gramian = torch.tensor([[1.0, -9.0, 0.0], [-9.0, 100.0, -6.0], [0.0, -6.0, 1.0]], dtype=torch.float64)
    assert torch.linalg.eigvalsh(gramian).min() < 0
    nearest = nearest_gramian(gramian)
    assert torch.linalg.eigvalsh(nearest).min() > -1e-9
    torch.testing.assert_close(nearest.diagonal(), gramian.diagonal())
    proper = torch.tensor([[1.0, -0.5], [-0.5, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(nearest_gramian(proper), proper)


@pytest.mark.parametrize("name", ["orthogonal", "opposed", "imbalanced", "imbalanced and opposed"])
def test_the_method_recommended_can_be_built_and_helps(name: str) -> None:
    findings = found(KNOWN[name][0])
    advice = recommended(findings)
    weights = weights_of(advice.build(), findings)
    assert weights is not None
    worst = findings.progress(weights).min()
    assert worst >= findings.progress(torch.ones(2)).min() - 1e-9
    assert worst > 0.3
    if advice.method != "sum":
        names = {"gs": gs, "optimizer": torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)}
        exec(advice.code, names)
        assert isinstance(names["optimizer"], gs.MultiObjectiveOptimizer)
        assert type(names["optimizer"].aggregator) is type(advice.build())


@pytest.mark.parametrize(("factor", "said"), [(1.0, True), (4.0, False)])
def test_it_says_where_nothing_is_gained(factor: float, said: bool) -> None:
    advice = recommended(found(scaled(unit(-0.6), 1, factor)))
    assert advice.method == "upgrad"
    assert any("no more than the sum" in sentence for sentence in advice.also) == said


def test_it_says_what_it_does_not_tell() -> None:
    advice = recommended(found(KNOWN["imbalanced"][0]))
    text = " ".join(advice.also)
    for word in ("gs.compare", "run it again", "unit", "FAMO"):
        assert word in text
    assert not any("gs.compare" in sentence for sentence in recommended(found(unit(0.0))).also)


def test_many_losses_are_told_of_the_block() -> None:
    rows = torch.eye(10, dtype=torch.float64) - 0.1 * (1 - torch.eye(10, dtype=torch.float64))
    advice = recommended(found(rows))
    assert advice.method == "upgrad"
    assert any("ImpartialityBlock" in sentence for sentence in advice.also)


def test_long_lists_and_names_are_cut() -> None:
    assert listed([]) == "none"
    assert listed(["x" * 60]) == f"'{'x' * 16}…{'x' * 7}'"
    assert listed(list("abcde")) == "'a', 'b', 'c' and 2 others"


def test_a_recommendation_builds_its_method() -> None:
    assert isinstance(Recommendation("upgrad", "", "").build(), gs.UPGrad)
