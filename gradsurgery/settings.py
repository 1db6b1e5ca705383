"""What the user chose when wrapping an optimizer, checked once and fixed afterwards."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from torch.optim import Optimizer

from .aggregators import Aggregator
from .distributed import Peers
from .engines import Engine, Instances, choose_engine
from .scalarizers import Scalarizer
from .scope import Scope

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Method = Aggregator | Scalarizer


@dataclass(frozen=True)
class Settings:
    """What the user chose, once and for all.

    Args:
        engine: How gradients are obtained.
        instances: How they are where the losses are one tensor.
        method: What is done with them.
        scope: What one surgery comprises.
        peers: The ranks whose losses are averaged.
    """

    engine: Engine
    instances: Instances
    method: Method
    scope: Scope
    peers: Peers


def settings_of(
    method: Method, engine: str | Engine, scope: Scope, process_group: "ProcessGroup | None", caller: str
) -> Settings:
    """Makes settings of what was checked by itself.

    Raises:
        TypeError: ``process_group`` is of the wrong kind.
        ValueError: The engine is unknown, or cannot give the method what it needs.
    """
    chosen = choose_engine(engine)
    if isinstance(method, Aggregator) and method.needs_jacobian and not chosen.has_rows:
        raise ValueError(
            f"{caller}: `engine` must deliver the gradients themselves for {type(method).__name__}, got "
            f"{type(chosen).__name__}. Use engine='auto' or engine='loop'."
        )
    return Settings(chosen, Instances(chosen), method, scope, Peers(process_group, caller))


def check_wrapping(optimizer: object, method: object, engine: object, scope: object, *, again: bool) -> None:
    """Raises for what :class:`MultiObjectiveOptimizer` cannot be made of, such as an optimizer wrapped ``again``."""
    if again or not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"MultiObjectiveOptimizer: `optimizer` must be a torch.optim.Optimizer that is not wrapped yet, got "
            f"{type(optimizer).__name__}."
        )
    if not isinstance(method, Aggregator | Scalarizer):
        got, advice = type(method).__name__, ""
        if isinstance(method, type):
            got, advice = f"the class {method.__name__}", f" Build it: {method.__name__}()."
        elif isinstance(method, str):
            got, advice = repr(method), f" By name it is gs.get({method!r})."
        raise TypeError(
            f"MultiObjectiveOptimizer: `aggregator` must be an aggregator such as gs.UPGrad(), or a scalarizer, got "
            f"{got}.{advice}"
        )
    check_scope(scope, "MultiObjectiveOptimizer")
    if isinstance(method, Scalarizer) and (engine != "auto" or scope != "all"):
        raise ValueError(
            f"MultiObjectiveOptimizer: `engine` and `scope` must be left out with a scalarizer, which needs no "
            f"per-loss gradients, got {engine!r} and {scope!r}."
        )


def check_scope(scope: object, caller: str) -> None:
    """Raises unless a scope is one."""
    if scope not in get_args(Scope):
        raise ValueError(f"{caller}: `scope` must be one of {list(get_args(Scope))}, got {scope!r}.")
