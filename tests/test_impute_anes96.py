"""The example that restores hidden cells: everyone is measured on the same cells, by the error it states."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support import load_example

pytest.importorskip("statsmodels")


example = load_example("impute_anes96")

TRUTH = pd.DataFrame(
    {"size": [0.0, 1.0, 2.0, 5.0] * 6, "code": [7.0, 3.0, 9.0, 3.0] * 6, "visits": [float(n) for n in range(24)]}
)
SCHEMA = example.Schema.infer(TRUTH).replace("size", kind="real")
HIDDEN = np.zeros(TRUTH.shape, dtype=bool)
HIDDEN[[0, 5], [0, 0]] = HIDDEN[[2, 3], [1, 1]] = HIDDEN[10, 2] = True


def test_errors_are_those_of_hidden_cells() -> None:
    guess = TRUTH.copy()
    guess.iloc[0, 0] += 3
    guess.iloc[1, 0] += 100
    guess.iloc[2, 1] = 3.0
    found = example.errors(TRUTH, guess, HIDDEN, SCHEMA)
    assert found == {"size": pytest.approx(np.sqrt(9 / 2) / 5), "code": 0.5, "visits": 0.0}


def test_baselines_fill_holes_alone_with_what_may_occur() -> None:
    frame = TRUTH.mask(HIDDEN)
    for found in (
        example.mean_or_mode(frame, SCHEMA),
        example.iterative(frame, SCHEMA, 0),
        example.iterative_one_hot(frame, SCHEMA, 0),
    ):
        np.testing.assert_allclose(found.where(frame.notna()), frame, rtol=1e-12, atol=1e-12)
        assert set(found["code"]) <= {3.0, 7.0, 9.0}
        assert found["size"].between(0, 5).all()
    assert example.mean_or_mode(frame, SCHEMA)["code"][2] == 3.0
    assert example.iterative(frame, SCHEMA, 0)["visits"][10] % 1 == 0


def test_draws_are_pooled_by_median_and_majority() -> None:
    draws = [TRUTH.assign(size=TRUTH["size"] + shift, code=code) for shift, code in ((0, 3.0), (1, 9.0), (500, 9.0))]
    found = example.pooled(draws, SCHEMA)
    assert found["size"].equals(TRUTH["size"] + 1)
    assert set(found["code"]) == {9.0}


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "anes96.png"
    table = example.main(["--seeds", "1", "--epochs", "1", "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(table.index[-2:]) == ["logpopul", "mean"]
    assert table.notna().all().all()
    assert "mean of 1 seeds; hidden cells: 20%" in capsys.readouterr().out
