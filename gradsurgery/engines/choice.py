"""The engine a user asked for, and the choice among engines for one who did not ask."""

from torch import Tensor

from .base import Engine, Problem, Request, pose
from .batched import Batched
from .func import Func
from .ghost import Ghost
from .loop import Loop
from .matching import matched_uses
from .per_loss import PerLossGradients
from .pieces import saving_of
from .uses import Use

# Measured on a CPU, in floating point operations, of which it does about 1e5 in a microsecond.
_PER_NODE = 4.5e5
"""What calling one node of the graph costs; a batched pass calls each once, not once a loss."""
_PER_BATCH = 3.5e7
"""What a batched pass costs before it saves any calls."""
_PER_PARAMETER = 4e6
"""What finding and assembling the pieces of a parameter costs."""
_PER_DELTA = 60.0
"""What each number of a delta that is stored costs."""

_SMALL = 1 << 18
"""Up to so many numbers in the Jacobian, nothing is gained by not forming it."""


class Auto(Engine):
    """Runs the engine that is predicted to be the cheapest: ``Ghost``, ``Batched`` or ``Loop``.

    For small Jacobians calls are counted, and ``Batched`` runs where they are many. For others floating point operations
    and passes over memory are, and ``Ghost`` runs where it saves any. The constants were measured on a CPU; on other
    devices ``Loop`` runs, as it does where a method needs the gradients themselves.
    """

    def __init__(self) -> None:
        self._loop, self._batched, self._ghost = Loop(), Batched(), Ghost()

    def differentiate(self, request: Request) -> PerLossGradients:
        problem = pose(request)
        losses = len(problem.scalars)
        if losses == 1:
            return self._loop.solve(problem, ", as there is only one")
        if not all(parameter.is_cpu for parameter in problem.shared):
            return self._loop.solve(problem, ", as the costs of others are known for the CPU only")
        if losses * sum([parameter.numel() for parameter in problem.shared]) <= _SMALL:
            calls = _PER_NODE * (losses - 1) * _number_of_nodes(problem)
            if calls <= _PER_BATCH:
                return self._loop.solve(problem, ", as there are few calls to save")
            return self._batched.solve(problem, ", to save calls")
        if request.rows:
            return self._loop.solve(problem, ", as the gradients themselves are needed")
        uses = matched_uses(problem.graph, problem.shared, losses)
        if predicted_saving(problem, uses) <= 0:
            return self._loop.solve(problem, ", which is predicted to be cheaper than 'ghost'")
        return self._ghost.solve(problem, uses)


def predicted_saving(problem: Problem, uses: dict[Tensor, list[Use]]) -> float:
    """How many floating point operations ``Ghost`` saves, with calls and passes over memory converted to such."""
    losses = len(problem.scalars)
    deltas = {use.edge: use.delta_numel for own in uses.values() for use in own}
    return (
        sum(max(0.0, saving_of(own, losses)) for own in uses.values())
        + _PER_NODE * (losses - 1) * _number_of_nodes(problem)
        - _PER_BATCH
        - _PER_PARAMETER * len(problem.shared)
        - _PER_DELTA * losses * sum(deltas.values())
    )


def _number_of_nodes(problem: Problem) -> int:
    """How many nodes two or more losses pass through."""
    mask = (1 << len(problem.scalars)) - 1
    return sum([1 for bits in problem.graph.nodes.values() if (bits & mask) & ((bits & mask) - 1)])


_BY_NAME: dict[str, type[Engine]] = {"auto": Auto, "batched": Batched, "func": Func, "ghost": Ghost, "loop": Loop}


def choose_engine(engine: str | Engine) -> Engine:
    """Returns the engine itself, or the one of that name.

    Raises:
        ValueError: No engine has that name.
    """
    if isinstance(engine, Engine):
        return engine
    if engine not in _BY_NAME:
        raise ValueError(
            f"MultiObjectiveOptimizer: `engine` must be one of {sorted(_BY_NAME)} or an Engine, got {engine!r}."
        )
    return _BY_NAME[engine]()
