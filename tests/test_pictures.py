"""Pictures show the numbers they are given, whole and legible, whatever the losses are called."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import Tensor

from gradsurgery.diagnostics.pictures import (
    draw_front,
    draw_layers,
    draw_pairs,
    draw_time,
    draw_trade_off,
    draw_weights,
    save_figure,
)
from gradsurgery.diagnostics.pictures.canvas import without_glyph_warnings
from gradsurgery.diagnostics.pictures.files import written_svg
from gradsurgery.diagnostics.pictures.front import not_beaten
from gradsurgery.diagnostics.pictures.labels import cleaned, labels
from gradsurgery.diagnostics.pictures.over_time import BINS, bins_of

HOSTILE = (
    "$x_1^2$",
    r"$\frac{$",  # as a formula, this could not even be read
    "_hidden",
    "a name that is very long, as exported by some survey tool (1990, weighted)",
    "深度估计",
    "</text><script>alert(1)</script>",
    "two\nlines\x00\ud800\ufffe",
)


def cosines(*shape: int, seed: int = 0, unknown: float = 0.0) -> Tensor:
    """Symmetric, of random gradients; a share of them NaN."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.nn.functional.normalize(
        torch.randn(*shape, 5, generator=generator, dtype=torch.float64), dim=-1
    )
    absent = torch.rand(shape, generator=generator) < unknown
    return (gradients @ gradients.mT).masked_fill(absent.unsqueeze(-1) | absent.unsqueeze(-2), torch.nan)


def names(count: int) -> list[str]:
    return [f"loss {index}" for index in range(count)]


def cells(figure: Figure, image: int = 0) -> np.ndarray:
    return np.ma.filled(figure.axes[0].images[image].get_array(), np.nan)


def times(figure: Figure) -> np.ndarray:
    return np.ma.filled(figure.axes[0].collections[0].get_array(), np.nan)


def texts(figure: Figure) -> list[str]:
    """What a browser would show of it."""
    root = ElementTree.fromstring(written_svg(figure))
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def said(figure: Figure) -> str:
    return " ".join(texts(figure))


def sticks_out(figure: Figure) -> list[str]:
    """What is not within the figure, but for two pixels."""
    with without_glyph_warnings():
        figure.draw_without_rendering()
        parts = [*figure.axes, *figure.legends, *figure.texts]
        boxes = {f"{part}": part.get_tightbbox() for part in parts if part.get_visible()}
    width, height = figure.get_size_inches() * figure.dpi
    return [
        name
        for name, box in boxes.items()
        if box is not None and (box.x0 < -2 or box.y0 < -2 or box.x1 > width + 2 or box.y1 > height + 2)
    ]


