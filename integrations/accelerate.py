"""Gradient surgery in a loop written with Accelerate: one call in the place of ``accelerator.backward``."""

from typing import cast

from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import MultiObjectiveOptimizer, Surgery
from gradsurgery.diagnostics.metrics import surgery_metrics

from .losses import Counts, Losses

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
except ImportError as error:
    raise ImportError(
        "gradsurgery.integrations.accelerate: accelerate must be installed, got no module of that name. "
        'Run: pip install "gradsurgery[accelerate]"'
    ) from error

__all__ = ["backward", "surgery_metrics"]


def backward(
    accelerator: Accelerator,
    optimizer: Optimizer,
    losses: Losses,
    *,
    extra_loss: Tensor | None = None,
    counts: Counts | None = None,
) -> Surgery:
    """Differentiates several losses in the place of ``accelerator.backward(loss)``.

    The rest of the loop stays as it is: ``prepare``, ``accumulate``, ``clip_grad_norm_``, mixed precision, prepared
    schedulers, ``save_state`` and ``load_state``, which keep the method's state and generator too. While gradients
    accumulate, each call is one surgery. What else a wrapper does is reached through ``optimizer.optimizer``:
    ``last_surgery``, ``update``.

    Guarantees:
        a plain loop: bit-identical to one with ``optimizer.backward`` and without Accelerate.
        data parallel: several processes with parts of a batch do what one does with all of it, up to rounding.

    Args:
        accelerator: The one that prepared the optimizer, for one process or several with the whole model on each.
        optimizer: What ``accelerator.prepare`` made of a :class:`gradsurgery.MultiObjectiveOptimizer`.
        losses: As for :meth:`gradsurgery.MultiObjectiveOptimizer.scalarize`.
        extra_loss: As for :meth:`gradsurgery.MultiObjectiveOptimizer.scalarize`.
        counts: As for :meth:`gradsurgery.MultiObjectiveOptimizer.scalarize`; for batches that differ in size from
            process to process.

    Returns:
        What was done; :func:`surgery_metrics` turns it into numbers for ``accelerator.log``.

    Raises:
        TypeError: ``optimizer`` was not wrapped, not prepared, or prepared before it was wrapped; else as
            ``scalarize``.
        ValueError: As ``scalarize``.
        RuntimeError: The accelerator shards the model, or another library does its backward pass; else as
            :meth:`gradsurgery.MultiObjectiveOptimizer.backward`.

    Cost:
        That of :meth:`gradsurgery.MultiObjectiveOptimizer.backward`.

    Example:
        >>> accelerator = Accelerator(cpu=True)
        >>> model = nn.Linear(1, 2, bias=False)
        >>> optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.MGDA())
        >>> model, optimizer = accelerator.prepare(model, optimizer)
        >>> outputs = model(torch.ones(1, 1))
        >>> backward(accelerator, optimizer, {"first": outputs[0, 0] * 3, "second": outputs[0, 1]}).weights
        tensor([0.1000, 0.9000], dtype=torch.float64)
        >>> optimizer.step()
    """
    wrapper = prepared_wrapper("accelerate.backward", accelerator, optimizer)
    accelerator.backward(wrapper.scalarize(losses, extra_loss=extra_loss, counts=counts))
    return cast(Surgery, wrapper.last_surgery)


def prepared_wrapper(caller: str, accelerator: Accelerator, optimizer: object) -> MultiObjectiveOptimizer:
    """The wrapper in a prepared optimizer; with anything else, steps or checkpoints would pass it by.

    Raises:
        TypeError: ``optimizer`` is something else.
        RuntimeError: The accelerator shards the model, or another library does its backward pass.
    """
    inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else None
    if not isinstance(inner, MultiObjectiveOptimizer) or isinstance(inner.optimizer, AcceleratedOptimizer):
        got, layer = type(optimizer).__name__, optimizer
        while isinstance(layer, AcceleratedOptimizer | MultiObjectiveOptimizer):
            layer = layer.optimizer
            got += f" over {type(layer).__name__}"
        raise TypeError(
            f"{caller}: `optimizer` must be a MultiObjectiveOptimizer that went through accelerator.prepare(), got "
            f"{got}. Wrap first: accelerator.prepare(gs.MultiObjectiveOptimizer(optimizer, gs.UPGrad()))."
        )
    kind = str(accelerator.distributed_type.value)
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise RuntimeError(
            f"{caller}: `accelerator` must keep the whole model in each process and differentiate with PyTorch, got "
            f"distributed type {kind}. Launch several processes without it: DistributedDataParallel is supported."
        )
    return inner
