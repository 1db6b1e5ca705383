"""The drawings of the report are to scale, and leave out what is unknown."""

import math
import re

import numpy as np
import pytest
import torch

from gradsurgery.integrations.vae import Column
from gradsurgery.integrations.vae.report.bins import bin_edges, grows
from gradsurgery.integrations.vae.report.charts import Series, bars, heat_map, histogram, over_training, shares


def test_bins() -> None:
    amounts = Column("pay", "positive")
    assert not grows(bin_edges(amounts, np.array([10.0, 20.0, 30.0])))
    edges = bin_edges(amounts, np.array([0.0] * 10 + [1.0, 10.0, 100.0, 1000.0]))
    assert grows(edges)
    assert edges[0] >= 1.0
    for data in ([], [0.0], [-3.0, -3.0], [1e300, 1e300]):
        found = bin_edges(Column("x", "real"), np.array(data))
        assert (np.diff(found) > 0).all()
        assert np.isfinite(found).all()
    counts = bin_edges(Column("n", "count"), np.arange(100.0))
    assert len(set(np.diff(counts).tolist())) == 1
    assert (counts % 1 == 0.5).all()


def test_histograms_show_shares() -> None:
    edges = np.array([0.0, 1.0, 2.0])
    drawn = histogram(edges, {"data": np.array([0.5, 0.5, 0.5, 1.5]), "plain": np.array([1.5, 9.0])}, "x")
    data, plain = re.findall(r'class="shape \w+" d="M([^"]*)"', drawn)
    heights = [[110 - float(point.split()[1]) for point in path.split("L")] for path in (data, plain)]
    assert heights[0] == pytest.approx([0, 78, 78, 26, 26, 0])  # 3/4 and 1/4; a share of 1 is 104 high
    assert heights[1] == pytest.approx([0, 0, 0, 104, 104, 0])  # what lies beyond joins the last bin


def test_shares_are_to_scale() -> None:
    drawn = shares(["a", "b"], {"data": [0.5, 0.25], "surgery": [1.0, 0.0]}, "x")
    first, second = (float(width) for width in re.findall(r'class="shape data"[^>]* width="([\d.]+)"', drawn))
    assert first == pytest.approx(2 * second, abs=0.1)
    left, right = (float(x) for x in re.findall(r'class="mark surgery" x="([\d.]+)"', drawn))
    assert left - right == pytest.approx(2 * first, abs=0.2)


def test_bars_are_to_scale() -> None:
    drawn = bars({"plain": 0.2, "surgery": math.nan}, 0.4, 0.4, "x")
    assert re.findall(r'class="bar (\w+)"[^>]* width="([\d.]+)"', drawn) == [("plain", "50")]
    assert 'class="guess" x="99.6"' in drawn


def test_heat_maps_have_signs_and_shades() -> None:
    cosines = torch.tensor([[1.0, -0.25, 0.5], [-0.25, 1.0, math.nan], [0.5, math.nan, 1.0]])
    drawn = heat_map(cosines, ["a", "b", "c"], "x", limit=0.5)
    assert re.findall(r'class="(\w+)" fill-opacity="([\d.]+)"', drawn) == [("opposed", "0.5"), ("agreeing", "1")]
    assert drawn.count(">−.25<") == drawn.count(">.50<") == 2
    assert "nan" not in drawn


def test_lines_leave_out_what_is_unknown() -> None:
    drawn = over_training([Series("plain", [(1.0, 10.0), (2.0, math.nan), (3.0, 1000.0)])], 4, "x", logarithmic=True)
    (path,) = re.findall(r'class="line plain" d="M([^"]*)"', drawn)
    assert len(path.split("L")) == 2
    assert path.split("L")[0].endswith(" 190")  # the lowest decade
    assert path.split("L")[1].endswith(" 10")
    assert over_training([Series("plain", [])], 1, "x", logarithmic=False)
