"""The wrapper that users see: losses in, directions in ``.grad``, then the wrapped optimizer's step."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from . import checkpoint
from .adapters import SurgeryClosure, SurgeryOnBackward
from .delegation import DelegatingOptimizer, names_in, parameters_in
from .distributed import Counts
from .eager import uncompiled
from .engines import Engine, Request
from .hooks import Hook
from .losses import Losses, LossValues, check_extra_loss, check_instances, named_losses, split_instances, values_of
from .ownership import Claim
from .run import Run
from .scalarizers import Scalarizer
from .scope import Scope
from .settings import Method, check_wrapping, settings_of
from .sharing import Sharing
from .surgery import Surgery

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MultiObjectiveOptimizer(DelegatingOptimizer):
    r"""Wraps an optimizer so that it steps along a direction made from the gradients of several losses.

    .. math:: \theta \leftarrow \mathrm{step}(\theta, d), \quad d = \mathrm{aggregator}(J), \quad
        J_k = \partial L_k / \partial \theta_{\text{shared}}

    Surgery happens on the shared parameters. These are, in this order: ``shared``, where it is given; what
    :func:`tag_shared` has tagged; otherwise what two or more losses reach, in this step or any before it. All
    other parameters that a loss reaches receive the plain sum of their gradients; those that no loss reaches
    keep ``.grad`` as it was.

    Losses may also come as one tensor, one for each sample of a batch: the inner products of all samples' gradients
    then take a single backward pass (see :class:`gradsurgery.engines.Instances`). All that the losses reach is shared
    unless declared otherwise. Methods must be without a state, as a sample is not the same objective in every step.

    Where ``torch.distributed`` is set up, each surgery is one of the losses averaged over the ranks, with
    ``DistributedDataParallel`` or without. All ranks take part in each :meth:`backward`.

    Guarantees:
        an optimizer: schedulers, hooks, scalers, checkpoints and clipping work as on the wrapped one.
        one loss: bit-identical to the wrapped optimizer, for every method that guarantees one_loss_is_identity.
        nothing half-written: when something raises, every ``.grad`` and the method's state are as before.

    Args:
        optimizer: The optimizer to wrap; the same object keeps the parameters and their state.
        aggregator: The method: an aggregator, or a scalarizer, which weighs the losses in one backward pass, on all
            parameters alike.
        shared: Modules or parameters that the losses share. ``None``: the tagged ones, or found automatically.
        engine: How gradients are obtained: ``"loop"``, ``"ghost"``, ``"batched"``, ``"func"``, ``"sharded"``, an
            engine, or ``"auto"``, which predicts whether ``"ghost"`` or ``"loop"`` is cheaper, and takes
            ``"sharded"`` for DTensors. Not for a scalarizer.
        scope: One surgery over all shared parameters together, or one for each module or tensor.
        process_group: The ranks whose losses are averaged. ``None``: all, where ``torch.distributed`` is set up.

    Raises:
        TypeError: ``optimizer``, ``aggregator`` or ``process_group`` is of the wrong kind.
        ValueError: ``engine`` or ``scope`` is unknown, or not to be had with the method, or ``shared`` is empty.

    Cost:
        With ``"loop"``, K backward passes and K x P numbers, P the number of shared parameters; with ``"ghost"``, K
        backward passes that leave the weights out, and K times the layers' outputs. With N ranks, each sends
        ``(N-1)/N ((K+1) P + 2 P_specific)`` numbers for P shared and P_specific other parameters, and ``O(K^2)``; for
        a method that remembers gradients, or needs all of them, ``(N-1)/N 2 (K P + P_specific)``.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> optimizer = MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), MGDA())
        >>> outputs = model(torch.ones(1, 1))
        >>> surgery = optimizer.backward({"first": outputs[0, 0] * 3, "second": outputs[0, 1]})
        >>> surgery.weights
        tensor([0.1000, 0.9000], dtype=torch.float64)
        >>> optimizer.step()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        aggregator: Method,
        *,
        shared: nn.Module | Tensor | Iterable[nn.Module | Tensor] | None = None,
        engine: str | Engine = "auto",
        scope: Scope = "all",
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        again = isinstance(optimizer, MultiObjectiveOptimizer)
        check_wrapping(optimizer, aggregator, engine, scope, again=again)
        super().__init__(optimizer)
        settings = settings_of(aggregator, engine, scope, process_group, "MultiObjectiveOptimizer")
        self._run = Run(settings, Sharing(shared), Claim(optimizer))

    @property
    def aggregator(self) -> Method:
        """The method."""
        return self._run.settings.method

    @property
    def last_surgery(self) -> Surgery | None:
        """What the most recent surgery did, also when :meth:`scalarize` or a closure led to it."""
        return self._run.last

    @uncompiled
    def backward(
        self,
        losses: Losses,
        *,
        extra_loss: Tensor | None = None,
        grad_scaler: "torch.amp.GradScaler | None" = None,
        retain_graph: bool = False,
        counts: Counts | None = None,
    ) -> Surgery:
        """Differentiates the losses and adds the direction to ``.grad``.

        Takes the place of ``sum(losses).backward()``. Called several times before a step, each call is one
        surgery and ``.grad`` adds up.

        Args:
            losses: A dict or sequence of scalars, or a callable that runs the forward pass and returns one.
                None stands for a loss that is absent in this step, and is not counted; a loss that does not
                require a gradient is a row of zeros, and is. Or one tensor with a loss for each sample ``(N,)``,
                or several ``(N, K)``, of samples that do not mix: see above.
            extra_loss: A scalar whose gradient is added outside the surgery, on every parameter it reaches.
            grad_scaler: For float16 autocast. Gradients are scaled by it; the method sees unscaled ones.
            retain_graph: Whether the graph is needed again.
            counts: With several ranks, how many items each loss is the average of on this one: one number for all,
                and then for the extra loss too, or one a loss, 0 for None. ``None``: as many on all ranks.

        Returns:
            What was done.

        Raises:
            TypeError: The losses or the extra loss are of the wrong kind, or they are one tensor and the method
                remembers something of each loss, or needs the gradients themselves.
            ValueError: A loss is not a scalar, none is present, a parameter belongs to another wrapper now, or the
                method remembers gradients and a shared parameter is not the optimizer's.
            RuntimeError: A loss depends on something that would be differentiated wrongly, the method remembers
                gradients and one is sparse, or the losses are one tensor and samples mix.
        """
        return self._run.perform(
            self._request(
                losses,
                extra_loss=extra_loss,
                scale=_scale_of(grad_scaler),
                retain_graph=retain_graph,
                counts=counts,
            )
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps the wrapped optimizer.

        Args:
            closure: Runs the forward pass, after ``zero_grad``. If it returns a dict, list or tuple of losses,
                they are differentiated here; if it returns a scalar or None, it has done its own backward
                (``engine="func"`` always differentiates). An optimizer that calls it several times in a step (LBFGS)
                gets the first call's weights in all, and their weighted sum as the loss: a line search then sees
                one function, if everything is shared. Task-specific parameters still get the plain sum of their
                gradients; with such, do without a line search. For a scalarizer that takes a second look (FAMO), the
                closure runs once more after the step, without gradients; what a forward pass does beside its losses
                (dropout's draws, BatchNorm's running statistics) happens in that pass too.

        Returns:
            What the wrapped optimizer's step returns.

        Raises:
            TypeError: The closure returns something else.
            ValueError: The closure returns other losses than before in the same step.
        """
        if closure is None:
            return self._wrapped.step()

        def perform(losses: Losses, first: Surgery | None) -> Surgery:
            return self._run.perform(self._request(losses), first)

        always = self._run.settings.engine.needs_callable
        operating = SurgeryClosure(perform, closure, always=always)
        result = self._wrapped.step(operating)
        if operating.several and isinstance(self.aggregator, Scalarizer) and self.aggregator.wants_second_look:
            parameters = parameters_in(self.param_groups)
            gradients = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None  # the closure's zero_grad may write in place
            try:
                with torch.no_grad():
                    self.update(closure())
            finally:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
        return result

    step.hooked = True  # type: ignore[attr-defined]

    @uncompiled
    def scalarize(
        self, losses: LossValues, *, extra_loss: Tensor | None = None, counts: Counts | None = None
    ) -> Tensor:
        """Returns one scalar whose ordinary ``backward()`` performs the surgery.

        For trainers that want one loss to differentiate: what they multiply it by (a GradScaler's scale, one
        over the number of accumulation steps) multiplies the direction, and the method sees the gradients
        without it.

        Args:
            losses: As for :meth:`backward`, not a callable.
            extra_loss: As for :meth:`backward`.
            counts: As for :meth:`backward`.

        Returns:
            The sum of the losses and the extra loss, a scalar.

        Raises:
            TypeError: As :meth:`backward`, already here.
            ValueError: As :meth:`backward`, already here.
        """
        engine = self._run.settings.engine
        if engine.needs_callable:
            raise TypeError(
                "MultiObjectiveOptimizer: `engine` must not need a callable for scalarize(), got "
                f"{type(engine).__name__}. Use engine='loop'."
            )
        agreement = self._request(losses, extra_loss=extra_loss, counts=counts).agreement
        with agreement or nullcontext():  # tells the other ranks, which go on to their backward()
            check_extra_loss(extra_loss)
            if isinstance(losses, Tensor):
                check_instances(losses)
            several = agreement is not None
            present = named_losses(
                split_instances(losses) if isinstance(losses, Tensor) else losses, may_be_absent=several
            )
        terms = [*present.scalars, *([] if extra_loss is None else [extra_loss.reshape(())])]
        terms = terms or [parameters_in(self.param_groups)[0].new_zeros(())]
        value = values_of(terms).sum().to(torch.promote_types(terms[0].dtype, torch.float32))
        named = losses if isinstance(losses, Tensor) else present.by_name()

        def perform(factor: Tensor) -> None:
            options = {"extra_loss": extra_loss, "counts": counts}
            self._run.perform(self._request(named, scale=lambda loss: loss * factor, **options))

        handle = torch.zeros((), device=value.device, requires_grad=True)
        result: Tensor = SurgeryOnBackward.apply(handle, value, perform)  # type: ignore[no-untyped-call]
        return result

    @uncompiled
    def jacobian(self, losses: Losses, *, grad_scaler: "torch.amp.GradScaler | None" = None) -> list[Tensor]:
        """Differentiates the losses and changes no ``.grad`` and no state; what it finds to be shared stays shared.

        Row k is the gradient of the k-th of the losses that are present.

        Args:
            losses: As for :meth:`backward`; their graph is freed.
            grad_scaler: For float16 autocast. The losses are scaled by it, and the result is divided by its scale.

        Returns:
            Per-loss gradients ``(K, *shape)`` of the shared parameters, in the optimizer's order, in
            float32 at least if they were scaled.

        Raises:
            TypeError: As :meth:`backward`.
            ValueError: As :meth:`backward`.
            RuntimeError: As :meth:`backward`.
        """
        return list(self._run.jacobian(self._request(losses, scale=_scale_of(grad_scaler)))[1].values())

    @uncompiled
    def observe(self, first: Losses, second: Losses, *, grad_scaler: "torch.amp.GradScaler | None" = None) -> None:
        """Shows the method the gradients of two batches, for those that need them before :meth:`backward`.

        SDMGrad and MoDo step their weights on two independent batches, and apply them to a third one.

        Args:
            first: The losses on one batch, as for :meth:`backward`.
            second: The same losses on another batch, at the same parameters.
            grad_scaler: As for :meth:`jacobian`.

        Raises:
            TypeError: The method does not look at several batches; else as :meth:`backward`.
            ValueError: The two hold different losses; else as :meth:`backward`.
            RuntimeError: As :meth:`backward`.
        """
        scale = _scale_of(grad_scaler)
        self._run.observe(self._request(first, scale=scale), self._request(second, scale=scale))

    def register_surgery_hook(self, hook: Hook, *, every: int = 1, scope: Scope | None = None) -> RemovableHandle:
        """Calls a function with what surgeries did, after the gradients were written.

        Numbers and gradients are bit-identical with and without it. Neither ``deepcopy`` nor pickling copies hooks.

        Args:
            hook: Gets the :class:`Surgery`; what it raises leaves :meth:`backward`.
            every: It is called after the first surgery from now on, and then after each so many, >= 1.
            scope: ``None``: it gets the surgery as it is, which costs nothing. Otherwise the Gramian is there in this
                scope, ``(K, K)`` or one a group: where the surgery itself has none of this kind, it is formed for
                the hook, for a scalarizer in a look at the same graph. None only where nothing is shared.

        Returns:
            A handle, whose ``remove()`` takes the hook away.

        Raises:
            TypeError: ``hook`` cannot be called.
            ValueError: ``every`` or ``scope`` is none.
        """
        return self._run.hooks.register(hook, every, scope, "register_surgery_hook")

    @uncompiled
    def update(self, losses: LossValues, *, counts: Counts | None = None) -> None:
        """Shows the losses after the step to a scalarizer that takes a second look (FAMO); others do not mind.

        Args:
            losses: The losses on the same batch as before the step.
            counts: As for :meth:`backward`.

        Raises:
            TypeError: The losses are of the wrong kind.
            ValueError: A loss is not a scalar, or none is present.
        """
        self._run.update(self._request(losses, counts=counts))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if self._run.claim is not None:
            self._run.claim.renew()

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state, with the method's beside it; a plain optimizer can load it too.

        ``torch.distributed.checkpoint`` drops the latter: see :class:`SurgeryState`.
        """
        return {**super().state_dict(), checkpoint.KEY: self._packed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint of a wrapper or of a plain optimizer; the latter leaves the method as it is.

        A checkpoint of another method loads with a warning, and the method starts afresh.
        """
        rest = {key: value for key, value in state_dict.items() if key != checkpoint.KEY}
        saved = state_dict.get(checkpoint.KEY)
        with nullcontext() if saved is None else self._unpacking(saved):
            super().load_state_dict(rest)
        self._run.settings.peers.have_followed = False

    def _packed(self) -> dict[str, Any]:
        return checkpoint.pack(self._run, parameters_in(self.param_groups))

    def _unpacking(self, saved: dict[str, Any]) -> AbstractContextManager[None]:
        return checkpoint.unpacking(saved, self._run, parameters_in(self.param_groups))

    def __getstate__(self) -> dict[str, Any]:
        return {
            "optimizer": self._wrapped,
            "settings": self._run.settings,
            "sharing": self._run.sharing,
            "names": list(self._run.names),
            "groups": self._run.groups,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        DelegatingOptimizer.__init__(self, state["optimizer"])
        claim = Claim(self._wrapped)
        self._run = Run(state["settings"], state["sharing"], claim, names=state["names"], groups=state["groups"])

    def _request(self, losses: Losses, **options: Any) -> Request:
        groups = self.param_groups
        return self._run.request(losses, parameters_in(groups), names_in(groups), **options)


def _scale_of(grad_scaler: "torch.amp.GradScaler | None") -> Callable[[Tensor], Tensor] | None:
    return None if grad_scaler is None else grad_scaler.scale
