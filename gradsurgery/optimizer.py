"""The wrapper that users see: losses in, directions in ``.grad``, then the wrapped optimizer's step."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from . import checkpoint
from .adapters import SurgeryClosure, SurgeryOnBackward
from .aggregators import Aggregator
from .delegation import DelegatingOptimizer, names_in, parameters_in
from .distributed import check_single_process
from .engines import Engine, PerLossGradients, Request, choose_engine
from .losses import Losses, LossValues, check_extra_loss, named_losses, values_of
from .ownership import Claim
from .scope import Scope
from .sharing import Sharing, parameters_of
from .surgery import Plan, Surgery, operate


@dataclass
class _Run:
    """All that changes from step to step, in one object: proxies that copy attributes then share it."""

    sharing: Sharing
    claim: Claim
    names: list[str] = field(default_factory=list)
    groups: tuple[str, ...] = ()
    last: Surgery | None = None
    workspace: dict[object, Tensor] = field(default_factory=dict)
    warned: bool = False


class MultiObjectiveOptimizer(DelegatingOptimizer):
    r"""Wraps an optimizer so that it steps along a direction made from the gradients of several losses.

    .. math:: \theta \leftarrow \mathrm{step}(\theta, d), \quad d = \mathrm{aggregator}(J), \quad
        J_k = \partial L_k / \partial \theta_{\text{shared}}

    Surgery happens on the shared parameters. These are, in this order: ``shared``, where it is given; what
    :func:`tag_shared` has tagged; otherwise what two or more losses reach, in this step or any before it. All
    other parameters that a loss reaches receive the plain sum of their gradients; those that no loss reaches
    keep ``.grad`` as it was.

    Guarantees:
        an optimizer: schedulers, hooks, scalers, checkpoints and clipping work as on the wrapped one.
        one loss: bit-identical to the wrapped optimizer, for every method that guarantees one_loss_is_identity.
        nothing half-written: when something raises, every ``.grad`` and the method's state are as before.

    Args:
        optimizer: The optimizer to wrap; the same object keeps the parameters and their state.
        aggregator: The method.
        shared: Modules or parameters that the losses share. ``None``: the tagged ones, or found automatically.
        engine: ``"loop"``, ``"func"``, an engine, or ``"auto"``: ``"loop"``, the most robust, and as fast as
            batching on a CPU.
        scope: One surgery over all shared parameters together, or one for each module or tensor.

    Raises:
        TypeError: ``optimizer`` or ``aggregator`` is of the wrong kind.
        ValueError: ``engine`` or ``scope`` is unknown, or ``shared`` is empty.

    Cost:
        With ``"loop"``, K backward passes and K x P numbers, P the number of shared parameters.

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
        aggregator: Aggregator,
        *,
        shared: nn.Module | Tensor | Iterable[nn.Module | Tensor] | None = None,
        engine: str | Engine = "auto",
        scope: Scope = "all",
    ) -> None:
        _check_kinds(optimizer, aggregator)
        if scope not in get_args(Scope):
            raise ValueError(
                f"MultiObjectiveOptimizer: `scope` must be one of {list(get_args(Scope))}, got {scope!r}."
            )
        super().__init__(optimizer)
        self._engine = choose_engine(engine)
        self._aggregator = aggregator
        self._scope = scope
        self._run = _Run(Sharing(shared), Claim(optimizer))

    @property
    def aggregator(self) -> Aggregator:
        """The method."""
        return self._aggregator

    @property
    def last_surgery(self) -> Surgery | None:
        """What the most recent surgery did, also when :meth:`scalarize` or a closure led to it."""
        return self._run.last

    def backward(
        self,
        losses: Losses,
        *,
        extra_loss: Tensor | None = None,
        grad_scaler: "torch.amp.GradScaler | None" = None,
        retain_graph: bool = False,
    ) -> Surgery:
        """Differentiates the losses and adds the direction to ``.grad``.

        Takes the place of ``sum(losses).backward()``. Called several times before a step, each call is one
        surgery and ``.grad`` adds up.

        Args:
            losses: A dict or sequence of scalars, or a callable that runs the forward pass and returns one.
                None stands for a loss that is absent in this step, and is not counted; a loss that does not
                require a gradient is a row of zeros, and is.
            extra_loss: A scalar whose gradient is added outside the surgery, on every parameter it reaches.
            grad_scaler: For float16 autocast. Gradients are scaled by it; the method sees unscaled ones.
            retain_graph: Whether the graph is needed again.

        Returns:
            What was done.

        Raises:
            TypeError: The losses or the extra loss are of the wrong kind.
            ValueError: A loss is not a scalar, none is present, or a parameter belongs to another wrapper now.
            RuntimeError: A loss depends on something that would be differentiated wrongly.
        """
        check_extra_loss(extra_loss)
        scale = _unscaled if grad_scaler is None else grad_scaler.scale
        return self._operate(losses, extra_loss, scale, retain_graph)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps the wrapped optimizer.

        Args:
            closure: Runs the forward pass, after ``zero_grad``. If it returns a dict, list or tuple of losses,
                they are differentiated here; if it returns a scalar or None, it has done its own backward
                (``engine="func"`` always differentiates). An optimizer that calls it several times in a step (LBFGS)
                gets the first call's weights in all, and their weighted sum as the loss: a line search then sees
                one function, if everything is shared. Task-specific parameters still get the plain sum of their
                gradients; with such, do without a line search.

        Returns:
            What the wrapped optimizer's step returns.

        Raises:
            TypeError: The closure returns something else.
            ValueError: The closure returns other losses than before in the same step.
        """
        if closure is None:
            return self._wrapped.step()

        def perform(losses: Losses, first: Surgery | None) -> Surgery:
            return self._operate(losses, None, _unscaled, retain_graph=False, first=first)

        return self._wrapped.step(SurgeryClosure(perform, closure, always=self._engine.needs_callable))

    step.hooked = True  # type: ignore[attr-defined]

    def scalarize(self, losses: LossValues, *, extra_loss: Tensor | None = None) -> Tensor:
        """Returns one scalar whose ordinary ``backward()`` performs the surgery.

        For trainers that want one loss to differentiate: what they multiply it by (a GradScaler's scale, one
        over the number of accumulation steps) multiplies the direction, and the method sees the gradients
        without it.

        Args:
            losses: As for :meth:`backward`, not a callable.
            extra_loss: As for :meth:`backward`.

        Returns:
            The sum of the losses and the extra loss, a scalar.

        Raises:
            TypeError: As :meth:`backward`, already here.
            ValueError: As :meth:`backward`, already here.
        """
        if self._engine.needs_callable:
            raise TypeError(
                "MultiObjectiveOptimizer: `engine` must not need a callable for scalarize(), got "
                f"{type(self._engine).__name__}. Use engine='loop'."
            )
        check_extra_loss(extra_loss)
        present = named_losses(losses)
        terms = [*present.scalars, *([] if extra_loss is None else [extra_loss.reshape(())])]
        value = values_of(terms).sum().to(torch.promote_types(terms[0].dtype, torch.float32))
        by_name: dict[str, Tensor | None] = dict.fromkeys(present.all_names)
        by_name.update(zip(present.names, present.scalars, strict=True))

        def perform(factor: Tensor) -> None:
            self._operate(by_name, extra_loss, lambda loss: loss * factor, retain_graph=False)

        handle = torch.zeros((), device=value.device, requires_grad=True)
        result: Tensor = SurgeryOnBackward.apply(handle, value, perform)  # type: ignore[no-untyped-call]
        return result

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._run.claim.renew()

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state, with the method's beside it; a plain optimizer can load it too."""
        return {
            **super().state_dict(),
            checkpoint.KEY: checkpoint.pack(
                self._aggregator,
                self._run.names,
                self._run.groups,
                self._run.sharing,
                parameters_in(self.param_groups),
            ),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint of a wrapper or of a plain optimizer; the latter leaves the method as it is.

        A checkpoint of another method loads with a warning, and the method starts afresh.
        """
        rest = {key: value for key, value in state_dict.items() if key != checkpoint.KEY}
        saved = state_dict.get(checkpoint.KEY)
        if saved is None:
            super().load_state_dict(rest)
            return
        parameters = parameters_in(self.param_groups)
        checkpoint.check(saved, len(parameters))
        with self._aggregator.transaction():
            checkpoint.load_method(saved, self._aggregator)
            super().load_state_dict(rest)
        self._run.sharing.discovered = WeakTensorKeyDictionary()
        for position in saved["shared"]:
            self._run.sharing.discovered[parameters[position]] = True
        self._run.names = list(saved["losses"])
        self._run.groups = tuple(saved["groups"])

    def __getstate__(self) -> dict[str, Any]:
        return {
            "optimizer": self._wrapped,
            "aggregator": self._aggregator,
            "engine": self._engine,
            "scope": self._scope,
            "sharing": self._run.sharing,
            "names": list(self._run.names),
            "groups": self._run.groups,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        DelegatingOptimizer.__init__(self, state["optimizer"])
        self._aggregator = state["aggregator"]
        self._engine = state["engine"]
        self._scope = state["scope"]
        self._run = _Run(state["sharing"], Claim(self._wrapped), names=state["names"], groups=state["groups"])

    def _operate(
        self,
        losses: Losses,
        extra_loss: Tensor | None,
        scale: Callable[[Tensor], Tensor],
        retain_graph: bool,
        first: Surgery | None = None,
    ) -> Surgery:
        check_single_process("MultiObjectiveOptimizer")
        names = names_in(self.param_groups)
        self._run.claim.check(names)
        request = Request(
            losses=losses,
            extra_loss=extra_loss,
            wrapped=parameters_in(self.param_groups),
            sharing=self._run.sharing,
            scale=scale,
            retain_graph=retain_graph,
            names=names,
            workspace=self._run.workspace,
        )
        found = self._engine.differentiate(request)
        self._warn_if_nothing_shared(found)
        with torch.no_grad():
            factor = scale(torch.ones((), device=found.values.device)).double()
            factor = torch.where(factor == 0, torch.ones_like(factor), factor)
            known, objectives = self._numbered(found)
            plan = Plan(
                objectives=objectives,
                scope=self._scope,
                sharing=self._run.sharing,
                wrapped=request.wrapped,
                names=names,
                factor=factor,
                first=first,
                last_groups=self._run.groups,
            )
            surgery = operate(found, self._aggregator, plan)
        self._run.names = known  # numbers by first appearance, for methods with a state per loss
        self._run.groups = surgery.groups or self._run.groups
        self._run.last = surgery
        return surgery

    def _numbered(self, found: PerLossGradients) -> tuple[list[str], list[int]]:
        """All names seen so far, in order of first appearance, and which of them the present losses are."""
        known = self._run.names
        known = known + [name for name in found.all_names if name not in known]
        return known, [known.index(name) for name in found.names]

    def _warn_if_nothing_shared(self, found: PerLossGradients) -> None:
        declared = self._run.sharing.explicit
        if found.blocks or declared is None or self._run.warned:
            return
        if not any(parameter.requires_grad for parameter in parameters_of(declared)):
            return  # frozen on purpose
        self._run.warned = True
        warnings.warn(
            "MultiObjectiveOptimizer: no loss reaches any of the parameters given as `shared`, so nothing was "
            "done but add the gradients. Does `shared` belong to the model that computed the losses?",
            UserWarning,
            stacklevel=4,
        )


def _unscaled(loss: Tensor) -> Tensor:
    return loss


def _check_kinds(optimizer: object, aggregator: object) -> None:
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, MultiObjectiveOptimizer):
        raise TypeError(
            f"MultiObjectiveOptimizer: `optimizer` must be a torch.optim.Optimizer that is not wrapped yet, got "
            f"{type(optimizer).__name__}."
        )
    if not isinstance(aggregator, Aggregator):
        got = f"the class {aggregator.__name__}" if isinstance(aggregator, type) else type(aggregator).__name__
        raise TypeError(
            f"MultiObjectiveOptimizer: `aggregator` must be an aggregator such as gs.UPGrad(), got {got}."
        )
