"""Where numbers by name are written: TensorBoard, Weights & Biases, MLflow, loggers of Lightning, or a function."""

import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

Write = Callable[[Mapping[str, float], int], object]


def writer_for(logger: Any, prefix: str = "surgery/") -> Write:
    """Returns the function that writes numbers by name to a logger, told by what it can do; nothing is imported.

    ===================================================  =========================================================
    logger                                               how it is written to
    ===================================================  =========================================================
    ``SummaryWriter`` of torch or tensorboardX           ``add_scalar``, by step
    a logger of Lightning, the ``mlflow`` module         ``log_metrics``, by step; MLflow's names have no characters
                                                         but letters, digits, space and ``_-./``
    a run of ``wandb``, or the module                    ``log``, with ``{prefix}step``, which becomes the
                                                         horizontal axis: its own steps count all that is logged
    a function, ``function(metrics: dict, step: int)``   a call
    ===================================================  =========================================================

    Args:
        logger: One of these.
        prefix: What the names start with.

    Raises:
        TypeError: ``logger`` is none of these.

    Example:
        >>> writer_for(lambda metrics, step: print(step, metrics))({"surgery/conflicting": 0.5}, 10)
        10 {'surgery/conflicting': 0.5}
    """
    if hasattr(logger, "add_scalar"):
        return lambda metrics, step: _add_scalars(logger, metrics, step)
    if hasattr(logger, "log_metrics"):
        if isinstance(logger, ModuleType):
            return lambda metrics, step: logger.log_metrics(_plain(metrics), step=step)
        return lambda metrics, step: logger.log_metrics(dict(metrics), step=step)
    if hasattr(logger, "log") and hasattr(logger, "define_metric"):
        return _wandb(logger, prefix)
    if callable(logger) and not isinstance(logger, type):
        return lambda metrics, step: logger(dict(metrics), step)
    got = f"the class {logger.__name__}" if isinstance(logger, type) else type(logger).__name__
    raise TypeError(
        f"ConflictMonitor: `loggers` must be SummaryWriters, runs of wandb, the mlflow module, loggers of Lightning "
        f"or functions of (metrics, step), got {got}. For another one: loggers=[lambda metrics, step: ...]."
    )


def _add_scalars(writer: Any, metrics: Mapping[str, float], step: int) -> None:
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)


def _plain(metrics: Mapping[str, float]) -> dict[str, float]:
    """MLflow refuses a name with other characters."""
    return {re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII): value for name, value in metrics.items()}


def _wandb(run: Any, prefix: str) -> Write:
    """Steps are written as a number: given as ``step=``, they would have to rise together with the user's."""
    axis, defined = f"{prefix}step", False

    def write(metrics: Mapping[str, float], step: int) -> None:
        nonlocal defined
        if not defined:  # not earlier, as the module can be handed over before wandb.init()
            run.define_metric(f"{prefix}*", step_metric=axis)
            defined = True
        run.log({**metrics, axis: step})

    return write


__all__ = ["Write", "writer_for"]
