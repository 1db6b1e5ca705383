"""Several seeds of one training, run together: small matrices cost hardly more by the handful."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

import gradsurgery as gs

from .best_epoch import BestEpoch, Epoch
from .encoding import Batch
from .evaluation import column_errors, reconstruct
from .preparation import Prepared, batches, check_arguments, prepare
from .progress import progress_bar
from .stacked_likelihoods import StackedLikelihoods
from .stacked_model import StackedVAE
from .table import Table
from .training import Run


def fit_seeds(
    table: Table,
    build_method: Callable[[int], gs.Aggregator] | None = None,
    *,
    seeds: Sequence[int],
    epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    hidden_size: int = 50,
    latent_size: int | None = None,
    progress: bool = False,
    title: str = "fit",
) -> list[Run]:
    """Trains one VAE a seed, all of them together.

    Guarantees:
        as_alone: each run is that of ``fit(table, build_method(seed), seed=seed, ...)`` up to rounding: its split,
            scaling, initial weights, batches, noise, best epoch and the state of its method. Rounding grows over
            the epochs, as between two machines.

    Args:
        table: The table, missing cells and all.
        build_method: Called with each seed, makes a new aggregator, of the same kind and options for all; the seed
            is for random ones. ``None``: the plain sum.
        seeds: Of everything random, each >= 0, all different; at least one.
        epochs: As in :func:`fit`, and so are the others.

    Raises:
        ValueError: an argument is out of range, or a column cannot be scaled by its training cells.
        TypeError: an argument is of the wrong kind.
        RuntimeError: the loss of a seed stopped being finite; the message names it and the columns.

    Cost:
        A step of five seeds costs less than 2.5 steps of one on one thread of a CPU. A method that is random, or
        needs more than inner products, is called once a seed.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"x": [0.1, 1.3, 2.2, 3.1, 4.7] * 8, "even": [True, False] * 20})
        >>> runs = fit_seeds(Table.from_frame(frame), lambda seed: gs.UPGrad(), seeds=range(3), epochs=2)
        >>> len(runs), list(runs[0].evaluate().errors)
        (3, ['x', 'even'])
    """
    _check_seeds(seeds)
    for seed in seeds:
        smallest = {"epochs": (epochs, 1), "batch_size": (batch_size, 2), "seed": (seed, 0)}
        check_arguments("fit_seeds", table, learning_rate, **smallest)
    methods = [gs.Sum() if build_method is None else build_method(seed) for seed in seeds]
    _check_methods(methods)
    built = [
        prepare(table, method, hidden_size, latent_size, seed) for seed, method in zip(seeds, methods, strict=True)
    ]
    bests = [BestEpoch() for _ in built]
    loop = _Loop(built, list(seeds), table.schema.names, batch_size, learning_rate)
    with progress_bar(epochs, title, progress) as bar:
        for _ in range(epochs):
            losses = loop.train_epoch()
            for own, best, loss in zip(built, bests, losses, strict=True):
                found = reconstruct(own.vae, own.validation.features)
                error = column_errors(table, own.split.validation, found).nanmean()
                best.record(own.vae, Epoch(loss, float(error)))
            bar.set_postfix_str(_medians(bests))
            bar.update()
    for own, best in zip(built, bests, strict=True):
        best.restore(own.vae)
        own.vae.eval()
    return [
        Run(own.vae, table, own.encoding, own.split, tuple(best.history), best.index)
        for own, best in zip(built, bests, strict=True)
    ]


class _Loop:
    """The steps of all seeds, on their training rows one below the other."""

    def __init__(
        self,
        built: Sequence[Prepared],
        seeds: list[int],
        names: tuple[str, ...],
        batch_size: int,
        learning_rate: float,
    ) -> None:
        self.likelihoods = StackedLikelihoods([own.encoding.likelihoods for own in built])
        self.stack = StackedVAE([own.vae for own in built], self.likelihoods)
        # Fused, as in fit().
        self.optimizer = torch.optim.Adam(self.stack.weights.values(), lr=learning_rate, fused=True)
        self.seeds, self.batch_size = seeds, batch_size
        self.names = [names[column] for column in self.likelihoods.columns]
        self.generators = [own.noise for own in built]
        self.rows = len(built[0].training)
        columns = self.likelihoods.columns
        self.training = Batch(
            torch.cat([own.training.features for own in built]),
            torch.cat([own.training.scaled[:, columns] for own in built]),
            torch.cat([own.training.observed[:, columns] for own in built]),
        )
        self.offsets = torch.arange(len(built)).unsqueeze(1) * self.rows

    def train_epoch(self) -> list[float]:
        """Takes one step a batch, copies the weights to the models and returns each seed's mean loss of a row."""
        total, losses = torch.zeros(len(self.seeds)), torch.zeros(len(self.seeds), len(self.names))
        chunks = [batches(self.rows, self.batch_size, generator) for generator in self.generators]
        for rows in zip(*chunks, strict=True):
            self.optimizer.zero_grad()
            own, kl = self._objective(torch.stack(rows))
            loss = own.sum(1) + kl
            loss.sum().backward()
            self.optimizer.step()
            total += loss.detach() * len(rows[0])
            losses += own.detach()
        self._check_finite(total, losses)
        self.stack.copy_to_models()
        return (total.double() / self.rows).tolist()

    def _objective(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The columns' losses ``(S, D)`` and the KL divergences ``(S,)`` of the rows ``(S, N)``."""
        shape = rows.shape
        batch = self.training.select((rows + self.offsets).flatten())
        features = batch.features.view(*shape, -1)
        loc, scale = self.stack.encode(features, self._draw(Tensor.uniform_, features))
        outputs = self.stack.decode(loc + scale * self._draw(Tensor.normal_, loc))
        losses = self.likelihoods.losses(outputs, batch.scaled.view(*shape, -1), batch.observed.view(*shape, -1))
        kl = (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum(2).mean(1)
        return losses, kl

    def _draw(self, fill: Callable[..., Tensor], like: Tensor) -> Tensor:
        """Noise in which each seed's part is what its generator gives a model alone."""
        noise = torch.empty(like.shape, dtype=like.dtype)
        for own, generator in zip(noise, self.generators, strict=True):
            fill(own, generator=generator)
        return noise

    def _check_finite(self, total: Tensor, losses: Tensor) -> None:
        for seed, value, own in zip(self.seeds, total.tolist(), losses.isfinite().tolist(), strict=True):
            if not math.isfinite(value):
                broken = [name for name, finite in zip(self.names, own, strict=True) if not finite]
                raise RuntimeError(
                    f"fit_seeds: the loss must stay finite, got {value} for seed {seed} (columns "
                    f"{', '.join(broken) or 'none'}; else the KL divergence). Lower `learning_rate`, or look for "
                    "extreme cells there."
                )


def _medians(bests: Sequence[BestEpoch]) -> str:
    last = median(best.history[-1].validation_error for best in bests)
    lowest = median(best.history[best.index].validation_error for best in bests)
    return f"median validation error {last:.4f}, best {lowest:.4f}"


def _check_seeds(seeds: Sequence[int]) -> None:
    if not isinstance(seeds, Sequence):
        raise TypeError(f"fit_seeds: `seeds` must be a sequence of integers, got {seeds!r}. Try range(5).")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"fit_seeds: `seeds` must be different and at least one, got {list(seeds)}. Try range(5).")


def _check_methods(methods: Sequence[gs.Aggregator]) -> None:
    kinds = sorted({type(method).__name__ for method in methods})
    if len(kinds) > 1:
        raise ValueError(f"fit_seeds: `build_method` must make one kind of method, got {', '.join(kinds)}.")
    if len({id(method) for method in methods}) < len(methods):
        raise ValueError(
            "fit_seeds: `build_method` must make a new method for each seed, got the same one again. "
            "What it learns belongs to one run."
        )
