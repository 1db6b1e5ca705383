"""The first example: its diagnosis is right, and what it recommends helps the loss that the sum overlooks."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parent.parent / "examples" / "two_losses.py"


def test_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    picture, report = tmp_path / "two-losses.png", tmp_path / "report.html"
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--out", str(picture), "--report", str(report)])
    example = runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "proline" in report.read_text(encoding="utf-8")

    assert example["diagnosis"].trouble == "magnitude"
    found = re.findall(r"(\w+) +proline off by (\d+) mg/l +cultivar wrong ([0-9.]+)%", capsys.readouterr().out)
    assert [name for name, _, _ in found] == ["sum", example["diagnosis"].recommendation.method]
    (_, level, wrong), (_, balanced_level, balanced_wrong) = found
    assert float(balanced_wrong) < 0.7 * float(wrong)
    assert float(balanced_level) < 1.05 * float(level)

    torch.manual_seed(0)
    losses = example["losses"](example["Wine"](), torch.arange(178))  # as its docstring says
    assert 6e5 < losses["proline"].item() < 7e5
    assert 0.9 < losses["cultivar"].item() < 1.3
