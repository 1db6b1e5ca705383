"""Conflicts are recorded by the way: the training stays as it is, and the record is that of the gradients."""

import math

import pytest
import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.integrations.vae import Table, fit, fit_seeds
from gradsurgery.integrations.vae.report.conflicts import ConflictRecorder, conflicts_of
from gradsurgery.integrations.vae.training.methods import METHODS, build_method
from gradsurgery.integrations.vae.training.preparation import Settings, batches, prepare


def _jacobians(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", METHODS)
def test_the_method_does_what_it_does_alone(name: str) -> None:
    alone, recorded = build_method(name, 3), ConflictRecorder(build_method(name, 3), [2, 4])
    for jacobian in _jacobians(5):
        at = torch.ones(6, dtype=torch.float64)
        assert torch.equal(recorded([jacobian], at=at)[0], alone([jacobian], at=at)[0])
    own = {key.removeprefix("method."): value for key, value in recorded.state_dict().items() if "method." in key}
    for key, value in alone.state_dict().items():
        assert torch.equal(own[key], value)


@pytest.mark.parametrize("name", ["lossbalancer", "graddrop"])
def test_means_of_each_stage(name: str) -> None:
    recorder = ConflictRecorder(build_method(name), [1, 4])
    jacobians = _jacobians(5)
    jacobians[2, 1] = 0.0
    method, pulls = build_method(name), []
    for jacobian in jacobians:
        recorder([jacobian], at=torch.ones(6, dtype=torch.float64))
        if isinstance(method, gs.GramianAggregator):
            pulls.append(method.solve(jacobian @ jacobian.mT) * jacobian.norm(dim=1))
    found = recorder.conflicts()
    for stage, calls in enumerate([[0], [1, 2, 3, 4]]):  # what comes after the last end belongs to the last stage
        for j in range(4):
            own = [call for call in calls if jacobians[call, j].any()]
            lengths = [float(jacobians[call, j].norm()) for call in own]
            assert found.norms[stage, j] == pytest.approx(sum(lengths) / len(own))
            if pulls:
                expected = sum(float(pulls[call][j]) for call in own) / len(own)
                assert found.pulls[stage, j] == pytest.approx(expected)
            else:
                assert found.pulls[stage, j].isnan()
            for k in range(4):
                both = [call for call in own if jacobians[call, k].any()]
                pairs = [torch.cosine_similarity(jacobians[call, j], jacobians[call, k], dim=0) for call in both]
                assert found.cosines[stage, j, k] == pytest.approx(float(sum(pairs)) / len(both))


def test_gradients_that_never_come_are_unknown() -> None:
    recorder = ConflictRecorder(gs.Sum(), [1])
    recorder(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    found = recorder.conflicts()
    assert found.cosines[0].isnan().tolist() == [[False, True], [True, True]]
    assert found.norms[0].isnan().tolist() == [False, True]


def test_scales_do_not_matter_to_cosines() -> None:
    for scale in (1e-140, 1e140):
        recorder = ConflictRecorder(gs.Sum(), [1])
        recorder(torch.tensor([[3.0, 4.0], [-1.0, 0.0]], dtype=torch.float64) * scale)
        assert recorder.conflicts().cosines[0, 0, 1] == pytest.approx(-0.6)


def test_leading_dimensions_are_separate_problems() -> None:
    jacobians = _jacobians(6).unflatten(0, (3, 2))  # three calls of two problems
    together = ConflictRecorder(gs.LossBalancer(), [2, 3])
    for call in jacobians:
        together.solve(call @ call.mT)
    for problem in range(2):
        alone = ConflictRecorder(gs.LossBalancer(), [2, 3])
        for call in jacobians[:, problem]:
            alone.solve(call @ call.mT)
        for name in ("cosines", "norms", "pulls"):
            found = getattr(together.conflicts(), name)[problem]
            torch.testing.assert_close(found, getattr(alone.conflicts(), name))


def test_not_finite_gradients_leave_no_trace() -> None:
    recorder = ConflictRecorder(gs.LossBalancer(), [1, 9])
    recorder(torch.eye(2))
    before = {name: value.clone() for name, value in recorder.state_dict().items()}
    assert recorder(torch.tensor([[math.inf, 0.0], [0.0, 1.0]])).isnan().all()
    assert all(torch.equal(before[name], value) for name, value in recorder.state_dict().items())


def test_an_earlier_state_takes_nothing_back() -> None:
    recorder = ConflictRecorder(gs.LossBalancer(), [1, 2])
    recorder(torch.eye(2))
    earlier = {name: value.clone() for name, value in recorder.state_dict().items()}
    recorder(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    later = recorder.conflicts()
    recorder.load_state_dict(earlier)
    torch.testing.assert_close(recorder.conflicts().cosines, later.cosines)
    assert torch.equal(recorder.state_dict()["method.average"], earlier["method.average"])
    other = ConflictRecorder(gs.LossBalancer(), [1, 2])
    other.load_state_dict(earlier)
    assert other.conflicts().norms[1].isnan().all()


def test_training_is_as_without_a_record(table: Table) -> None:
    settings = {"epochs": 4, "batch_size": 32, "seed": 1}
    alone = fit(table, gs.LossBalancer(), **settings)
    recorded = fit(table, ConflictRecorder(gs.LossBalancer(), [6, 24]), **settings)
    assert alone.history == recorded.history
    (found,) = conflicts_of(recorded.model).values()
    assert found.cosines.shape == (2, 6, 6)
    assert found.cosines.isfinite().all()


def test_rows_are_in_the_order_of_the_columns(table: Table) -> None:
    """One step on all training rows, its gradients taken one by one."""
    rows = len(table.split(0).train)
    run = fit(table, ConflictRecorder(gs.Sum(), [1]), epochs=1, batch_size=rows, seed=0)
    (found,) = conflicts_of(run.model).values()
    alone = prepare(table, gs.Sum(), Settings(), 0)
    seen: list[Tensor] = []
    alone.model.trunk.register_forward_hook(lambda module, inputs, output: seen.append(output))
    (batch,) = batches(rows, rows, alone.noise)
    losses = alone.model.train().objective(alone.training.select(batch), alone.noise).losses
    gradients = [torch.autograd.grad(loss, seen[0], retain_graph=True)[0].flatten() for loss in losses]
    expected = torch.stack([gradient.norm() for gradient in gradients]).double()
    torch.testing.assert_close(found.norms[0], expected, rtol=1e-3, atol=0.0)
    cosine = torch.cosine_similarity(gradients[0], gradients[3], dim=0)
    assert found.cosines[0, 0, 3] == pytest.approx(float(cosine), rel=1e-3)


@pytest.mark.parametrize("name", ["sum", "lossbalancer", "pcgrad", "graddrop"])
def test_seeds_together_have_records_of_their_own(table: Table, name: str) -> None:
    def recorded(seed: int) -> ConflictRecorder:
        return ConflictRecorder(build_method(name, seed), [3, 6])

    settings = {"epochs": 2, "batch_size": 60}
    together = fit_seeds(table, recorded, seeds=[4, 5], **settings)
    for seed, run in zip([4, 5], together, strict=True):
        (found,) = conflicts_of(run.model).values()
        (alone,) = conflicts_of(fit(table, recorded(seed), seed=seed, **settings).model).values()
        torch.testing.assert_close(found.norms, alone.norms, rtol=1e-3, atol=0.0)
        torch.testing.assert_close(found.cosines, alone.cosines, rtol=0.0, atol=1e-3)


def test_models_with_two_blocks_have_two_records(table: Table) -> None:
    run = fit(table, ConflictRecorder(gs.Sum(), [6]), model="dreg", epochs=1, batch_size=100)
    found = conflicts_of(run.model)
    assert len(found) == 2
    assert all(own.norms.isfinite().all() for own in found.values())


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="`method` must be an aggregator"):
        ConflictRecorder("sum", [1])  # type: ignore[arg-type]
    for ends in ([], [2, 1], [0], [3, 3]):
        with pytest.raises(ValueError, match="`ends` must be ascending"):
            ConflictRecorder(gs.Sum(), ends)
    with pytest.raises(RuntimeError, match="must be asked for after a call"):
        ConflictRecorder(gs.Sum(), [1]).conflicts()
    with pytest.raises(TypeError, match="`gramian` is not enough for GradDrop"):
        ConflictRecorder(gs.GradDrop(), [1]).solve(torch.eye(2))
