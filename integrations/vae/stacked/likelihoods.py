"""The losses of all columns of several seeds, in one call for all columns that share a formula."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor

from ..likelihoods import Beta, Exponential, Gamma, Hurdle, LogNormal, Normal, Poisson
from ..likelihoods.base import Likelihood

# What columns of one group have in common: the formula of their density, with its numbers.
_Key: TypeAlias = tuple[object, ...]
# The scaling of these enters the targets alone; the density is that of the type on the right.
_SCALED: dict[type[Likelihood], type[Likelihood]] = {
    Normal: Normal, LogNormal: Normal, Gamma: Gamma, Exponential: Exponential, Beta: Beta,
}  # fmt: skip


class StackedLikelihoods:
    r"""The likelihoods of the columns of S seeds, whose scaling differs from seed to seed.

    Columns are put into groups that one call evaluates for all seeds: those of one type whose scaling enters the
    targets alone; Poisson counts, whose bounds become a tensor; and those of one type with the same numbers in all
    seeds. Of any other column, each seed's likelihood is called by itself.

    Args:
        likelihoods: One sequence a seed, one likelihood a column.
        device: Where the cells are. ``None``: on the CPU.

    Raises:
        ValueError: the seeds disagree on how many parameters a column has.
    """

    def __init__(self, likelihoods: Sequence[Sequence[Likelihood]], device: torch.device | None = None) -> None:
        by_column = list(zip(*likelihoods, strict=True))
        groups: dict[_Key, list[int]] = {}
        for column, own in enumerate(by_column):
            if len({likelihood.num_parameters for likelihood in own}) != 1:
                raise ValueError(
                    f"StackedLikelihoods: `likelihoods` must have as many parameters in every seed, got "
                    f"{[likelihood.num_parameters for likelihood in own]} for column {column}."
                )
            groups.setdefault(_key(own) or ("alone", column), []).append(column)
        self.columns = [column for members in groups.values() for column in members]
        """The columns, group by group."""
        widths = [own[0].num_parameters for own in by_column]
        starts = [0, *accumulate(widths)]
        self.rows = [row for column in self.columns for row in range(starts[column], starts[column + 1])]
        """The rows of the heads' weights, group by group."""
        self._calls = [
            _call([by_column[column] for column in members], key, device) for key, members in groups.items()
        ]
        self._counts = [len(members) for members in groups.values()]
        self._widths = [sum(widths[column] for column in members) for members in groups.values()]

    def losses(self, outputs: Tensor, targets: Tensor, observed: Tensor) -> Tensor:
        """Negative log-likelihoods as :func:`column_losses` defines them, ``(S, D)``; see :meth:`log_probs`."""
        return -self.log_probs(outputs, targets, observed).mean(1)

    def log_probs(self, outputs: Tensor, targets: Tensor, observed: Tensor) -> Tensor:
        """Log-likelihood of each cell, 0 for a missing one.

        Shape:
            - outputs: ``(S, N, sum of all num_parameters)``, in the order of :attr:`rows`.
            - targets: ``(S, N, D)``, scaled and 0 where missing, in the order of :attr:`columns`.
            - observed: ``(S, N, D)``, in the order of :attr:`columns`.
            - output: ``(S, N, D)``, in the order of :attr:`columns`.
        """
        parts = zip(
            self._calls, outputs.split(self._widths, -1), targets.split(self._counts, -1), self._counts, strict=True
        )
        log_probs = [
            call(own.unflatten(-1, (count, -1)), target) for call, own, target, count in parts
        ]  # (S, N, columns of the group) each
        return torch.where(observed, torch.cat(log_probs, -1), 0.0)


class _Together:
    """One likelihood for all seeds and columns of a group."""

    def __init__(self, likelihood: Likelihood) -> None:
        self.likelihood = likelihood

    def __call__(self, raw: Tensor, targets: Tensor) -> Tensor:
        return self.likelihood.log_prob(targets, self.likelihood.natural(raw))


class _OneByOne:
    """One column, with each seed's own likelihood."""

    def __init__(self, likelihoods: Sequence[Likelihood]) -> None:
        self.likelihoods = likelihoods

    def __call__(self, raw: Tensor, targets: Tensor) -> Tensor:
        seeds = zip(self.likelihoods, raw, targets, strict=True)
        return torch.stack(
            [likelihood.log_prob(target, likelihood.natural(own)) for likelihood, own, target in seeds]
        )


class _Counts(Poisson):
    """Counts whose bound is a tensor."""

    def __init__(self, bounds: Tensor) -> None:
        self.bound = bounds  # type: ignore[assignment]


def _key(likelihoods: Sequence[Likelihood]) -> _Key | None:
    """What the column's group shares; None for a column that has to be alone."""
    if all(type(likelihood) is Poisson for likelihood in likelihoods):
        return (Poisson,)
    densities = {_density(likelihood) for likelihood in likelihoods}
    return densities.pop() if len(densities) == 1 else None


def _density(likelihood: Likelihood) -> _Key | None:
    """What ``natural`` and ``log_prob`` depend on; None where that cannot be told."""
    kind = type(likelihood)
    if kind in _SCALED:
        return (_SCALED[kind],)
    if isinstance(likelihood, Hurdle):
        above = _density(likelihood.above)
        return None if above is None else (kind, *above)
    settings = sorted(vars(likelihood).items())
    return (kind, *settings) if all(isinstance(value, int | float | str) for _, value in settings) else None


def _call(members: Sequence[Sequence[Likelihood]], key: _Key, device: torch.device | None) -> _Together | _OneByOne:
    """How a group is evaluated, from the likelihoods of its columns, one sequence a column."""
    if key[0] == "alone":
        return _OneByOne(members[0])
    if key == (Poisson,):
        bounds = [[likelihood.bound for likelihood in own if isinstance(likelihood, Poisson)] for own in members]
        return _Together(_Counts(torch.tensor(bounds, device=device).T[:, None, :, None]))  # (S, 1, columns, 1)
    return _Together(members[0][0])
