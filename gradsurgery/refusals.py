"""What a wrapper refuses, or warns of, when the losses come and not before."""

import warnings
from collections.abc import Sequence

from torch import Tensor, nn

from .aggregators import Aggregator, CrossBatch
from .distributed import any_sharded
from .engines import PerLossGradients, Request
from .settings import Method, Settings
from .sharing import parameters_of


def check_instances_allowed(request: Request, settings: Settings) -> None:
    """Raises where losses in one tensor, one a sample, cannot be had."""
    method = settings.method
    shape = tuple(request.losses.shape) if isinstance(request.losses, Tensor) else ()
    if request.agreement is not None:
        raise TypeError(
            f"MultiObjectiveOptimizer: `losses` must be a dict or sequence of scalars when there are several "
            f"ranks, got a tensor of shape {shape}. Inner products between the samples of different ranks are not "
            f"supported."
        )
    if method.keeps_buffers:
        raise TypeError(
            f"MultiObjectiveOptimizer: `losses` must be a dict or sequence of scalars for a method that "
            f"remembers something from step to step, got a tensor of shape {shape} with {type(method).__name__}. "
            f"A sample is not the same objective in every step: use a method without a state, such as MGDA."
        )
    if isinstance(method, Aggregator) and method.needs_jacobian and not settings.instances.forms_rows:
        raise TypeError(
            f"MultiObjectiveOptimizer: `losses` must be a dict or sequence of scalars for a method that needs "
            f"the gradients themselves, got a tensor of shape {shape} with {type(method).__name__}. Use a method "
            f"that needs only inner products, or engine='loop', which forms the gradient of each loss."
        )


def observing(method: Method, wrapped: Sequence[Tensor]) -> CrossBatch:
    """The method, if it looks at several batches and can do so here."""
    if not isinstance(method, CrossBatch):
        raise TypeError(
            f"MultiObjectiveOptimizer: `aggregator` must look at several batches for observe(), as SDMGrad and "
            f"MoDo do, got {type(method).__name__}."
        )
    if any_sharded(wrapped):
        raise RuntimeError(
            f"MultiObjectiveOptimizer: `aggregator` must be a method that can do with one batch where parameters "
            f"are sharded, got {type(method).__name__}. Use a method that needs no observe()."
        )
    return method


def warned_of_nothing_shared(found: PerLossGradients, declared: Sequence[nn.Module | Tensor] | None) -> bool:
    """Warns where no loss reaches what was declared as shared, unless that is frozen on purpose."""
    if found.shared.parameters or declared is None:
        return False
    if not any(parameter.requires_grad for parameter in parameters_of(declared)):
        return False
    warnings.warn(
        "MultiObjectiveOptimizer: no loss reaches any of the parameters given as `shared`, so nothing was "
        "done but add the gradients. Does `shared` belong to the model that computed the losses?",
        UserWarning,
        stacklevel=8,
    )
    return True
