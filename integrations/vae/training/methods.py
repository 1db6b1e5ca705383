"""The methods that the command line knows by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

import gradsurgery as gs


def _gradnorm(generator: torch.Generator) -> gs.Aggregator:
    # Slower than the method's default: a column that is solved sends hardly any gradient, and a quick
    # GradNorm raises its weight until the others are drowned in its noise.
    return gs.GradNorm(alpha=0.0, progress="gradient", lr=1e-3)


METHODS: dict[str, Callable[[torch.Generator], gs.Aggregator]] = {
    "sum": lambda generator: gs.Sum(),
    "mean": lambda generator: gs.Mean(),
    "gradnorm": _gradnorm,
    "lossbalancer": lambda generator: gs.LossBalancer(),
    "mgda": lambda generator: gs.MGDA(),
    "imtlg": lambda generator: gs.IMTLG(),
    "pcgrad": lambda generator: gs.PCGrad(generator=generator),
    "graddrop": lambda generator: gs.GradDrop(generator=generator),
    "upgrad": lambda generator: gs.UPGrad(),
    "lossbalancer+pcgrad": lambda generator: gs.Chain(gs.LossBalancer(), gs.PCGrad(generator=generator)),
    "gradnorm+pcgrad": lambda generator: gs.Chain(_gradnorm(generator), gs.PCGrad(generator=generator)),
    "gradnorm+graddrop": lambda generator: gs.Chain(_gradnorm(generator), gs.GradDrop(generator=generator)),
    "gradnorm+upgrad": lambda generator: gs.Chain(_gradnorm(generator), gs.UPGrad()),
}


def build_method(name: str, seed: int = 0) -> gs.Aggregator:
    """A new aggregator, set up for the columns of a table.

    Args:
        name: One of :data:`METHODS`.
        seed: Of the random ones.

    Raises:
        ValueError: no method has that name.

    Example:
        >>> type(build_method("gradnorm")).__name__
        'GradNorm'
    """
    if name not in METHODS:
        raise ValueError(f"vae: `methods` must be among {', '.join(METHODS)}, got {name!r}. Check the spelling.")
    return METHODS[name](torch.Generator().manual_seed(seed))
