"""What was recorded, in order: losses that come and go, groups, overflows, averages, tables, pictures."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gradsurgery as gs
from gradsurgery.diagnostics import similarity
from gradsurgery.diagnostics.history.history import History
from gradsurgery.diagnostics.history.stretch import joined, stretch_of
from gradsurgery.diagnostics.monitor.averages import Averages
from gradsurgery.diagnostics.monitor.recording import Recording

NAN = math.nan
Record = tuple[int, gs.Surgery]


def gramian_of(rows: list[list[float]]) -> Tensor:
    matrix = torch.tensor(rows, dtype=torch.float64)
    return matrix @ matrix.T


def record(
    step: int, gramian: Tensor | None, names: str = "ab", groups: tuple[str, ...] = (), **more: Tensor
) -> Record:
    losses = more.get("losses", torch.arange(len(names), dtype=torch.float64))
    return step, gs.Surgery(tuple(names), losses, more.get("weights"), gramian, groups)


def history_of(*records: Record) -> History:
    return stretch_of(records).history()


def same(one: Tensor | None, other: Tensor | None, tolerance: float = 0.0) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


@st.composite
def surgeries(draw: st.DrawFn) -> list[Record]:
    """Steps with some of four losses, in groups or not, with weights of any kind or none."""
    records = []
    for step in range(draw(st.integers(1, 12))):
        names = draw(st.permutations("abcd"))[: draw(st.integers(1, 4))]
        groups = tuple(draw(st.permutations(["x", "y", "z"]))[: draw(st.integers(0, 3))])
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        count = len(names)
        rows = torch.randn(max(len(groups), 1), count, 3, generator=generator, dtype=torch.float64)
        rows[:, 0] *= draw(st.sampled_from([0.0, 1.0, 1e-3, math.inf]))
        gramian = rows @ rows.mT
        kind = draw(st.sampled_from(["none", "flat", "own"]))
        weights = None if kind == "none" else torch.randn(count, generator=generator, dtype=torch.float64)
        if weights is not None and kind == "own" and groups:
            weights = weights * torch.arange(1.0, 1 + len(groups))[:, None]
        losses = torch.randn(count, generator=generator, dtype=torch.float64)
        with_gramian = draw(st.booleans())
        found = gramian if groups else gramian[0]
        records.append((7 * step, gs.Surgery(tuple(names), losses, weights, found if with_gramian else None, groups)))
    return records


def cell(surgery: gs.Surgery, group: str, first: str, second: str) -> float:
    """One inner product of a surgery, NaN where it has none."""
    if surgery.gramian is None or group not in (surgery.groups or ("all",)):
        return NAN
    if first not in surgery.names or second not in surgery.names:
        return NAN
    gramian = surgery.gramian[surgery.groups.index(group)] if surgery.groups else surgery.gramian
    return float(gramian[surgery.names.index(first), surgery.names.index(second)])


@given(surgeries())
def test_every_number_is_where_it_belongs(records: list[Record]) -> None:
    history = history_of(*records)
    assert history.steps.tolist() == [step for step, _ in records]
    assert set(history.names) == {name for _, surgery in records for name in surgery.names}
    for time, (_, surgery) in enumerate(records):
        expected = [
            float(surgery.losses[surgery.names.index(name)]) if name in surgery.names else NAN
            for name in history.names
        ]
        assert same(history.losses[time], torch.tensor(expected, dtype=torch.float64))
        for place, group in enumerate(history.groups):
            square = [[cell(surgery, group, one, other) for other in history.names] for one in history.names]
            assert same(history.gramians[time, place], torch.tensor(square, dtype=torch.float64))
        finite = surgery.gramian is None or bool(surgery.gramian.isfinite().all())
        assert history.finite is not None
        assert bool(history.finite[time]) == finite


@given(surgeries())
def test_names_and_groups_are_in_order_of_first_appearance_within_a_kind(records: list[Record]) -> None:
    alone = [history_of(each) for each in records]
    assert history_of(*records).names[: len(alone[0].names)] == alone[0].names


@given(surgeries(), st.integers(1, 11))
def test_stretches_one_after_the_other(records: list[Record], first: int) -> None:
    whole = joined([stretch_of([each]) for each in records])
    parts = [records[:first], records[first:]]
    both = joined([stretch_of(part) for part in parts if part])
    for one, other in ((whole.steps, both.steps), (whole.losses.nansum(1), both.losses.nansum(1))):
        assert same(one, other, 1e-12)
    order = [both.names.index(name) for name in whole.names]
    assert same(whole.losses, both.losses[:, order])
    labels = torch.tensor([both.groups.index(group) for group in whole.groups], dtype=torch.long)
    assert same(whole.gramians, both.gramians[:, labels][:, :, order][:, :, :, order])


def test_weights_flat_and_by_group() -> None:
    flat = history_of(record(0, gramian_of([[1.0], [2.0]]), weights=torch.tensor([1.0, 2.0])))
    assert same(flat.weights, torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    two = torch.stack([gramian_of([[1.0], [2.0]])] * 2)
    own = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    grouped = record(0, two, groups=("x", "y"), weights=own)
    nothing_shared = record(1, None, weights=torch.ones(2))  # one row, which holds for all groups
    swapped = record(2, two, groups=("y", "x"), weights=own)
    history = history_of(grouped, nothing_shared, swapped)
    assert history.groups == ("x", "y")
    expected = torch.stack([own, torch.ones(2, 2), own.flip(0)]).double()
    assert same(history.weights, expected)
    assert history_of(record(0, None)).weights is None


def test_where_nothing_is_shared_there_is_one_group_without_numbers() -> None:
    history = history_of(record(0, None))
    assert history.groups == ("all",)
    assert history.gramians.shape == (1, 1, 2, 2)
    assert bool(history.cosines.isnan().all())
    assert same(history.losses, torch.tensor([[0.0, 1.0]], dtype=torch.float64))


def test_what_cannot_be_compared_is_left_out_of_means() -> None:
    against, along = gramian_of([[2.0, 0.0], [-1.0, 0.0]]), gramian_of([[1.0, 0.0], [0.0, 1.0]])
    overflown = against.clone()
    overflown[0, 0] = math.inf  # the first one's cosines would be 0
    history = history_of(
        record(0, against),
        record(1, gramian_of([[2.0, 0.0], [0.0, 0.0]])),  # a gradient is zero
        record(2, gramian_of([[2.0]]), names="a"),  # a loss is absent
        record(3, overflown),
        record(4, torch.full((2, 2), NAN)),
        record(5, along),
    )
    assert same(history.cosines[:, 0, 0, 1], torch.tensor([-1.0, NAN, NAN, NAN, NAN, 0.0], dtype=torch.float64))
    assert float(history.mean_cosines()[0, 0, 1]) == -0.5
    assert float(history.conflict_frequencies()[0, 0, 1]) == 0.5
    assert float(history.mean_magnitude_ratios()[0, 0, 1]) == pytest.approx(2**0.5)
    assert float(history.mean_magnitude_similarities()[0, 0, 1]) == pytest.approx((0.8 + 1.0) / 2)
    assert history.overflows == 2
    assert same(history.conflicting_shares[:, 0], torch.tensor([1.0, NAN, NAN, NAN, NAN, 0.0], dtype=torch.float64))
    assert float(history.norms[3, 0, 0]) == math.inf


@given(surgeries())
def test_pairs_are_those_of_the_gramians(records: list[Record]) -> None:
    for one in records:
        _, surgery = one
        if surgery.gramian is None or not bool(surgery.gramian.isfinite().all()):
            continue
        expected = similarity.cosines(surgery.gramian)
        assert same(history_of(one).cosines[0], expected if surgery.groups else expected[None])
        share = similarity.conflicting_share(surgery.gramian)
        assert same(history_of(one).conflicting_shares[0], share if surgery.groups else share[None], 1e-12)


def test_all_groups_together() -> None:
    parts = torch.stack([gramian_of([[1.0], [2.0]]), gramian_of([[1.0], [-3.0]])])
    absent = torch.full((2, 2, 2), NAN, dtype=torch.float64)
    absent[0] = parts[0]
    history = History(("a", "b"), ("x", "y"), torch.arange(2), torch.zeros(2, 2), torch.stack([parts, absent]))
    assert same(history.joint_gramians[0], gramian_of([[1.0, 1.0], [2.0, -3.0]]))
    assert same(history.joint_gramians[1], parts[0])


# --- what is kept --------------------------------------------------------------------------------------------------


def test_the_oldest_steps_go_first_and_averages_go_on() -> None:
    averages = Averages(0.5)
    recording = Recording(5, averages.update)
    for step in range(600):
        recording.add(step, record(step, gramian_of([[1.0], [1.0 if step % 2 else -1.0]]))[1])
    assert recording.history().steps.tolist() == [595, 596, 597, 598, 599]
    assert averages.steps == 600
    assert float(averages.cosines[0, 0, 1]) == pytest.approx(1 / 3)
    assert float(averages.conflicts[0, 0, 1]) == pytest.approx(1 / 3)


def test_many_numbers_a_step_are_kept_within_bounds() -> None:
    recording = Recording(None, lambda part: None)
    big = gs.Surgery(tuple(map(str, range(512))), torch.zeros(512), None, torch.eye(512))  # 2 MB a step
    for step in range(80):
        recording.add(step, big)
        assert len(recording._pending) <= 4  # those are put in order at once, in several times their memory
    history = recording.history()
    assert 28 <= len(history) <= 32
    assert int(history.steps[-1]) == 79


def test_asked_often_and_asked_once() -> None:
    records = [record(step, gramian_of([[1.0, 0.0], [0.1 * step - 1.0, 1.0]])) for step in range(300)]
    often, once = Recording(None, lambda part: None), Recording(None, lambda part: None)
    for step, surgery in records:
        once.add(step, surgery)
        often.add(step, surgery)
        assert len(often.history()) == step + 1
    assert same(often.history().gramians, once.history().gramians)
    assert same(often.history().steps, once.history().steps)


def test_nothing_recorded() -> None:
    history = Recording(None, lambda part: None).history()
    assert len(history) == 0
    assert history.groups == ("all",)
    assert history.cosines.shape == (0, 1, 0, 0)
    assert history.rows() == []
    assert history.overflows == 0
    assert history.weights is None


# --- averages ------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(surgeries(), st.sampled_from([0.0, 0.5, 0.9]), st.integers(1, 5))
def test_averages_are_debiased_and_over_the_steps_in_which_a_pair_was_there(
    records: list[Record], decay: float, size: int
) -> None:
    averages = Averages(decay)
    for first in range(0, len(records), size):
        averages.update(stretch_of(records[first : first + size]))
    history = history_of(*records)
    assert averages.steps == len(records)
    order = [averages.names.index(name) for name in history.names]
    labels = torch.tensor([averages.groups.index(group) for group in history.groups], dtype=torch.long)
    pairs = averages.cosines[labels][:, order][:, :, order]
    conflicts = averages.conflicts[labels][:, order][:, :, order]
    for place in range(len(history.groups)):
        for i in range(len(history.names)):
            for j in range(len(history.names)):
                assert float(pairs[place, i, j]) == pytest.approx(
                    expected_mean(history.cosines[:, place, i, j], decay), abs=1e-9, nan_ok=True
                )
                assert float(conflicts[place, i, j]) == pytest.approx(
                    expected_mean(
                        (history.gramians[:, place, i, j] < 0).double() + 0 * history.cosines[:, place, i, j], decay
                    ),
                    abs=1e-9,
                    nan_ok=True,
                )
    for k, column in enumerate(order):
        assert float(averages.losses[column]) == pytest.approx(
            expected_mean(history.losses[:, k], decay), nan_ok=True
        )


def expected_mean(values: Tensor, decay: float) -> float:
    there = [value for value in values.tolist() if math.isfinite(value)]
    factors = [decay ** (len(there) - 1 - age) for age in range(len(there))]
    return sum(f * v for f, v in zip(factors, there, strict=True)) / sum(factors) if there else NAN


def test_a_pair_that_is_seldom_there_keeps_its_average() -> None:
    averages = Averages(0.5)
    averages.update(stretch_of([record(0, gramian_of([[1.0], [-1.0]]))]))
    averages.update(stretch_of([record(step, gramian_of([[1.0]]), names="a") for step in range(1, 2000)]))
    assert float(averages.cosines[0, 0, 1]) == -1.0


def test_weights_and_ratios_are_averaged() -> None:
    averages = Averages(0.5)
    first = record(0, gramian_of([[4.0], [1.0]]), weights=torch.tensor([1.0, 0.0]))
    second = record(1, gramian_of([[1.0], [1.0]]), weights=torch.tensor([0.0, 1.0]))
    averages.update(stretch_of([first, second]))
    assert same(averages.weights, torch.tensor([1 / 3, 2 / 3], dtype=torch.float64), 1e-12)
    ratios = averages.magnitude_ratios[0]
    assert float(ratios[0, 1]) == pytest.approx(4 ** (1 / 3))
    assert float(ratios[0, 1] * ratios[1, 0]) == pytest.approx(1.0)
    assert float(averages.magnitude_similarities[0, 0, 1]) == pytest.approx((8 / 17 + 2) / 3)
    assert same(averages.norms[0], torch.tensor([2.0, 1.0], dtype=torch.float64), 1e-12)
    assert same(averages.conflicting_share, torch.zeros(1, dtype=torch.float64))


@settings(max_examples=25)
@given(surgeries(), st.integers(1, 11))
def test_averages_go_on_from_their_state(records: list[Record], first: int) -> None:
    whole, before, after = Averages(0.9), Averages(0.9), Averages(0.9)
    for number, each in enumerate(records):
        whole.update(stretch_of([each]))
        (before if number < first else after).update(stretch_of([each]))
        if number == first - 1:
            after.load_state_dict(before.state_dict())
    found = (after if len(records) > first else before).state_dict()
    for key, value in whole.state_dict()["sums"].items():
        assert same(found["sums"][key], value)


# --- tables, pictures, page ----------------------------------------------------------------------------------------


def three_steps() -> History:
    return history_of(
        record(0, gramian_of([[2.0, 0.0], [-1.0, 0.0]]), weights=torch.tensor([0.5, 1.5])),
        record(10, gramian_of([[2.0]]), names="a", weights=torch.tensor([1.0])),
        record(20, gramian_of([[1.0, 0.0], [0.0, 1.0]]), weights=torch.tensor([1.0, 1.0])),
    )


def test_tables() -> None:
    pandas = pytest.importorskip("pandas", reason="tables need pandas")
    pairs = three_steps().to_pandas()
    assert list(pairs["step"]) == [0, 10, 20]
    assert list(pairs.iloc[0])[1:] == ["all", "a", "b", -1.0, 2.0, pytest.approx(0.8), 1.0]
    assert bool(pairs.iloc[1][["cosine", "magnitude_ratio", "conflicting"]].isna().all())
    losses = three_steps().losses_to_pandas()
    assert list(losses.columns) == ["step", "group", "loss", "value", "norm", "weight"]
    assert list(losses.iloc[1]) == [0, "all", "b", 1.0, 1.0, 1.5]
    assert isinstance(losses, pandas.DataFrame)
    assert three_steps().rows()[2]["cosine"] == 0.0
    assert list(Recording(None, lambda part: None).history().to_pandas().columns) == list(pairs.columns)


def test_tables_of_groups() -> None:
    pytest.importorskip("pandas", reason="tables need pandas")
    parts = torch.stack([gramian_of([[1.0], [2.0]]), gramian_of([[1.0], [-3.0]])])
    own = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    history = history_of(record(0, parts, groups=("x", "y"), weights=own))
    assert list(history.to_pandas()["cosine"]) == [1.0, -1.0]
    assert list(history.losses_to_pandas()["weight"]) == [1.0, 2.0, 3.0, 4.0]
    other = history_of(record(0, parts[0], weights=own))  # the surgery's groups are not the Gramian's
    assert list(other.losses_to_pandas()["weight"]) == [2.0, 3.0]


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        three_steps().to_pandas()


@pytest.mark.parametrize("draw", [History.draw_pairs, History.draw_layers, History.draw_time, History.draw_weights])
def test_pictures(draw: Callable[[History], object]) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="pictures need matplotlib")
    assert isinstance(draw(three_steps()), figure.Figure)
    parts = torch.stack([gramian_of([[1.0], [2.0]]), gramian_of([[1.0], [-3.0]])])
    grouped = history_of(record(0, parts, groups=("x", "y"), weights=torch.ones(2, 2)))
    assert isinstance(draw(grouped), figure.Figure)


def test_no_picture_of_weights_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="`weights` must be there to be drawn, got None"):
        history_of(record(0, gramian_of([[1.0], [1.0]]))).draw_weights()


def test_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    path = three_steps().report(tmp_path / "new" / "report.html")
    text = path.read_text()
    assert path == tmp_path / "new" / "report.html"
    assert "The two losses conflict in 50% of the steps in which both were recorded." in text
    for anchor in ("pairs", "time", "weights", "numbers"):
        assert f'<section id="{anchor}">' in text
    assert '<section id="layers">' not in text
    assert "<script" not in text
    parts = torch.stack([gramian_of([[1.0], [2.0]]), gramian_of([[1.0], [-3.0]])])
    grouped = history_of(record(0, parts, groups=("x", "y"))).report(tmp_path / "groups.html").read_text()
    assert '<section id="layers">' in grouped
    three = (
        history_of(record(0, gramian_of([[1.0], [2.0], [-1.0]]), "abc")).report(tmp_path / "three.html").read_text()
    )
    assert "67% of all pairs of losses conflict, on average" in three
    assert '<section id="weights">' not in grouped
    alone = history_of(record(0, None, names="a")).report(tmp_path / "alone.html").read_text()
    assert "No two gradients could be compared" in alone


def test_no_page_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`steps` must be recorded before"):
        Recording(None, lambda part: None).history().report(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_it_is() -> None:
    assert repr(three_steps()) == "History(3 steps of a, b; all)"
