"""Gradient surgery in the Trainer of Transformers, for models that return several losses.

::

    trainer = MultiObjectiveTrainer(model, args, train_dataset=dataset, aggregator=gs.UPGrad())

where the model returns ``{"loss": {"tags": ..., "topic": ...}, ...}``, a dict in the place of the sum.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradsurgery import Aggregator, MultiObjectiveOptimizer, Surgery
from gradsurgery.diagnostics.metrics import surgery_metrics
from gradsurgery.scalarizers import Scalarizer

try:
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        "gradsurgery.integrations.transformers: transformers and accelerate must be installed, got one of them or "
        'none. Run: pip install "gradsurgery[transformers]"'
    ) from error

from .accelerate import prepared_wrapper
from .losses import Losses, total

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

__all__ = ["MultiObjectiveMixin", "MultiObjectiveTrainer"]


class MultiObjectiveMixin(_Base):
    """Makes a Trainer train on several losses: ``class MyTrainer(MultiObjectiveMixin, Trainer)``.

    Where a Trainer expects a loss, from the model or from ``compute_loss_func``, it takes a dict of them. A Trainer
    that has a ``compute_loss`` of its own overrides :meth:`compute_losses` instead. What the Trainer logs is the sum,
    and beside it what :func:`gradsurgery.diagnostics.surgery_metrics` gives of the latest surgery; what it
    evaluates is the sum. While gradients accumulate, each batch is one surgery.

    Guarantees:
        a plain loop: bit-identical to one with ``optimizer.backward``, with accumulation, clipping, bfloat16 and
            schedulers, and after resuming from a checkpoint, which holds the method's state and generator.
        data parallel: under ``torchrun``, several processes do what one does with all of a batch, up to rounding.

    Args:
        args: As for the Trainer.
        aggregator: The method, which starts afresh with each optimizer that the Trainer creates. ``None``: the
            Trainer is given a :class:`gradsurgery.MultiObjectiveOptimizer` in ``optimizers``.
        shared: As for :class:`gradsurgery.MultiObjectiveOptimizer`.
        engine: As for :class:`gradsurgery.MultiObjectiveOptimizer`.
        scope: As for :class:`gradsurgery.MultiObjectiveOptimizer`.
        kwargs: As for the Trainer.

    Raises:
        TypeError: ``aggregator`` is no method, or of it and a wrapped optimizer there is neither, or both; in
            training, the losses are of the wrong kind.
        ValueError: An option of the Trainer or the method cannot be had with the other; in training, the model
            returned no loss.
        RuntimeError: In training, the model is sharded, another library does the backward pass, or there was no
            surgery.

    Cost:
        That of :meth:`gradsurgery.MultiObjectiveOptimizer.backward`.

    Example:
        >>> from transformers import PrinterCallback, TrainingArguments
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk = nn.Linear(1, 2, bias=False)
        ...         _ = nn.init.zeros_(self.trunk.weight)
        ...
        ...     def forward(self, x):
        ...         first, second = self.trunk(x).mean(0)
        ...         return {"loss": {"first": 4 * first + 2 * second, "second": -2 * first}}
        >>> args = TrainingArguments(
        ...     getfixture("tmp_path"), max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0.0, use_cpu=True,
        ...     disable_tqdm=True, report_to=[], save_strategy="no", logging_strategy="no",
        ... )
        >>> model = Model()
        >>> trainer = MultiObjectiveTrainer(model, args, train_dataset=[{"x": [1.0]}], aggregator=gs.UPGrad())
        >>> trainer.remove_callback(PrinterCallback)
        >>> _ = trainer.train()
        >>> model.trunk.weight.data.T
        tensor([[ 0.2000, -1.4000]])
    """

    def __init__(
        self,
        *args: Any,
        aggregator: Aggregator | Scalarizer | None = None,
        shared: nn.Module | Tensor | Iterable[nn.Module | Tensor] | None = None,
        engine: Any = "auto",
        scope: Any = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._aggregator = aggregator
        self._surgical = {"shared": shared, "engine": engine, "scope": scope}
        wrapper = self._wrapper()
        if (wrapper is None) == (aggregator is None):
            got = "neither" if wrapper is None else "both"
            raise TypeError(
                f"{type(self).__name__}: `aggregator` must be given unless `optimizers` holds a "
                f"MultiObjectiveOptimizer, got {got}. Pass aggregator=gs.UPGrad()."
            )
        self._check_options(aggregator if wrapper is None else wrapper.aggregator)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Creates the optimizer as the Trainer does, and wraps it."""
        optimizer: Optimizer = super().create_optimizer(*args, **kwargs)
        if self._wrapper() is None and self._aggregator is not None:
            self._aggregator.reset()
            self.optimizer = optimizer = MultiObjectiveOptimizer(optimizer, self._aggregator, **self._surgical)
        return optimizer

    def compute_losses(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> tuple[Losses, Any]:
        """Runs the model and returns its losses and outputs; to be overridden as ``compute_loss`` is in a Trainer.

        Args:
            model: The model.
            inputs: Its inputs.
            num_items_in_batch: What to divide by the sum over items, where the Trainer asks for that.

        Returns:
            The losses, as for :meth:`gradsurgery.MultiObjectiveOptimizer.scalarize`, and the outputs.

        Raises:
            ValueError: The model returned none.
        """
        inputs, labels = dict(inputs), None
        if self.compute_loss_func is not None:
            labels = inputs.pop("labels", None)
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            inputs["num_items_in_batch"] = num_items_in_batch
        outputs = model(**inputs)
        if self.compute_loss_func is not None:
            losses = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
        elif not isinstance(outputs, Mapping):
            losses = outputs[0]
        elif outputs.get("loss") is not None:
            losses = outputs["loss"]
        else:
            raise ValueError(
                f"{type(self).__name__}: the model must return its losses under 'loss', got only {list(outputs)} for "
                f"the inputs {list(inputs)}. Columns of the dataset that are no argument of forward() are left out: "
                f"name labels as it does, or set remove_unused_columns=False."
            )
        return losses, outputs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of the losses, whose backward pass performs the surgery."""
        losses, outputs = self.compute_losses(model, inputs, num_items_in_batch)
        losses = self._several(losses)
        by_items = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        if self.args.average_tokens_across_devices and by_items and num_items_in_batch is not None:
            losses = _times(losses, self.accelerator.num_processes)  # which then average
        if torch.is_grad_enabled():
            loss = prepared_wrapper(type(self).__name__, self.accelerator, self.optimizer).scalarize(losses)
        else:
            loss = total(losses)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Trains on one batch as the Trainer does, and raises if that was without a surgery."""
        before = self._last_surgery()
        loss: Tensor = super().training_step(*args, **kwargs)
        if self._last_surgery() is before:
            raise RuntimeError(
                f"{type(self).__name__}: `compute_loss` must return what that of MultiObjectiveMixin does, got a "
                f"loss without surgery. Override compute_losses(), which returns the losses and the outputs."
            )
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs what the Trainer does, in training with what the latest surgery did."""
        surgery = self._last_surgery()
        if "loss" in logs and surgery is not None:
            logs = logs | surgery_metrics(surgery)
        super().log(logs, *args, **kwargs)

    def _wrapper(self) -> MultiObjectiveOptimizer | None:
        inner = self.optimizer.optimizer if isinstance(self.optimizer, AcceleratedOptimizer) else self.optimizer
        return inner if isinstance(inner, MultiObjectiveOptimizer) else None

    def _last_surgery(self) -> Surgery | None:
        wrapper = self._wrapper()
        return None if wrapper is None else wrapper.last_surgery

    def _several(self, losses: Any) -> Losses:
        if isinstance(losses, Mapping | list | tuple) or (isinstance(losses, Tensor) and losses.ndim):
            return losses
        got = "one scalar" if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(
            f"{type(self).__name__}: the loss must be a dict or list of scalars, or one tensor with a loss for each "
            f"sample, got {got}. Return {{'loss': {{'tags': ..., 'topic': ...}}}} in the place of the sum."
        )

    def _check_options(self, method: Any) -> None:
        """Raises where an option would change what is trained, or keep it from being trained at all."""
        name, optim = type(self).__name__, str(getattr(self.args.optim, "value", self.args.optim))
        if not isinstance(method, Aggregator | Scalarizer):
            got = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
            raise TypeError(f"{name}: `aggregator` must be a method, got {got}. Pass aggregator=gs.UPGrad().")
        if isinstance(method, Scalarizer) and method.wants_second_look:
            raise ValueError(
                f"{name}: `aggregator` must need the losses once a step, got {type(method).__name__}, which looks at "
                f"them again after it. A Trainer runs the model once: take another method."
            )
        if "layerwise" in optim or "lomo" in optim:
            raise ValueError(
                f"{name}: `optim` must step after the backward pass, got {optim}, which steps within it. Take "
                f"another one, such as adamw_torch."
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{name}: one process must train on one GPU, got {self.args.n_gpu}. Launch with torchrun, or set "
                f"CUDA_VISIBLE_DEVICES."
            )
        if self.label_smoother is not None:
            raise ValueError(
                f"{name}: `label_smoothing_factor` must be 0, got {self.args.label_smoothing_factor}, which says not "
                f"which loss to smooth. Smooth in the model: cross_entropy(..., label_smoothing=)."
            )


class MultiObjectiveTrainer(MultiObjectiveMixin, Trainer):
    """A Trainer with the mix-in: see :class:`MultiObjectiveMixin`."""


def _times(losses: Losses, factor: int) -> Losses:
    if isinstance(losses, Tensor):
        return losses * factor
    if isinstance(losses, Mapping):
        return {name: None if loss is None else loss * factor for name, loss in losses.items()}
    return [None if loss is None else loss * factor for loss in losses]
