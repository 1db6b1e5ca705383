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

from torch import Tensor

from gradsurgery import MultiObjectiveOptimizer, Surgery

from .metrics import surgery_metrics

if TYPE_CHECKING:
    import lightning.pytorch as new
    import pytorch_lightning as old
    from lightning.pytorch import Callback
    from torch.optim import Optimizer

    from gradsurgery.distributed import Counts
    from gradsurgery.losses import LossValues

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
    losses: "LossValues",
    *,
    extra_loss: Tensor | None = None,
    counts: "Counts | None" = None,
    optimizer: "AnyOptimizer | None" = None,
) -> Tensor:
    r"""Returns one scalar to train on, whose backward pass performs the surgery.

    In automatic optimization, ``training_step`` returns it. In manual optimization, ``self.manual_backward`` takes
    it; ``optimizer.backward(losses)`` would know nothing of the Trainer's precision. An optimizer that calls its
    closure several times in a step (LBFGS) performs one surgery a call.

    .. math:: \nabla\, \mathrm{scalarize}(L) = \mathrm{aggregator}(J)

    Guarantees:
        a plain loop: bit-identical to one over ``MultiObjectiveOptimizer.scalarize``, with accumulation, clipping,
            precision plugins, schedulers and checkpoints. Each batch is one surgery, accumulated or not.
        two ranks: equal to one process on the whole batch under the DDP strategy, up to rounding.

    Args:
        module: The LightningModule, within ``training_step``.
        losses: A dict or sequence of scalars, as for :meth:`MultiObjectiveOptimizer.backward`.
        extra_loss: A scalar whose gradient is added outside the surgery.
        counts: With several ranks and unequal batches, how many items each loss is the average of on this one.
        optimizer: One of ``self.optimizers()``. ``None``: the only one.

    Returns:
        The sum of the losses and the extra loss, a scalar.

    Raises:
        TypeError: The optimizer is not wrapped, or as :meth:`MultiObjectiveOptimizer.scalarize`.
        ValueError: There is not exactly one optimizer and none is given, or as
            :meth:`MultiObjectiveOptimizer.scalarize`.

    Cost:
        That of :meth:`MultiObjectiveOptimizer.backward`, in the scalar's backward pass.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)  # in the place of a LightningModule
        >>> optimizer = MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.MGDA())
        >>> first, second = model(torch.ones(1))
        >>> loss = scalarize(model, {"first": 4 * first + 2 * second, "second": -2 * first}, optimizer=optimizer)
        >>> loss.backward()  # the Trainer does this
        >>> model.weight.grad.flatten()
        tensor([-0.2000,  0.6000])
    """
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
            "scalarize: `module` must be in training, got one without optimizers. Outside of fit(), sum the losses."
        )
    raise ValueError(
        f"scalarize: `optimizer` must be given where there are several, got None with {len(found)}. Hand over one of "
        f"self.optimizers()."
    )


class SurgeryMonitor(Callback):
    r"""Logs what the surgeries do, on the Trainer's logging steps (``log_every_n_steps``).

    .. math:: \cos_{kl} = G_{kl} / \sqrt{G_{kk} G_{ll}}, \quad
        \mathrm{conflicting} = \#\{k < l : G_{kl} < 0\} / \binom{K}{2}

    For two losses named ``depth`` and ``labels``: ``surgery/weight/depth``, ``surgery/cosine/depth-labels``,
    ``surgery/conflicting`` and so on, see :func:`gradsurgery.integrations.metrics.surgery_metrics`. Of several
    surgeries of an optimizer in one batch, the last one is logged. With several wrapped optimizers, the names start
    with ``surgery/0/``, by position in ``configure_optimizers``.

    Guarantees:
        nothing is changed: parameters and states are bit-identical with and without it.
        surgery happens: in automatic optimization it raises where a step is trained without one.

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
            if surgery is self._seen.get(position):
                self._check(trainer, pl_module, outputs)
                continue
            self._seen[position] = surgery
            # What Lightning's own monitors ask, too: calls of log() for all pairs cost more than a small step.
            if surgery is not None and trainer._logger_connector.should_update_logs:
                prefix = self.prefix if len(optimizers) == 1 else f"{self.prefix}{position}/"
                pl_module.log_dict(surgery_metrics(surgery, prefix, max_losses=self.max_losses), batch_size=1)

    def _check(self, trainer: Any, pl_module: Any, outputs: Any) -> None:
        if pl_module.automatic_optimization and isinstance(outputs, Mapping) and outputs:
            raise RuntimeError(
                f"SurgeryMonitor: `training_step` must return what scalarize() gives, got a loss without surgery. "
                f"Return scalarize(self, losses) from {type(pl_module).__name__}.training_step."
            )


def _wrapped(trainer: Any) -> dict[int, MultiObjectiveOptimizer]:
    return {
        position: optimizer
        for position, optimizer in enumerate(trainer.optimizers)
        if isinstance(optimizer, MultiObjectiveOptimizer)
    }


__all__ = ["SurgeryMonitor", "scalarize"]
