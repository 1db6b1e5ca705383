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
_PER_STEP = 3e7
"""What finding and assembling the pieces costs."""
_PER_PARAMETER = 4e6
"""What each further piece costs."""
_PER_NODE = 4e5
"""What calling one node of the graph costs; a batched pass calls each once, not once a loss."""
_PER_DELTA = 60.0
"""What each number of a delta that is stored costs."""


class Auto(Engine):
    """Runs ``Ghost`` where it is predicted to be cheaper than ``Loop``, which runs otherwise.

    Compared are floating point operations and passes over memory, with constants measured on a CPU; on other devices
    ``Loop`` runs, as it does where a method needs the gradients themselves.
    """

    def __init__(self) -> None:
        self._loop, self._ghost = Loop(), Ghost()

    def differentiate(self, request: Request) -> PerLossGradients:
        problem = pose(request)
        if request.rows:
            return self._loop.solve(problem, ", as the gradients themselves are needed")
        if len(problem.scalars) == 1:
            return self._loop.solve(problem, ", as there is only one")
        if not all(parameter.is_cpu for parameter in problem.shared):
            return self._loop.solve(problem, ", as costs are known for the CPU only")
        uses = matched_uses(problem.graph, problem.shared, len(problem.scalars))
        if predicted_saving(problem, uses) <= 0:
            return self._loop.solve(problem, ", which is predicted to be cheaper than 'ghost'")
        return self._ghost.solve(problem, uses)


def predicted_saving(problem: Problem, uses: dict[Tensor, list[Use]]) -> float:
    """How many floating point operations ``Ghost`` saves, with calls and passes over memory converted to such."""
    losses = len(problem.scalars)
    edges = {use.edge: use.delta_numel for own in uses.values() for use in own}
    mask = (1 << losses) - 1
    nodes = sum(1 for bits in problem.graph.nodes.values() if (bits & mask) & ((bits & mask) - 1))
    return (
        sum(max(0.0, saving_of(own, losses)) for own in uses.values())
        + _PER_NODE * (losses - 1) * nodes
        - _PER_STEP
        - _PER_PARAMETER * len(problem.shared)
        - _PER_DELTA * losses * sum(edges.values())
    )


_BY_NAME: dict[str, type[Engine]] = {"auto": Auto, "loop": Loop, "func": Func, "batched": Batched, "ghost": Ghost}


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
