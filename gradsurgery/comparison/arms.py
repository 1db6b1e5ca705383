"""Who takes part in a comparison: methods, the plain sum, tuned static weights, one network a loss."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

from torch import nn

from ..aggregators import Aggregator
from ..catalogue import get
from ..distributed.states import described
from ..scalarizers import Scalarizer
from ..scope import Scope
from ..state import Randomized
from .fingerprint import fingerprint

Method: TypeAlias = Aggregator | Scalarizer
MethodLike: TypeAlias = str | Mapping[str, Any] | Aggregator | Scalarizer | Callable[[], Aggregator | Scalarizer]

_ALIKE = 1.5  # losses that differ by less need no weights for that

SUM, TUNED, SINGLE = "sum", "tuned weights", "single task"


@dataclass(frozen=True)
class Arm:
    """A method as it takes part in :func:`compare`.

    Args:
        method: What builds it, a name as for :func:`get`, a dict of name and options, or an instance, which is
            copied for each training.
        one_loss_a_step: Whether each step differentiates one loss alone, in turn, as M-ConFIG does: all others are
            absent in that step. What is shared is then found on the first batch, where nothing is tagged.
        scope: As for :class:`MultiObjectiveOptimizer`.

    Raises:
        TypeError: ``method`` is nothing of the kind, or builds something else.
        ValueError: A name, an option or ``scope`` is unknown.

    Example:
        >>> Arm("pcgrad").build()
        PCGrad()
    """

    method: MethodLike
    one_loss_a_step: bool = False
    scope: Scope = "all"

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise ValueError(f"Arm: `scope` must be one of {list(get_args(Scope))}, got {self.scope!r}.")
        self.build()

    def build(self, seed: int | None = None) -> Method:
        """A fresh instance; with a seed, one that draws from there."""
        method = self._built()
        if not isinstance(method, Aggregator | Scalarizer):
            raise TypeError(
                f"Arm: `method` must be a name, an aggregator, a scalarizer or what builds one, got "
                f"{type(method).__name__}. Pass gs.UPGrad, or lambda: gs.CAGrad(0.3)."
            )
        if seed is not None:
            for member in method.modules():
                if isinstance(member, Randomized):
                    member.generator.manual_seed(seed)
        return method

    @property
    def words(self) -> str:
        """The method and its options, with a checksum of those that words do not tell, such as tensors."""
        turns = ", one loss a step" if self.one_loss_a_step else ""
        scope = "" if self.scope == "all" else f", scope {self.scope}"
        method = self.build(0)
        return f"{described(method)}{turns}{scope} #{_checksum(method):08x}"

    def _built(self) -> object:
        if isinstance(self.method, str):
            return get(self.method)
        if isinstance(self.method, Mapping):
            return get(**self.method)
        if isinstance(self.method, Aggregator | Scalarizer):
            return copy.deepcopy(self.method)
        return self.method() if callable(self.method) else self.method


@dataclass(frozen=True)
class Candidate:
    """What is tuned: a learning rate, and the weights of the losses where they are fixed."""

    learning_rate: float
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Entry:
    """One that takes part: under which name, by which method, and among which candidates it is tuned.

    Args:
        label: Its name.
        candidates: At least one.
        arm: The method. ``None``: weights of the losses, or one loss alone.
        task: The loss of a single-task network.
        words: The method and its options.
    """

    label: str
    candidates: tuple[Candidate, ...]
    arm: Arm | None = None
    task: str | None = None
    words: str = SUM


def arms_of(methods: object) -> dict[str, Arm]:
    """The methods under their labels, the plain sum left out.

    Raises:
        TypeError: ``methods`` is no sequence or mapping of methods.
        ValueError: Two have the same label, or one that is taken.
    """
    if isinstance(methods, Mapping):
        items = [(str(label), method) for label, method in methods.items()]
    elif isinstance(methods, Sequence) and not isinstance(methods, str):
        items = [(_label(method), method) for method in methods]
    else:
        raise TypeError(
            f"compare: `methods` must be a list or a dict of methods, got {type(methods).__name__}. "
            f'Try ["upgrad", "pcgrad"].'
        )
    labels = [label for label, _ in items]
    if len(set(labels)) < len(labels):
        raise ValueError(f"compare: `methods` must have different labels, got {labels}. Pass a dict of them.")
    arms: dict[str, Arm] = {}
    for label, method in items:
        if label == SUM and isinstance(method, str) and method == SUM:
            continue  # it takes part anyway
        if label in (SUM, TUNED, SINGLE):
            raise ValueError(f"compare: `methods` must not be called {label!r}, which is a baseline's name.")
        arms[label] = method if isinstance(method, Arm) else Arm(method)
    return arms


def entries_of(
    arms: Mapping[str, Arm], rates: Sequence[float], weights: Sequence[tuple[float, ...]], tasks: Sequence[str]
) -> list[Entry]:
    """All that take part, the plain sum first: others may ask for the same training."""
    plain = tuple(Candidate(rate) for rate in rates)
    weighted = tuple(Candidate(rate, own) for rate in rates for own in weights)
    return [
        Entry(SUM, plain),
        *([Entry(TUNED, weighted)] if weighted else []),
        *(Entry(label, plain, arm, words=arm.words) for label, arm in arms.items()),
        *(Entry(SINGLE, plain, task=task) for task in tasks),
    ]


def weightings(names: Sequence[str], values: Mapping[str, float]) -> list[tuple[float, ...]]:
    """Static weights worth trying for these losses, each set adding up to their number.

    Equal ones; one over the losses at the start, where these are positive and differ; and each loss times a factor: 3
    and 10 for up to three losses, 5 for more.

    Example:
        >>> weightings(["a", "b"], {"a": 1.0, "b": 4.0})[:3]
        [(1.0, 1.0), (1.6, 0.4), (1.5, 0.5)]
    """
    count = len(names)
    sets = [[1.0] * count]
    start = [values.get(name, 0.0) for name in names]
    if all(0 < value < float("inf") for value in start) and max(start) > _ALIKE * min(start):
        sets.append([1 / float(f"{value:.3g}") for value in start])  # what rounding changes is the same set
    for factor in (3.0, 10.0) if count <= 3 else (5.0,):
        sets += [[factor if own == position else 1.0 for own in range(count)] for position in range(count)]
    return [tuple(weight * count / sum(weights) for weight in weights) for weights in sets]


def _checksum(method: nn.Module) -> int:
    internal = vars(nn.Module()).keys()
    own = [
        {name: value for name, value in sorted(vars(member).items()) if name not in internal}
        for member in method.modules()
    ]
    return fingerprint([own, dict(method.named_buffers()), dict(method.named_parameters())])


def _label(method: object) -> str:
    if isinstance(method, Arm):
        return _label(method.method)
    if isinstance(method, str):
        return method
    if isinstance(method, Mapping):
        return str(method.get("name"))
    return getattr(method, "__name__", type(method).__name__)


__all__ = [
    "SINGLE",
    "SUM",
    "TUNED",
    "Arm",
    "Candidate",
    "Entry",
    "Method",
    "MethodLike",
    "arms_of",
    "entries_of",
    "weightings",
]
