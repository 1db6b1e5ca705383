"""One thread, the same hypothesis examples in every run, and ranks that stay."""

from collections.abc import Callable, Iterator

import pytest
import torch
from crew import Crew
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("gradsurgery", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("gradsurgery")


@pytest.fixture(scope="session")
def crew() -> Iterator[Callable[[int], Crew]]:
    """Ranks of one group, by their number."""
    crews: dict[int, Crew] = {}
    yield lambda size: crews.setdefault(size, Crew(size))
    for each in crews.values():
        each.stop()
