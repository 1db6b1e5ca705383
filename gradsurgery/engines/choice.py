"""The engine a user asked for, and the choice among engines for one who did not ask."""

from collections.abc import Sequence

from torch import Tensor

from ..distributed import any_sharded
from .base import Engine, Request, pose
from .batched import Batched
from .func import Func
from .ghost import Ghost, packed
from .loop import Loop
from .matching import matched_uses
from .per_loss import PerLossGradients
from .pieces import saving_of
from .sharded import Sharded
from .uses import Use

# Measured on a CPU, in floating point operations, of which it does about 1e5 in a microsecond.
_PER_STEP = 1.5e7
"""What finding the uses of parameters costs."""
_PER_PARAMETER = 4e6
"""What assembling the pieces of a parameter costs."""
_PER_DELTA = 40.0
"""What each number of a delta that is stored costs."""

_SMALL = 1 << 18
"""Up to so many numbers in the Jacobian, nothing is gained by not forming it."""


class Auto(Engine):
    """Runs ``Ghost`` where that is predicted to be cheaper than ``Loop``, and ``Loop`` otherwise.

    Compared are floating point operations and passes over memory. The constants were measured on a CPU; on other
    devices ``Loop`` runs, as it does where a method needs the gradients themselves, or ``Ghost`` several passes.
    Where parameters are DTensors, ``Sharded`` runs.
    """

    def __init__(self) -> None:
        self._loop, self._ghost, self._sharded = Loop(), Ghost(), Sharded()

    def suited_to(self, parameters: Sequence[Tensor]) -> Engine:
        return self._sharded if any_sharded(parameters) else self

    def differentiate(self, request: Request) -> PerLossGradients:
        if self.suited_to(request.wrapped) is self._sharded:
            return self._sharded.differentiate(request)
        problem = pose(request)
        losses = len(problem.scalars)
        if losses == 1:
            return self._loop.solve(problem, ", as there is only one")
        if request.rows:
            return self._loop.solve(problem, ", as the gradients themselves are needed")
        if not all(parameter.is_cpu for parameter in problem.shared):
            return self._loop.solve(problem, ", as the costs of others are known for the CPU only")
        if losses * sum(parameter.numel() for parameter in problem.shared) <= _SMALL:
            return self._loop.solve(problem, ", as there is little to save")
        uses = matched_uses(problem.graph, problem.shared, losses)
        if predicted_saving(uses, losses) <= 0:
            return self._loop.solve(problem, ", which is predicted to be cheaper than 'ghost'")
        if len(packed(problem.shared_by_several(), uses, losses)) > 1:
            return self._loop.solve(problem, ", as 'ghost' would save memory only, in several passes")
        return self._ghost.solve(problem, uses)


def predicted_saving(uses: dict[Tensor, list[Use]], losses: int) -> float:
    """How many floating point operations ``Ghost`` saves, with calls and passes over memory converted to such."""
    deltas = {use.edge: use.delta_numel for own in uses.values() for use in own}
    saved = sum(max(0.0, saving_of(own, losses)) for own in uses.values())
    return saved - _PER_STEP - _PER_PARAMETER * len(uses) - _PER_DELTA * losses * sum(deltas.values())


_BY_NAME: dict[str, type[Engine]] = {
    "auto": Auto,
    "batched": Batched,
    "func": Func,
    "ghost": Ghost,
    "loop": Loop,
    "sharded": Sharded,
}


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
