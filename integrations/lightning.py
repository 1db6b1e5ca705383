"""Surgery in PyTorch Lightning: three lines change, the Trainer does the rest.

::

    class Model(lightning.LightningModule):
        def training_step(self, batch, batch_idx):
            losses = {"depth": ..., "labels": ...}
            return scalarize(self, losses)  # in the place of their sum

        def configure_optimizers(self):
            return gs.MultiObjectiveOptimizer(torch.optim.AdamW(self.parameters()), gs.UPGrad())

    trainer = lightning.Trainer(callbacks=[SurgeryMonitor()])  # logs weights and conflicts

Modules and trainers may come from ``lightning`` or from ``pytorch_lightning``.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from gradsurgery import MultiObjectiveOptimizer, Surgery
from gradsurgery.diagnostics.metrics import surgery_metrics

from .losses import Counts, Losses, total

if TYPE_CHECKING:
    import lightning.pytorch as new
    import pytorch_lightning as old
    from lightning.pytorch import Callback
    from torch.optim import Optimizer

    AnyModule: TypeAlias = new.LightningModule | old.LightningModule
    AnyOptimizer: TypeAlias = (
        Optimizer | new.core.optimizer.LightningOptimizer | old.core.optimizer.LightningOptimizer
    )
else:
    # A trainer accepts callbacks of its own package alone, and the two packages have one each.
    _packages = [name for name in ("lightning.pytorch", "pytorch_lightning") if find_spec(name.partition(".")[0])]
    if not _packages:
        raise ImportError(
            "gradsurgery.integrations.lightning: lightning must be installed, got no module of that name. "
            'Run: pip install "gradsurgery[lightning]"'
        )
    Callback = type("Callback", tuple(import_module(name).Callback for name in _packages), {})


def scalarize(
    module: "AnyModule",
    losses: Losses,
    *,
    extra_loss: Tensor | None = None,
    counts: Counts | None = None,
    optimizer: "AnyOptimizer | None" = None,
) -> Tensor:
    r"""Returns one scalar to train on, whose backward pass performs the surgery.

    In automatic optimization, ``training_step`` returns it. In manual optimization, ``self.manual_backward`` takes
    it; ``optimizer.backward(losses)`` would know nothing of the Trainer's precision. An optimizer that calls its
    closure several times in a step (LBFGS) performs one surgery a call. Where gradients are off, as in
    ``validation_step``, it is the sum and no more.

    .. math:: \nabla\, \mathrm{scalarize}(L) = \mathrm{aggregator}(J)

    Guarantees:
        a plain loop: bit-identical to one over ``MultiObjectiveOptimizer.scalarize``, with accumulation, clipping,
            precision plugins, schedulers and checkpoints. Each batch is one surgery, accumulated or not.
        two ranks: equal to one process on the whole batch under the DDP strategy, up to rounding.

    Args:
        module: The LightningModule, within ``training_step``.
        losses: As for :meth:`gradsurgery.MultiObjectiveOptimizer.scalarize`.
        extra_loss: As for :meth:`gradsurgery.MultiObjectiveOptimizer.scalarize`.
        counts: As for :meth:`gradsurgery.MultiObjectiveOptimizer.scalarize`; for batches that differ in size from
            device to device.
        optimizer: One of ``self.optimizers()``. ``None``: the only one.

    Returns:
        The sum of the losses and the extra loss, a scalar.

    Raises:
        TypeError: The optimizer is not wrapped; else as :meth:`gradsurgery.MultiObjectiveOptimizer.scalarize`.
        ValueError: There is not exactly one optimizer and none is given; else as
            :meth:`gradsurgery.MultiObjectiveOptimizer.scalarize`.

    Cost:
        That of :meth:`gradsurgery.MultiObjectiveOptimizer.backward`, in the scalar's backward pass.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)  # in the place of a LightningModule
        >>> optimizer = MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.MGDA())
        >>> first, second = model(torch.ones(1))
        >>> loss = scalarize(model, {"first": 4 * first + 2 * second, "second": -2 * first}, optimizer=optimizer)
        >>> loss.backward()  # the Trainer does this
        >>> model.weight.grad.flatten()
        tensor([-0.2000,  0.6000])
    """
    if not torch.is_grad_enabled():
        return total(losses, extra_loss)
    chosen = _only_optimizer(module) if optimizer is None else optimizer
    if not isinstance(chosen, MultiObjectiveOptimizer):
        raise TypeError(
            f"scalarize: `optimizer` must be a MultiObjectiveOptimizer, got {type(chosen).__name__}. Wrap it in "
            f"configure_optimizers(): gs.MultiObjectiveOptimizer(optimizer, gs.UPGrad())."
        )
    return chosen.scalarize(losses, extra_loss=extra_loss, counts=counts)


def _only_optimizer(module: "AnyModule") -> object:
    found = module.optimizers(use_pl_optimizer=False)
    if not isinstance(found, list):
        return found
    if not found:
        raise ValueError(
            "scalarize: `module` must be in training, got one without optimizers. Outside of fit(), call it under "
            "torch.no_grad() for the sum."
        )
    raise ValueError(
        f"scalarize: `optimizer` must be given where there are several, got None with {len(found)}. Hand over one of "
        f"self.optimizers()."
    )


class SurgeryMonitor(Callback):
    r"""Logs what the surgeries do, on the Trainer's logging steps (``log_every_n_steps``).

    .. math:: \cos_{kl} = G_{kl} / (n_k n_l), \quad n_k = \sqrt{G_{kk}}, \quad
        \mathrm{conflicting} = \#\{k < l : G_{kl} < 0\} / \#\{k < l : n_k n_l > 0\}

    For two losses named ``depth`` and ``labels``: ``surgery/weight/depth``, ``surgery/cosine/depth-labels``,
    ``surgery/conflicting`` and so on, see :func:`gradsurgery.diagnostics.surgery_metrics`. Of several surgeries of an
    optimizer in one batch, the last one is logged. With several wrapped optimizers, the names start with
    ``surgery/0/``, by position in ``configure_optimizers``. For averages, for layers and for a history that can be
    drawn there is :class:`gradsurgery.ConflictMonitor`, which takes ``loggers=[trainer.logger]``.

    Guarantees:
        nothing is changed: parameters and states are bit-identical with and without it.
        surgery happens: in automatic optimization it raises where a batch is trained without one.

    Args:
        prefix: Stands before every name.
        max_losses: Up to so many losses, >= 0, each one's numbers and each pair's cosine are logged.

    Raises:
        TypeError: When training starts, if no optimizer is wrapped.
        ValueError: ``max_losses`` is negative.
        RuntimeError: In training, if ``training_step`` returns something other than :func:`scalarize` gives.

    Cost:
        On logging steps, one call of ``log`` for each number; on a GPU, they wait for the surgery.

    Example:
        >>> SurgeryMonitor(max_losses=4).max_losses
        4
    """

    def __init__(self, prefix: str = "surgery/", *, max_losses: int = 10) -> None:
        if max_losses < 0:
            raise ValueError(
                f"SurgeryMonitor: `max_losses` must be at least 0, got {max_losses}. 0 logs no loss by itself."
            )
        super().__init__()
        self.prefix = prefix
        self.max_losses = max_losses
        self._seen: dict[int, Surgery | None] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Looks for wrapped optimizers."""
        self._seen = {position: optimizer.last_surgery for position, optimizer in _wrapped(trainer).items()}
        if not self._seen:
            got = [type(optimizer).__name__ for optimizer in trainer.optimizers]
            raise TypeError(
                f"SurgeryMonitor: `trainer.optimizers` must contain a MultiObjectiveOptimizer, got {got}. Wrap it in "
                f"configure_optimizers(): gs.MultiObjectiveOptimizer(optimizer, gs.UPGrad())."
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the surgeries of the batch."""
        optimizers = _wrapped(trainer)
        for position, optimizer in optimizers.items():
            surgery = optimizer.last_surgery
            happened = surgery is not self._seen.get(position)
            if pl_module.automatic_optimization and isinstance(outputs, Mapping) and happened != bool(outputs):
                _raise_for(pl_module, happened)
            self._seen[position] = surgery
            if happened and surgery is not None and _logging(trainer):
                prefix = self.prefix if len(optimizers) == 1 else f"{self.prefix}{position}/"
                pl_module.log_dict(surgery_metrics(surgery, prefix, max_losses=self.max_losses), batch_size=1)


def _raise_for(module: Any, happened: bool) -> None:
    got = "None, and a surgery whose gradients the Trainer has set to zero" if happened else "a loss without surgery"
    raise RuntimeError(
        f"SurgeryMonitor: `training_step` must return what scalarize() gives, got {got}. Return scalarize(self, "
        f"losses) from {type(module).__name__}.training_step."
    )


def _logging(trainer: Any) -> bool:
    """What Lightning's own monitors ask, too; calls of ``log`` for all pairs cost more than a small step."""
    return bool(getattr(getattr(trainer, "_logger_connector", None), "should_update_logs", True))


def _wrapped(trainer: Any) -> dict[int, MultiObjectiveOptimizer]:
    return {
        position: optimizer
        for position, optimizer in enumerate(trainer.optimizers)
        if isinstance(optimizer, MultiObjectiveOptimizer)
    }


__all__ = ["SurgeryMonitor", "scalarize"]