def row_names(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


ALL: dict[str, Callable[[list[str]], Figure]] = {
    "pairs": lambda own: draw_pairs(cosines(7), own, shares=cosines(7).abs(), title=own[0]),
    "layers": lambda own: draw_layers(cosines(7, 3), own, own[:3], title=own[0]),
    "time": lambda own: draw_time(torch.arange(5), cosines(5, 7), own, title=own[0]),
    "weights": lambda own: draw_weights(torch.arange(5), torch.rand(5, 7).add(0.5), own, title=own[0]),
    "trade-off": lambda own: draw_trade_off({name: torch.full((2, 7), 3.0) for name in own[-3:]}, own, title=own[0]),
    "front": lambda own: draw_front({name: torch.rand(3, 2) for name in own}, own[:2], title=own[0]),
}


# Pairs


def test_pairs_are_the_cosines_without_the_diagonal() -> None:
    given_ones = torch.tensor([[1.0, -0.25, 0.5], [-0.25, 1.0, torch.nan], [0.5, torch.nan, 1.0]])
    figure = draw_pairs(given_ones, ["a", "b", "c"], title="three losses")
    np.testing.assert_allclose(
        cells(figure), [[np.nan, -0.25, 0.5], [-0.25, np.nan, np.nan], [0.5, np.nan, np.nan]], rtol=1e-6
    )
    assert figure.axes[0].images[0].get_clim() == (-1.0, 1.0)
    shown = texts(figure)
    assert shown.count("−.25") == shown.count(".50") == 2
    assert {"three losses", "a", "b", "c", "−1 opposed", "1 agreeing"} <= set(shown)
    assert row_names(figure) == ["a", "b", "c"]


def test_opposed_is_red_and_agreeing_blue() -> None:
    image = draw_pairs(cosines(2), ["a", "b"]).axes[0].images[0]
    (red, _, blue, _), (other_red, _, other_blue, _) = image.cmap(image.norm([-1.0, 1.0]))
    assert red > 2 * blue
    assert other_blue > 2 * other_red
    assert min(image.cmap(image.norm(0.0))) > 0.95


def test_shares_are_above_the_diagonal() -> None:
    shares = torch.tensor([[0.0, 0.125, 1.0], [0.125, 0.0, torch.nan], [1.0, torch.nan, 0.0]])
    figure = draw_pairs(cosines(3), ["a", "b", "c"], shares=shares)
    lower, upper = cells(figure), cells(figure, 1)
    np.testing.assert_array_equal(np.isnan(lower), np.triu(np.ones((3, 3))) > 0)
    np.testing.assert_allclose(lower[np.tril_indices(3, -1)], cosines(3)[1:, :2][[0, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(upper[np.triu_indices(3, 1)], [0.125, 1.0, np.nan])
    shown = texts(figure)
    assert {"12%", "100%", "always", "never"} <= set(shown)
    assert "Above it: how often the two conflict." in said(figure)


def test_unknown_cells_are_hatched_and_said_to_be() -> None:
    known, partly = draw_pairs(cosines(3), names(3)), draw_pairs(cosines(3, unknown=0.5), names(3))
    assert "Hatched" not in said(known)
    assert "Hatched: no value" in said(partly)
    assert partly.axes[0].patch.get_hatch()


@pytest.mark.parametrize("count", [1, 2, 13, 14, 20, 40])
def test_numbers_are_in_the_cells_while_they_can_be_read(count: int) -> None:
    figure = draw_pairs(cosines(count), names(count))
    figure.draw_without_rendering()
    width = figure.axes[0].get_window_extent().width / figure.dpi / count
    numbers = figure.axes[0].texts
    assert len(numbers) == (count * (count - 1) if width >= 0.36 else 0)
    assert not numbers or max(number.get_window_extent().width for number in numbers) < width * figure.dpi
    assert figure.get_size_inches().max() < 11


# Layers


def test_layers_are_rows_and_pairs_are_columns() -> None:
    values = cosines(3, 3)
    figure = draw_layers(values, ["first", "second", "third"], ["a", "b", "c"])
    np.testing.assert_array_equal(cells(figure), torch.stack([values[:, 0, 1], values[:, 0, 2], values[:, 1, 2]], 1))
    assert row_names(figure) == ["first", "second", "third"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a – b", "a – c", "b – c"]
    assert len(figure.axes[0].texts) == 9


def test_of_many_layers_those_with_conflict_are_shown_in_order() -> None:
    values = cosines(200, 12, unknown=0.05)
    values[:, 0, 1] = torch.linspace(-1.0, 1.0, 200)  # the strongest conflict of all is in the first layer
    values[100:150] = torch.nan  # nothing is known of these
    layers = [f"encoder.layers.{index}.attention.weight" for index in range(200)]
    figure = draw_layers(values, layers, names(12))
    shown = row_names(figure)
    assert len(shown) == 32
    assert layers[0] in shown
    places = [layers.index(name) for name in shown]
    assert places == sorted(places)
    first, second = np.triu_indices(12, 1)
    lowest = np.fmin.reduce(values.numpy()[:, first, second], 1)
    left_out = np.delete(lowest, places)
    assert lowest[places].max() <= np.nanmin(left_out)
    notes = " ".join(texts(figure))
    assert "32 of 200 layers are shown" in notes
    assert "24 of 66 pairs are shown" in notes


# Time


def test_records_are_averaged_into_bins() -> None:
    values = cosines(700, 2)
    values[100:200] = torch.nan
    steps = torch.arange(700) * 10 + 50
    figure = draw_time(steps, values, ["a", "b"])
    (drawn,) = times(figure)
    bins = bins_of(700)
    wanted = [torch.nanmean(part).item() for part in values[:, 0, 1].tensor_split(bins.starts[1:].tolist())]
    np.testing.assert_allclose(drawn, wanted)
    assert len(drawn) == BINS
    assert np.isnan(drawn).any()
    assert figure.axes[0].get_xlim() == (45.0, 7045.0)
    assert "Each cell is the mean of up to 3 of the 700 records." in said(figure)


def test_a_hundred_thousand_steps_are_drawn_as_few_cells() -> None:
    figure = draw_time(torch.arange(100_000), cosines(100, 3).repeat(1000, 1, 1), names(3))
    assert times(figure).shape == (3, BINS)
    assert len(written_svg(figure)) < 60_000


def test_steps_need_not_be_evenly_apart() -> None:
    figure = draw_time(torch.tensor([0, 1, 2, 1000]), cosines(4, 2), ["a", "b"])
    edges = figure.axes[0].collections[0].get_coordinates()[0, :, 0]
    np.testing.assert_allclose(edges[1:-1], [0.5, 1.5, 501.0])


def test_the_most_opposed_pairs_are_shown() -> None:
    values = cosines(4, 10)
    figure = draw_time(torch.arange(4), values, names(10))
    means = values.mean(0).numpy()[np.triu_indices(10, 1)]
    np.testing.assert_allclose(times(figure).mean(1).max(), np.sort(means)[29])
    assert "30 of 45 pairs are shown" in said(figure)


# Weights


def test_weights_are_lines() -> None:
    weights = torch.tensor([[1.0, 0.5], [0.8, torch.nan], [0.6, 2.0]])
    figure = draw_weights(torch.tensor([0, 10, 20]), weights, ["a", "b"])
    drawn = {tuple(line.get_ydata()) for line in figure.axes[0].lines[:2]}
    np.testing.assert_allclose(sorted(drawn)[-1], [1.0, 0.8, 0.6])
    assert list(figure.axes[0].lines[0].get_xdata()) == [0, 10, 20]
    assert np.isnan(figure.axes[0].lines[0].get_ydata()[1])  # b ends highest and comes first, with its gap
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "a", "1, as in the plain sum"]
    assert figure.axes[0].get_yscale() == "linear"
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("step", "weight")


@pytest.mark.parametrize(("largest", "scale"), [(30.0, "linear"), (31.0, "log")])
def test_weights_that_range_widely_are_logarithmic(largest: float, scale: str) -> None:
    figure = draw_weights(torch.arange(2), torch.tensor([[1.0, 1.0], [1.0, largest]]), ["a", "b"])
    assert figure.axes[0].get_yscale() == scale


def test_a_short_logarithmic_axis_has_ticks_between_powers_of_ten() -> None:
    shown = texts(draw_weights(torch.arange(2), torch.tensor([[0.3, 1.0], [1.0, 12.0]]), ["a", "b"]))
    assert {"0.5", "1", "2", "5", "10"} <= {*shown}
    shown = texts(draw_weights(torch.arange(2), torch.tensor([[1e-4, 1.0], [1.0, 1e4]]), ["a", "b"]))
    assert "10,000" in shown
    assert "2" not in shown


def test_weights_that_are_not_all_positive_are_never_logarithmic() -> None:
    figure = draw_weights(torch.arange(2), torch.tensor([[0.0, 1.0], [1.0, 500.0]]), ["a", "b"])
    assert figure.axes[0].get_yscale() == "linear"


def test_of_many_losses_the_most_different_are_lines() -> None:
    weights = torch.full((10, 40), 1.0)
    weights[:, [3, 5, 8, 13, 21, 34, 39]] = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    figure = draw_weights(torch.arange(10), weights, names(40))
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [f"loss {index}" for index in (39, 34, 21, 13, 8, 5, 3)] + ["the other 33"]
    assert "7 of 40 losses are lines" in said(figure)


def test_bands_show_what_was_averaged() -> None:
    weights = torch.rand(900, 2, generator=torch.Generator().manual_seed(0))
    figure = draw_weights(torch.arange(900), weights, ["a", "b"])
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    line = figure.axes[0].lines[0].get_ydata()
    assert len(line) == BINS
    assert band.min() < line.min()
    assert band.max() > line.max()


# Trade-off


def test_bars_are_means_and_dots_are_seeds() -> None:
    changes = {"upgrad": torch.tensor([[10.0, -2.0], [12.0, -4.0]]), "mgda": torch.tensor([[300.0, torch.nan]])}
    figure = draw_trade_off(changes, ["depth", "normals"])
    first, second = figure.axes
    assert [bar.get_width() for bar in first.patches] == [11.0, -3.0]
    assert sorted(value for line in first.lines[:2] for value in line.get_xdata()) == [-4.0, -2.0, 10.0, 12.0]
    assert [bar.get_width() for bar in second.patches] == [100.0, 0.0]  # at the edge
    shown = texts(figure)
    assert {"upgrad", "mgda", "depth", "normals", "+11.0", "−3.0", "+300", "–"} <= set(shown)
    better, worse = (bar.get_facecolor()[:3] for bar in first.patches)
    assert better[2] > better[0]  # blue
    assert worse[0] > worse[2]  # orange
    assert "What lies beyond 100% is drawn at the edge." in said(figure)
    assert "← worse · better →" in shown


def test_every_column_of_panels_has_its_numbers() -> None:
    figure = draw_trade_off({f"method {index}": torch.ones(1, 1) for index in range(5)}, ["depth"])
    assert sum(text == "0%" for text in texts(figure)) == 4
    assert sum(axes.get_visible() for axes in figure.axes) == 5


# Front


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8))
def test_what_is_not_beaten(points: list[tuple[int, int]]) -> None:
    wanted = [
        not any(x <= a and y <= b and (x, y) != (a, b) for x, y in points)
        for a, b in points
    ]  # fmt: skip
    assert not_beaten(np.array(points, dtype=float)).tolist() == wanted


def test_the_front_joins_means() -> None:
    points = {
        "sum": torch.tensor([[1.0, 4.0], [3.0, 2.0]]),
        "upgrad": torch.tensor([[1.0, 5.0]]),
        "mgda": torch.tensor([[4.0, 1.0], [torch.nan, 0.0]]),
        "worse": torch.tensor([[4.0, 4.0]]),
        "lost": torch.tensor([[torch.nan, 1.0]]),
    }
    figure = draw_front(points, ["left", "right"])
    line = figure.axes[0].lines[-1]
    assert line.get_xydata().tolist() == [[1.0, 5.0], [2.0, 3.0], [4.0, 1.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sum", "upgrad", "mgda", "worse"]
    assert "Without a result: lost." in said(figure)
    assert figure.axes[0].get_xlabel() == "left (lower is better)"


def test_higher_may_be_better() -> None:
    points = {"a": torch.tensor([[1.0, 4.0]]), "b": torch.tensor([[2.0, 5.0]]), "c": torch.tensor([[3.0, 4.5]])}
    figure = draw_front(points, ["error", "accuracy"], higher_is_better=["accuracy"])
    assert figure.axes[0].lines[-1].get_xydata().tolist() == [[1.0, 4.0], [2.0, 5.0]]
    assert figure.axes[0].get_ylabel() == "accuracy (higher is better)"


# Names and the look


@pytest.mark.parametrize("picture", ALL)
def test_hostile_names_are_only_text(picture: str) -> None:
    figure = ALL[picture](list(HOSTILE))
    shown = " ".join(texts(figure))  # parsed as XML: nothing in a name is markup
    for name in labels(HOSTILE[:2], 14):
        assert name in shown
    assert picture in ("layers", "front") or "two lines" in shown
    assert not sticks_out(figure)


@given(st.lists(st.text(max_size=80), min_size=1, max_size=6, unique_by=cleaned))
def test_names_stay_distinct_and_short(given_names: list[str]) -> None:
    short = labels(given_names, 20)
    assert len({*short}) == len(short)
    assert all(len(name) <= 24 and name.isprintable() for name in short)


def test_what_sticks_out_is_noticed() -> None:
    figure = Figure(figsize=(2, 2))
    figure.add_axes((0, 0, 1, 1)).set_yticks([0.5], ["a label outside"])
    assert sticks_out(figure) == ["Axes(0,0;1x1)"]


@settings(max_examples=8)
@given(
    count=st.integers(1, 12),
    steps=st.integers(1, 12),
    unknown=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    length=st.integers(1, 60),
)
def test_heat_maps_of_any_size(count: int, steps: int, unknown: float, dtype: torch.dtype, length: int) -> None:
    """The cells are the values, NaN for NaN; rows do not overlap, and nothing is cut off."""
    values = cosines(steps, count, unknown=unknown, seed=length).to(dtype)
    own = [f"{index}{'m' * length}" for index in range(count)]
    pictures = {
        "time": draw_time(torch.arange(steps), values, own, title="m" * length),
        "layers": draw_layers(values, [f"{index}{'m' * length}" for index in range(steps)], own),
        "pairs": draw_pairs(values[0], own),
    }
    for figure in pictures.values():
        assert not sticks_out(figure)
        boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels() if label.get_text()]
        assert all(upper.y0 > lower.y1 - 3 or upper.y1 < lower.y0 + 3 for upper, lower in pairwise(boxes))
    expected = values.double().numpy()
    if count > 1:
        first, second = np.triu_indices(count, 1)
        pairs = expected[:, first, second]
        if pairs.shape[1] <= 24:
            np.testing.assert_allclose(cells(pictures["layers"]), pairs, atol=1e-6)
            np.testing.assert_allclose(times(pictures["time"]), pairs.T, atol=1e-6)
        drawn = cells(pictures["pairs"])
        np.testing.assert_allclose(drawn[first, second], expected[0][first, second], atol=1e-6)


def test_the_look_is_the_same_under_any_style() -> None:
    def drawn() -> list[bytes]:
        torch.manual_seed(0)
        return [written_svg(draw(list("abcdefg"))) for draw in ALL.values()]

    expected = drawn()
    style = {
        "axes.facecolor": "black",
        "text.color": "white",
        "axes.grid": True,
        "font.size": 30.0,
        "lines.linewidth": 9,
    }
    with matplotlib.rc_context(style):
        before = dict(matplotlib.rcParams)
        assert drawn() == expected
        assert dict(matplotlib.rcParams) == before


# Files


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_a_file_is_the_same_every_time(tmp_path: Path, suffix: str) -> None:
    for name in ("first", "second"):
        save_figure(draw_pairs(cosines(3), names(3)), tmp_path / "new" / f"{name}.{suffix}")
    first, second = ((tmp_path / "new" / f"{name}.{suffix}").read_bytes() for name in ("first", "second"))
    assert first == second
    assert len(first) > 1000
    assert len([*(tmp_path / "new").iterdir()]) == 2


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "picture.unheard"
    path.write_text("old")
    with pytest.raises(ValueError, match="unheard"):
        save_figure(draw_pairs(cosines(2), names(2)), path)
    assert [own.name for own in tmp_path.iterdir()] == ["picture.unheard"]
    assert path.read_text() == "old"


def test_letters_stay_letters_and_nothing_is_fetched() -> None:
    svg = written_svg(draw_time(torch.arange(3), cosines(3, 2), ["深度", "normals"])).decode()
    assert "深度 – normals" in svg
    outside = re.findall(r"(?:href|src)=\"(?!#|data:)[^\"]*\"|url\((?!#)[^)]*\)|<!DOCTYPE", svg)
    assert not outside


# Errors


def _error(call: Callable[[], object], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_pairs(cosines(3), names(2)), "`cosines` must be of shape (K, K), K = 2, got (3, 3)."),
        (lambda: draw_pairs(cosines(2)[0], names(2)), "got (2,)."),
        (lambda: draw_pairs(2 * cosines(2), names(2)), "`cosines` must be from -1 to 1, got 2. Of a Gramian"),
        (lambda: draw_pairs(cosines(2), []), "draw_pairs: `names` must be at least 1, got 0."),
        (lambda: draw_pairs(cosines(2), names(2), shares=torch.eye(3)), "`shares` must be of shape (K, K), K = 2"),
        (lambda: draw_pairs(cosines(2), names(2), shares=87 * torch.eye(2)), "A share of 30% is 0.3."),
        (lambda: draw_layers(cosines(3, 2), ["a"], names(2)), "(B, K, K), B = 1, K = 2, got (3, 2, 2)."),
        (lambda: draw_time(torch.arange(2), cosines(3, 2), names(2)), "(T, K, K), T = 2, K = 2, got (3, 2, 2)."),
        (lambda: draw_time(torch.tensor([1, 0]), cosines(2, 2), names(2)), "got a step below the one before it."),
        (lambda: draw_time(torch.tensor([torch.nan]), cosines(1, 2), names(2)), "must be finite and never fall"),
        (
            lambda: draw_time(torch.arange(0), cosines(1, 2), names(2)),
            "`steps` must be of shape (T), got (0,)",
        ),
        (lambda: draw_weights(torch.arange(2), torch.ones(2, 3), names(2)), "(T, K), T = 2, K = 2, got (2, 3)."),
        (lambda: draw_trade_off({}, ["a"]), "draw_trade_off: `changes` must be at least 1, got 0."),
        (lambda: draw_trade_off({"mgda": torch.ones(2)}, ["a"]), "`changes['mgda']` must be of shape (S, M), M = 1"),
        (
            lambda: draw_front({"mgda": torch.ones(1, 3)}, ["a", "b"]),
            "of shape (S, M), M = 2, got (1, 3)",
        ),
        (lambda: draw_front({"mgda": torch.ones(1, 3)}, list("abc")), "`metrics` must be two, got 3."),
    ],
)
def test_wrong_values(call: Callable[[], object], message: str) -> None:
    assert message in _error(call, ValueError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_pairs([[1.0]], ["a"]), "`cosines` must be a tensor of real numbers, got list."),
        (lambda: draw_pairs(torch.ones(1, 1, dtype=torch.complex64), ["a"]), "got torch.complex64."),
        (lambda: draw_pairs(cosines(2), "ab"), "`names` must be a sequence of strings, got 'ab'."),
        (lambda: draw_pairs(cosines(2), [1, 2]), "`names` must be a sequence of strings, got [1, 2]."),
        (lambda: draw_front({"mgda": [[1.0, 2.0]]}, ["a", "b"]), "`points['mgda']` must be a tensor"),
    ],
)
def test_wrong_kinds(call: Callable[[], object], message: str) -> None:
    assert message in _error(call, TypeError)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'draw_pairs: matplotlib .* pip install "gradsurgery\[plots\]"'):
        draw_pairs(cosines(2), names(2))


