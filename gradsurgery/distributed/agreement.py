"""What the ranks compare before each surgery, so that those that disagree fail together instead of waiting."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .fingerprint import digest
from .ranks import Ranks

Counts: TypeAlias = float | Mapping[str, float] | Sequence[float]
"""How many items each loss is the average of: one number for all, or one a loss."""

_LONG = 400
"""Characters of a value up to which an error repeats all of it."""


class Presence(NamedTuple):
    """Which losses there are, on this rank or on another one.

    Args:
        names: Those that are present on any rank, in the order of all.
        weights: Of the losses that are present here, the share of this rank in their average over the ranks.
        extra_weight: The same for the extra loss.
        reach: For each parameter by position the losses that reach it on any rank, one bit each.
    """

    names: tuple[str, ...]
    weights: dict[str, float]
    extra_weight: float
    reach: dict[int, int]

    def averaged(self, own: Sequence[str], values: Tensor, ranks: Ranks) -> Tensor:
        """The losses ``(K,)`` averaged over the ranks, from the values of those that this one has."""
        result = values.new_zeros(len(self.names))
        for name, value in zip(own, values, strict=True):
            if name in self.weights:  # the mean of no items is not a number
                result[self.names.index(name)] = self.weights[name] * value
        return ranks.total(result)


class Agreement:
    """One surgery's: a context that tells the other ranks if this one fails before gradients are added up.

    Args:
        ranks: All of them.
        caller: Whose surgery it is, for errors.
        aspects: What must be the same on all ranks, in words.
        counts: How many items each loss averages here. ``None``: the same on all ranks.
        same_losses: Whether each rank must have each loss.
        follow: Takes over what the first rank remembers; called on all ranks where any of them is ``behind``.
        behind: Whether this rank may remember something else than the first one.
    """

    def __init__(
        self,
        ranks: Ranks,
        caller: str,
        aspects: Mapping[str, str],
        *,
        counts: Counts | None = None,
        same_losses: bool = False,
        follow: Callable[[], None] | None = None,
        behind: bool = False,
    ) -> None:
        self.ranks = ranks
        self.found: Presence | None = None
        self._caller = caller
        self._aspects = {"losses": "", **aspects, "counts": "not given" if counts is None else "given"}
        self._counts = counts
        self._same_losses = same_losses
        self._follow = follow
        self._behind = behind
        self._told = False
        self._compared_layouts = same_losses  # then each rank adds up by itself

    def __enter__(self) -> "Agreement":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception):
            return
        failure = f"{type(error).__name__}: {error}"
        if not self._told:
            self._told = True
            self._compared("", failure)
        elif self.found is not None and not self._compared_layouts:
            self.layouts(None, failure)

    def once_more(self) -> "Agreement":
        """The same to be agreed on, for a second look at the same losses."""
        aspects = {name: text for name, text in self._aspects.items() if name not in ("losses", "counts")}
        return Agreement(self.ranks, self._caller, aspects, counts=self._counts, same_losses=self._same_losses)

    def presence(self, present: Sequence[str], every: Sequence[str], reach: Mapping[int, int]) -> Presence:
        """Compares what has to be the same on all ranks, and shares what has not.

        Args:
            present: The losses that are there on this rank.
            every: Those and the others.
            reach: For each parameter by position the losses that reach it here, bit k for the k-th of ``every``.

        Raises:
            RuntimeError: The ranks disagree, or another one has failed.
            ValueError: The counts do not fit the losses, or there is no loss on any rank.
        """
        own = own_counts(self._counts, present, every, self._caller)
        self._aspects["losses"] = f"{list(present if self._same_losses else every)}"
        self._told = True
        differs, some_behind = self._compared(f"{list(present)} {sorted(reach.items())}")
        if self._follow is not None and (self._behind or some_behind):
            self._follow()
        table = [own] * self.ranks.size
        if self._counts is not None:
            table = self.ranks.gathered(torch.tensor(own, dtype=torch.float64)).tolist()
        if differs:
            gathered = self.ranks.gathered_objects((own, dict(reach)))
            table, reach = [counts for counts, _ in gathered], _either([bits for _, bits in gathered])
        totals = [sum(column) for column in zip(*table, strict=True)]
        shares = [count / total if total else 0.0 for count, total in zip(own, totals, strict=True)]
        names = tuple(name for name, total in zip(every, totals, strict=False) if total)
        if every and not names:
            raise ValueError(
                f"{self._caller}: `losses` must contain at least one loss on any of the ranks, got none among "
                f"{list(every)}, or none of any items. Skip the step when there is nothing to train on."
            )
        weights = {name: share for name, share in zip(every, shares, strict=False) if share}
        self.found = Presence(names, weights, shares[-1], dict(reach))
        return self.found

    def reached(self) -> Presence:
        """What the ranks have agreed on.

        Raises:
            RuntimeError: They have not yet.
        """
        if self.found is None:
            raise RuntimeError(f"{self._caller}: the ranks must agree before their gradients are added up.")
        return self.found

    def layouts(self, own: Any, failure: str = "") -> list[Any]:
        """What each rank has to add up; just one where all have the same.

        Args:
            own: Of plain data.
            failure: Why this rank has nothing to add up.

        Raises:
            RuntimeError: Another rank has failed.
        """
        self._compared_layouts = True
        numbers = [digest(failure or f"{own}")]
        (differs,) = self.ranks.differing("layouts", numbers, wait=self._counts is not None)
        if not differs:
            return [own]
        if self.ranks.all_wait("layouts"):
            everybody: list[tuple[Any, str]] = self.ranks.gathered_objects((own, failure))
            self._raise_failure(failure, [each for _, each in everybody])
            return [each for each, _ in everybody]
        if failure:
            return []
        raise RuntimeError(
            f"{self._caller}: `losses` must give gradients to the same parameters on all ranks from step to step, "
            f"got others on one of them alone. With counts= on all ranks they need not."
        )

    def _compared(self, may_differ: str, failure: str = "") -> tuple[bool, bool]:
        """Raises where the ranks disagree; returns whether what may differ does, and whether some may be behind."""
        texts = {**self._aspects, "failure": failure}
        numbers = [digest(text) for text in (*texts.values(), may_differ)]
        *wrong, differs, some_behind = self.ranks.differing(
            "aspects", [*numbers, int(self._behind)], wait=self._counts is not None
        )
        if any(wrong) or ((differs or some_behind) and not self.ranks.all_wait("aspects")):
            self._raise(texts)
        return differs, some_behind

    def _raise(self, texts: dict[str, str]) -> None:
        """Raises the same error on all ranks, but for those that have one of their own already."""
        if texts["failure"] and not self.ranks.all_wait("aspects"):
            return
        if not self.ranks.all_wait("aspects"):
            raise RuntimeError(
                f"{self._caller}: the ranks must agree, got something new on one of them only; here {texts}. Losses "
                f"that are None on some ranks need counts= on all."
            )
        everybody: list[dict[str, str]] = self.ranks.gathered_objects(texts)
        self._raise_failure(texts["failure"], [each["failure"] for each in everybody])
        if texts["failure"]:
            return
        wrong = [aspect for aspect in texts if len({each[aspect] for each in everybody}) > 1]
        first, *others = (f"`{aspect}`: {_by_rank([each[aspect] for each in everybody])}" for aspect in wrong)
        also = f" Also {'; '.join(others)}." if others else ""
        if wrong[0] == "losses" and self._same_losses:
            remedy = "Where parameters are sharded, each rank must have each loss; zero times another one will do."
        else:
            remedy = "Run the same code on all ranks; a loss that a rank lacks is None there, with the same name."
        raise RuntimeError(f"{self._caller}: the ranks must agree, got {first}.{also} {remedy}")

    def _raise_failure(self, own: str, everybody: Sequence[str]) -> None:
        """Raises if another rank has failed, unless this one has an error of its own to raise."""
        failures = [f"rank {rank}: {failure}" for rank, failure in enumerate(everybody) if failure]
        if failures and not own:
            raise RuntimeError(
                f"{self._caller}: `losses` must be computed and differentiated on all ranks, got an error on another "
                f"one, {failures[0]}"
            )


def own_counts(counts: Counts | None, present: Sequence[str], every: Sequence[str], caller: str) -> list[float]:
    """For each of all losses the number of items that it is the average of here, and last that of the extra loss.

    Raises:
        ValueError: There is not one a loss, or one is negative or not finite.
    """
    extra = 1.0
    if counts is None:
        given = dict.fromkeys(every, 1.0)
    elif isinstance(counts, int | float):
        given, extra = dict.fromkeys(every, float(counts)), float(counts)
    elif isinstance(counts, Mapping):
        given = {str(name): float(count) for name, count in counts.items()}
    else:
        names = every if len(counts) == len(every) else map(str, range(len(counts)))
        given = {name: float(count) for name, count in zip(names, counts, strict=True)}
    if set(given) != set(every):
        raise ValueError(
            f"{caller}: `counts` must have one number a loss, {list(every)}, got {list(given)}. Give 0 where a loss "
            f"is None."
        )
    wrong = {name: count for name, count in given.items() if not (math.isfinite(count) and count >= 0)}
    if wrong:
        raise ValueError(
            f"{caller}: `counts` must be finite and >= 0, got {wrong}. Give the number of items that each loss is "
            f"the average of on this rank."
        )
    return [given[name] if name in present else 0.0 for name in every] + [extra]


def _either(tables: Sequence[Mapping[int, int]]) -> dict[int, int]:
    """The bits that are set in any of the tables."""
    result: dict[int, int] = {}
    for table in tables:
        for position, bits in table.items():
            result[position] = result.get(position, 0) | bits
    return result


def _by_rank(values: Sequence[str]) -> str:
    """Each value with the ranks that have it; of long ones, what lies around the first difference."""
    if max(map(len, values)) > _LONG:
        alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*values, strict=False))
        start = max(0, sum(1 for _ in alike) - _LONG // 4)
        values = [f"...{value[start : start + _LONG // 2]}..." for value in values]
    owners: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        owners.setdefault(value, []).append(str(rank))
    return ", ".join(f"{value} on rank {' and '.join(ranks)}" for value, ranks in owners.items())
