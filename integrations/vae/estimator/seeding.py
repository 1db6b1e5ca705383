"""From scikit-learn's ``random_state`` to seeds and generators that leave the global random state alone."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch

RandomState: TypeAlias = int | np.integer[Any] | np.random.RandomState | None

# Tells the stream of draws from those of the training with the same seed.
DRAWS = 1


def seed_of(random_state: RandomState, owner: str) -> int:
    """One seed.

    Args:
        random_state: An integer is the seed itself; of a ``RandomState`` the next number is taken, so that each
            use differs and a sequence of them repeats itself; ``None`` takes a fresh one from the system.
        owner: Whose argument it is, for errors.

    Raises:
        TypeError: it is something else.
        ValueError: it is negative, or 2**63 or more.

    Example:
        >>> seed_of(7, "HeterogeneousVAE")
        7
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(1 << 31))
    if isinstance(random_state, bool) or not isinstance(random_state, int | np.integer):
        raise TypeError(
            f"{owner}: `random_state` must be an integer, a numpy.random.RandomState or None, got {random_state!r}. "
            "Try 0."
        )
    if not 0 <= random_state < 1 << 63:
        raise ValueError(
            f"{owner}: `random_state` must be at least 0 and less than 2**63, got {random_state}. Try 0."
        )
    return int(random_state)


def generator_of(random_state: RandomState, owner: str) -> torch.Generator:
    """A generator for draws from a fitted model, unrelated to the training's of the same seed."""
    words = np.random.SeedSequence(seed_of(random_state, owner), spawn_key=(DRAWS,)).generate_state(1)
    return torch.Generator().manual_seed(int(words[0]))