def test_importing_loads_no_matplotlib() -> None:
    code = (
        "import sys, gradsurgery.diagnostics.pictures, gradsurgery.diagnostics.page\n"
        "print(sorted({'matplotlib', 'pandas'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["conflicts", "conflicts.xyz"])
def test_a_figure_goes_to_a_known_format_or_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="save_figure: `path` must end in a format that matplotlib writes"):
        save_figure(Figure(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_tensors_without_values_are_refused_and_sparse_ones_drawn() -> None:
    with pytest.raises(
        TypeError, match="draw_pairs: `cosines` must be a tensor of real numbers, got one on the meta"
    ):
        draw_pairs(torch.eye(2, device="meta"), ["a", "b"])
    dense, sparse = torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), torch.tensor([[1.0, -0.5], [-0.5, 1.0]]).to_sparse()
    assert written_svg(draw_pairs(sparse, ["a", "b"])) == written_svg(draw_pairs(dense, ["a", "b"]))


def test_a_diverged_training_leaves_room_for_the_others() -> None:
    figure = draw_trade_off({"sum": torch.tensor([[-1e200, 3.0]], dtype=torch.float64)}, ["a", "b"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["−1e+200", "+3.0"]


def test_how_files_are_written_does_not_follow_the_readers_settings(tmp_path: Path) -> None:
    def written(name: str) -> tuple[bytes, bytes]:
        figure = draw_pairs(torch.eye(2), ["a", "b"])
        save_figure(figure, tmp_path / name)
        return (tmp_path / name).read_bytes(), written_svg(figure)

    settings = {"savefig.transparent": True, "savefig.facecolor": "black", "savefig.bbox": "tight"}
    usual = written("usual.png")
    with matplotlib.rc_context({**settings, "figure.autolayout": True}):
        assert written("set.png") == usual
