"""What is measured, and what is required of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from contenders import AUTO, BLOCKS, INSTANCES
from models import DEPTH, Heads, Problem, Samples, Sizes, Table, cnn, mlp, transformer


@dataclass(frozen=True)
class Case:
    """A network and its batch.

    Args:
        name: As in the table.
        build: Makes it.
        small: Makes a small one that runs the same code, to load what is loaded on first use.
        ours: The contenders that the requirements are for.
        at_most: Time, in forward and backward passes of the plain sum.
        faster: How many times faster than the peer.
        share: Peak memory above that of the plain sum, as a share of the peer's.
    """

    name: str
    build: Callable[[], Problem]
    small: Callable[[], Problem]
    ours: tuple[str, ...] = (AUTO,)
    at_most: float | None = None
    faster: float | None = None
    share: float | None = None


def trunk(sizes: Sizes, at_most: float | None, faster: float | None, share: float | None = None) -> Case:
    """A trunk of equal linear layers with ReLU."""
    small = sizes._replace(width=16, batch=8)
    return Case(sizes.name, partial(mlp, sizes), partial(mlp, small), at_most=at_most, faster=faster, share=share)


CASES = [
    trunk(Sizes(1024, 128, 2), at_most=1.5, faster=1.3, share=1 / 3),
    trunk(Sizes(1024, 128, 4), at_most=2.1, faster=2.0, share=1 / 3),
    trunk(Sizes(1024, 128, 8), at_most=3.0, faster=3.0, share=1 / 3),
    trunk(Sizes(1024, 128, 16), at_most=4.5, faster=4.0, share=1 / 3),
    trunk(Sizes(1024, 256, 8), at_most=4.5, faster=2.0),
    trunk(Sizes(64, 32, 8), at_most=4.0, faster=1.2),
    Case(
        "transformer d = 128, 3 layers, 8 x 64 tokens, K = 8",
        partial(transformer, 3, 128, 8, 64, 8),
        partial(transformer, 3, 16, 2, 8, 8),
        at_most=6.0,
        faster=1.3,
    ),
    Case(
        "CNN with BatchNorm, batch 16, K = 4",
        partial(cnn, 32, 16, 32, 4),
        partial(cnn, 4, 4, 8, 4),
        at_most=3.3,
        faster=1.0,
    ),
    Case(
        "instance-wise, 4 x 1024, N = 256, MGDA",
        partial(Samples, 1024, 256),
        partial(Samples, 16, 8),
        ours=(INSTANCES,),
        at_most=1.5,
        faster=50.0,
    ),
    Case(
        "block behind 3 x 50, 16 heads, batch 128",
        partial(Heads, 3, 50, 128, 16),
        partial(Heads, 3, 8, 8, 16),
        ours=BLOCKS,
        at_most=1.3,
    ),
    Case(
        "block in the VAE, 16 columns, batch 128",
        partial(Table, 50, 128, 16),
        partial(Table, 8, 8, 16),
        ours=BLOCKS,
    ),
]


def case_of(name: str) -> Case:
    """The case of that name; a trunk of linear layers may have any sizes."""
    for case in CASES:
        if case.name == name:
            return case
    sizes = re.fullmatch(rf"trunk {DEPTH} x (\d+), batch (\d+), K = (\d+)", name)
    if sizes is None:
        raise ValueError(f"benchmarks: `name` must be one of {[case.name for case in CASES]}, got {name!r}.")
    return trunk(Sizes(*map(int, sizes.groups())), at_most=None, faster=None)
