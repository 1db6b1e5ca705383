"""The engine a user asked for."""

from .base import Engine
from .func import Func
from .ghost import Ghost
from .loop import Loop

_BY_NAME: dict[str, type[Engine]] = {"loop": Loop, "func": Func, "ghost": Ghost}


def choose_engine(engine: str | Engine) -> Engine:
    """Returns the engine itself, the one of that name, or for ``"auto"`` the loop.

    The loop is the most robust, and on a CPU as fast as batching.

    Raises:
        ValueError: No engine has that name.
    """
    if isinstance(engine, Engine):
        return engine
    if engine == "auto":
        return Loop()
    if engine not in _BY_NAME:
        raise ValueError(
            f"MultiObjectiveOptimizer: `engine` must be 'auto', one of {sorted(_BY_NAME)} or an Engine, got "
            f"{engine!r}."
        )
    return _BY_NAME[engine]()
