"""What the tests of the VAE share: a small mixed-type table, and one thread, with which sums are reproducible."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch

from gradsurgery.integrations.vae import Schema, Table


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def frame() -> pd.DataFrame:
    """240 rows of every kind, driven by one hidden factor, a tenth of the cells missing."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=240)
    frame = pd.DataFrame(
        {
            "height": 170 + 8 * factor + rng.normal(size=240),
            "income": np.exp(1 + 0.8 * factor + 0.2 * rng.normal(size=240)),
            "visits": rng.poisson(np.exp(0.5 * factor + 1)).astype(float),
            "smokes": pd.array(factor > 0.3, dtype="boolean"),
            "region": np.array(["north", "south", "west"], dtype=object)[
                (factor > -0.5).astype(int) + (factor > 0.8)
            ],
            "grade": pd.Categorical.from_codes(
                np.clip(np.round(factor + 2), 0, 4).astype(int), categories=list("abcde"), ordered=True
            ),
        }
    )
    hidden = rng.random(frame.shape) < 0.1
    return frame.mask(pd.DataFrame(hidden, columns=frame.columns))


@pytest.fixture(scope="session")
def table(frame: pd.DataFrame) -> Table:
    return Table.from_frame(frame, Schema.infer(frame, kinds={"visits": "count"}))
