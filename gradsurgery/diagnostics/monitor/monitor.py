"""Watches how losses stand to each other while a model trains."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...looking import Look
from ...losses import LossValues
from ...optimizer import MultiObjectiveOptimizer
from ...scope import Scope
from ...surgery import Surgery
from ..history.history import History
from ..metrics import group_metrics, surgery_metrics
from .averages import Averages
from .blocks import WatchedBlocks, blocks_in
from .loggers import writer_for
from .options import check_options, checked_names, refuse_shared, renamed
from .recording import Recording
from .text import averaged_metrics, described


class ConflictMonitor:
    r"""Records which losses conflict, how often and where, and by how much their gradients differ in length.

    .. math:: \cos_{ij} = G_{ij} / (n_i n_j), \quad n_i = \sqrt{G_{ii}}, \quad G = J J^\top

    What is watched decides where the inner products come from. A :class:`MultiObjectiveOptimizer` has formed them for
    its surgery, and so has a model with an :class:`ImpartialityBlock`, of the gradients at its point of the network:
    nothing else has to be called. Any other model is trained on a plain sum: call :meth:`record` with the losses,
    before the loop's own backward pass::

        monitor = gs.ConflictMonitor(model, every=50)
        for batch in loader:
            losses = {"depth": ..., "labels": ...}
            monitor.record(losses)
            sum(losses.values()).backward()
            ...
        print(monitor)

    Steps count surgeries, calls of :meth:`record`, or backward passes through the blocks, from 0; where gradients
    accumulate, a step of the optimizer is several of them. What happens in several blocks in one backward pass is one
    step, and each block a group of it.

    Guarantees:
        nothing is changed: parameters, gradients, buffers and the random state are bit-identical with and without it.
            Where gradients are obtained for the monitor alone, hooks on tensors and modules fire for these, too, and
            what ``retain_grad()`` keeps of inner tensors has them in it.
        averages: each is over the recorded steps in which both losses were present with gradients that were neither
            zero nor overflown. They go on when the history forgets, and after :meth:`load_state_dict`.

    Args:
        watched: A wrapped optimizer, or a model.
        every: From one recorded step to the next, >= 1.
        scope: ``"all"``: one Gramian over everything that is shared; ``"module"`` or ``"tensor"``: one for each. What
            the surgery has not formed itself is formed for the monitor. ``None``: as the surgery has it, if at all.
        decay: The weight of a recorded step relative to the next in :attr:`averages`, in [0, 1).
        loggers: Where each recorded step is written at once, see :func:`gradsurgery.diagnostics.loggers.writer_for`.
        prefix: What the names of what is written start with.
        names: In the place of ``"0"``, ``"1"`` and so on, where the losses come as a list, or for a block's branches.
        shared: What the losses share, for a model without blocks. ``None``: as for :class:`MultiObjectiveOptimizer`.
        max_losses: Up to so many losses, >= 0, each one's numbers and each pair's cosine are written to loggers.
        keep: How many recorded steps :attr:`history` keeps, the oldest go first. ``None``: 10,000, or as many of them
            as fit into 64 MB.

    Raises:
        TypeError: ``watched`` or a logger is of the wrong kind.
        ValueError: An option is out of range or cannot be had with what is watched.

    Cost:
        Where the Gramian exists, some 10 microseconds a recorded step, 0.2 for each inner product where there are
        many, and no wait for a GPU; with loggers, what they take. Where it does not, as for a plain sum, a
        scalarizer, or another ``scope``, up to K backward passes each ``every`` steps. With several ranks all call
        :meth:`record`, for the whole batch; give loggers to one of them.

    Example:
        >>> x = nn.Parameter(torch.ones(2))
        >>> optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD([x], lr=0.1), gs.UPGrad())
        >>> monitor = ConflictMonitor(optimizer, every=1)
        >>> for _ in range(3):
        ...     _ = optimizer.backward({"up": 4 * x[0] + 2 * x[1], "down": -2 * x[0]})
        >>> print(monitor)
        ConflictMonitor: 3 steps recorded, 3 in the history
        <BLANKLINE>
        pair       cosine  conflicting  length ratio  magnitude similarity
        up - down   -0.89         100%          2.24                  0.75
        <BLANKLINE>
        loss  value  gradient  weight
        up        6      4.47     0.7
        down     -2         2     1.5
        >>> monitor.history.cosines[:, 0, 0, 1]
        tensor([-0.8944, -0.8944, -0.8944], dtype=torch.float64)
    """

    def __init__(
        self,
        watched: MultiObjectiveOptimizer | nn.Module,
        *,
        every: int = 10,
        scope: Scope | None = "all",
        decay: float = 0.9,
        loggers: Iterable[Any] = (),
        prefix: str = "surgery/",
        names: Sequence[str] | None = None,
        shared: nn.Module | Tensor | Iterable[nn.Module | Tensor] | None = None,
        max_losses: int = 10,
        keep: int | None = None,
    ) -> None:
        check_options(every, scope, decay, max_losses, keep)
        self.every = every
        self.scope = scope
        self.prefix = prefix
        self.max_losses = max_losses
        self._names = checked_names(names)
        self._writers = [writer_for(logger, prefix) for logger in loggers]
        self._averages = Averages(decay)
        self._recording = Recording(keep, self._averages.update)
        self._calls = 0
        self._recorded = 0
        self._look: Look | None = None
        self._blocks: WatchedBlocks | None = None
        self._kind = type(watched).__name__
        self._handles = self._watch(watched, shared)

    def _watch(self, watched: Any, shared: Any) -> Sequence[RemovableHandle]:
        if isinstance(watched, MultiObjectiveOptimizer):
            refuse_shared(shared, "an optimizer, which knows itself")
            return [watched.register_surgery_hook(self._seen, every=self.every, scope=self.scope)]
        if not isinstance(watched, nn.Module):
            if isinstance(getattr(watched, "optimizer", None), MultiObjectiveOptimizer):
                raise TypeError(
                    f"ConflictMonitor: `watched` must be the MultiObjectiveOptimizer itself, got {self._kind} around "
                    f"it. Hand over optimizer.optimizer."
                )
            raise TypeError(
                f"ConflictMonitor: `watched` must be a MultiObjectiveOptimizer or a model, got {self._kind}. "
                f"Where it is trained on a plain sum, hand over the model and call record(losses) before backward()."
            )
        blocks = blocks_in(watched)
        if not blocks:
            self._look = Look(watched, shared=shared, caller="ConflictMonitor")
            return []
        refuse_shared(shared, "a model with blocks, whose branches share the point they are at")
        if self.scope not in (None, "all"):
            raise ValueError(
                f"ConflictMonitor: `scope` must be 'all' for a model with blocks, which see gradients of a "
                f"representation and not of parameters, got {self.scope!r}."
            )
        self._blocks = WatchedBlocks(blocks, self.every, self._seen)
        if self._names is not None and len(self._names) != self._blocks.branches:
            raise ValueError(
                f"ConflictMonitor: `names` must hold one for each of the {self._blocks.branches} branches, got "
                f"{list(self._names)}."
            )
        return self._blocks.handles

    @property
    def history(self) -> History:
        """What was recorded; a GPU is waited for here."""
        self._finish()
        return self._recording.history()

    @property
    def averages(self) -> Averages:
        """Exponentially averaged cosines, norms, weights and conflicts, over all that was recorded."""
        self._finish()
        return self._averages

    def record(self, losses: LossValues, *, grad_scaler: "torch.amp.GradScaler | None" = None) -> None:
        """Looks at the losses of a model that is trained on their sum, on each ``every``-th call.

        To be called before the loop's own backward pass, whose graph it keeps.

        Args:
            losses: As for :meth:`gradsurgery.MultiObjectiveOptimizer.backward`, not a callable, and not scaled.
            grad_scaler: For float16 autocast, in which small gradients would be lost. What is recorded is unscaled.

        Raises:
            TypeError: The losses are of the wrong kind.
            ValueError: No loss requires a gradient, or is a scalar.
            RuntimeError: What is watched records by itself, the monitor is closed, or the graph is gone, as after the
                loop's own backward pass.
        """
        call = self._calls
        if self._look is None:
            self._refuse_to_record()
        self._calls = call + 1
        if call % self.every == 0 and self._look is not None:
            self._seen(_looked_at(self._look, losses, self.scope or "all", grad_scaler), call)

    def close(self) -> None:
        """Stops watching; what was recorded stays. To be called twice does no harm."""
        self._finish()
        for handle in self._handles:
            handle.remove()
        self._handles, self._look, self._kind = [], None, ""

    def state_dict(self) -> dict[str, Any]:
        """The averages and how many steps there were, for a checkpoint; not the history."""
        return {"calls": self._calls, "recorded": self._recorded, "averages": self.averages.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there. The first surgery afterwards is recorded, and then each ``every``-th.

        Recorded surgeries are numbered in multiples of ``every`` as before, the first as if it were the next one due.
        """
        self._finish()
        self._calls, self._recorded = int(state["calls"]), int(state["recorded"])
        self._averages.load_state_dict(state["averages"])

    def _seen(self, surgery: Surgery, step: int | None = None) -> None:
        """Keeps what a surgery did; without loggers, nothing here waits for a GPU."""
        step = self._recorded * self.every if step is None else step
        self._recorded += 1
        if self._names is not None:
            surgery = replace(surgery, names=renamed(surgery.names, self._names))
        self._recording.add(step, surgery)
        if self._writers:
            self._recording.fold()
            self._write(step, surgery)

    def _write(self, step: int, surgery: Surgery) -> None:
        options = {"max_losses": self.max_losses}
        metrics = surgery_metrics(surgery, self.prefix, **options)
        metrics |= group_metrics(surgery, self.prefix, **options)
        metrics |= averaged_metrics(self._averages, self.prefix, **options)
        for write in self._writers:
            write(metrics, step)

    def _finish(self) -> None:
        if self._blocks is not None:
            self._blocks.finish()
        self._recording.fold()

    def _refuse_to_record(self) -> None:
        if not self._kind:
            raise RuntimeError(
                "ConflictMonitor.record: the monitor must be open, got one after close(). Make a new one."
            )
        raise RuntimeError(
            f"ConflictMonitor.record: `watched` must be a model that is trained on a plain sum, got {self._kind}, "
            f"whose surgeries are recorded as they happen. Leave the call out."
        )

    def __enter__(self) -> "ConflictMonitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ConflictMonitor({self._kind or 'closed'}, every={self.every}, scope={self.scope!r})"

    def __str__(self) -> str:
        """The averages as a table."""
        history = self.history
        if not self._averages.steps:
            return "ConflictMonitor: nothing recorded yet"
        overflows = f", {history.overflows} of them overflown" if history.overflows else ""
        steps = f"{self._averages.steps} step{'s' if self._averages.steps > 1 else ''}"
        head = f"ConflictMonitor: {steps} recorded, {len(history)} in the history{overflows}"
        return f"{head}\n\n{described(self._averages)}"


def _looked_at(look: Look, losses: LossValues, scope: Scope, grad_scaler: "torch.amp.GradScaler | None") -> Surgery:
    try:
        return look.gramian(losses, scope=scope, retain_graph=True, grad_scaler=grad_scaler)
    except RuntimeError as error:
        if "a second time" not in str(error):
            raise
        raise RuntimeError(
            "ConflictMonitor.record: `losses` must still have their graph, got losses after a backward pass that has "
            "freed it. Call record(losses) before the loop's own backward()."
        ) from error


__all__ = ["ConflictMonitor"]
