"""What one wrapper does and remembers from step to step, in one object that proxies which copy attributes share."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from .aggregators import Aggregator, GramianAggregator
from .distributed import Agreement, Counts, Ranks, described, described_parameters, state_of_first
from .eager import uncompiled
from .engines import PerLossGradients, Request, all_items
from .engines.averages import averages
from .engines.donation import donation_explained
from .engines.static_graph import first_reduction_restored
from .engines.workspace import Workspace
from .hooks import SurgeryHooks, Watcher
from .losses import Losses, check_extra_loss, check_instances, named_losses, split_instances
from .ownership import Claim
from .refusals import check_instances_allowed, observing, warned_of_nothing_shared
from .scalarizers import Scalarizer
from .scope import Scope
from .settings import Settings
from .sharing import Sharing
from .surgery import Plan, Surgery, in_order, look_at, operate, unscaled
from .weighing import Numbering, weigh


@dataclass
class Run:
    """The surgeries of one wrapper.

    Args:
        settings: What the user chose.
        sharing: Which parameters are shared.
        claim: On the parameters, against a second wrapper. None: for who only looks.
        names: All losses seen so far by first appearance: their numbers, for methods with a state per loss.
        groups: What each surgery of the last step was.
        last: What the last surgery did.
        workspace: Buffers that may be used again in the next step.
        warned: Whether the user was told that nothing is shared.
        hooks: Who is shown what the surgeries did.
    """

    settings: Settings
    sharing: Sharing
    claim: Claim | None = None
    names: list[str] = field(default_factory=list)
    groups: tuple[str, ...] = ()
    last: Surgery | None = None
    workspace: Workspace = field(default_factory=dict)
    warned: bool = False
    hooks: SurgeryHooks = field(default_factory=SurgeryHooks)

    def request(
        self,
        losses: Losses,
        wrapped: list[Tensor],
        names: dict[int, str],
        *,
        extra_loss: Tensor | None = None,
        scale: Callable[[Tensor], Tensor] | None = None,
        retain_graph: bool = False,
        counts: Counts | None = None,
    ) -> Request:
        """Puts down what is to be differentiated, after checking that it is this wrapper's to differentiate."""
        if self.claim is not None:
            self.claim.check(names)
        method = self.settings.method
        agreement = self._agreement(wrapped, names, extra_loss, counts)
        return Request(
            losses=losses,
            extra_loss=extra_loss,
            wrapped=wrapped,
            sharing=self.sharing,
            scale=_unscaled if scale is None else scale,
            retain_graph=retain_graph,
            names=names,
            workspace=self.workspace,
            rows=agreement is not None or (isinstance(method, Aggregator) and method.needs_jacobian),
            agreement=agreement,
        )

    def _agreement(
        self, wrapped: list[Tensor], names: dict[int, str], extra_loss: Tensor | None, counts: Counts | None
    ) -> Agreement | None:
        """What the ranks have to agree on, or None if this process is alone."""
        ranks = self.settings.peers.now()
        if ranks is None:
            return None
        engine = self.settings.engine.suited_to(wrapped)
        if not (engine.has_rows or engine.adds_up):
            raise ValueError(
                f"MultiObjectiveOptimizer: `engine` must deliver the gradients themselves when there are several "
                f"ranks, which are added up, got {type(engine).__name__}. Use engine='auto'."
            )
        positions = {parameter: position for position, parameter in enumerate(wrapped)}
        shared = sorted({positions[each] for each in self.sharing.declared(wrapped) if each in positions})
        aspects = {
            "aggregator": described(self.settings.method),
            "shared": f"{shared or 'found automatically'}",
            "engine and scope": f"{type(engine).__name__}, {self.settings.scope}",
            "parameters": described_parameters(wrapped, names),
            "extra_loss": "none" if extra_loss is None else "one",
            "hooks": f"{self._extra_scopes(self.hooks.due()) or 'none'} to form for monitors and other hooks",
        }
        caller, behind = "MultiObjectiveOptimizer", not self.settings.peers.have_followed
        same, follow = engine.adds_up, partial(self._follow_first, ranks, wrapped)
        return Agreement(ranks, caller, aspects, counts=counts, same_losses=same, follow=follow, behind=behind)

    def _follow_first(self, ranks: Ranks, wrapped: list[Tensor]) -> None:
        """Takes over what the first rank remembers, so that generators and states agree from the start."""
        method = self.settings.method
        positions = {parameter: position for position, parameter in enumerate(wrapped)}
        found = sorted(positions[each] for each in self.sharing.discovered if each in positions)
        own = {"names": self.names, "shared": found, "method": dict(method.state_dict())}
        first = state_of_first(ranks, own)
        if first is not None:
            self.names = list(first["names"])
            method.reset()
            method.load_state_dict(first["method"])
            for position in first["shared"]:
                self.sharing.discovered[wrapped[position]] = True
        self.settings.peers.have_followed = True

    @uncompiled
    def perform(self, request: Request, first: Surgery | None = None) -> Surgery:
        """Does one surgery, with the weights of the first one of the step if this is a later one."""
        with request.agreement or nullcontext():
            check_extra_loss(request.extra_loss)
            return self._performed(request, first)

    def _performed(self, request: Request, first: Surgery | None) -> Surgery:
        request, numbered = self._prepared(request)
        due = self.hooks.due()
        with first_reduction_restored(request.waiting):
            surgery, looks = self._operated(request, numbered, first, due)
        self.groups = surgery.groups or self.groups
        self.last = surgery
        self.hooks.show(due, lambda watcher: _as_watched(surgery, looks.get(watcher.scope)))
        return surgery

    def _operated(
        self, request: Request, numbered: Numbering, first: Surgery | None, due: Sequence[Watcher]
    ) -> tuple[Surgery, dict[Scope | None, Surgery]]:
        """The surgery, and the looks that hooks want beside it."""
        method = self.settings.method
        if isinstance(method, Scalarizer):
            if isinstance(request.losses, Tensor):
                request = replace(request, losses=split_instances(request.losses))
            looks = self._looks_beside(request, self._extra_scopes(due))
            known, surgery = weigh(request, method, numbered, first)
        else:
            found = self._differentiate(request)
            self.warned = self.warned or warned_of_nothing_shared(found, self.sharing.explicit)
            known, objectives = numbered(found.names, found.all_names)
            with torch.no_grad(), torch.autocast(found.values.device.type, enabled=False):
                plan = self._plan(request, found, objectives, first)
                looks = {scope: look_at(found, plan._replace(scope=scope)) for scope in self._extra_scopes(due)}
                surgery = operate(found, method, plan)
        self.names = known
        return surgery, looks

    def _plan(
        self, request: Request, found: PerLossGradients, objectives: list[int], first: Surgery | None = None
    ) -> Plan:
        return Plan(
            objectives=objectives,
            scope=self.settings.scope,
            sharing=self.sharing,
            wrapped=request.wrapped,
            names=request.names,
            factor=_factor(request, found),
            first=first,
            last_groups=self.groups,
        )

    def _extra_scopes(self, due: Sequence[Watcher]) -> list[Scope]:
        """In which scopes Gramians are wanted that the surgery itself does not form; in one order on all ranks."""
        method, wanted = self.settings.method, {watcher.scope for watcher in due}
        if isinstance(method, GramianAggregator) and not method.needs_jacobian:
            wanted.discard(self.settings.scope)
        return [scope for scope in get_args(Scope) if scope in wanted]

    def _looks_beside(self, request: Request, scopes: Sequence[Scope]) -> dict[Scope | None, Surgery]:
        """Looks at losses that are differentiated once more, in a way that has no Gramian."""
        if not scopes:
            return {}
        agreement = None if request.agreement is None else request.agreement.once_more()
        beside = replace(request, extra_loss=None, retain_graph=True, workspace={}, sticky=False, agreement=agreement)
        with agreement or nullcontext():
            return self._looks(beside, scopes)

    def _looks(self, request: Request, scopes: Sequence[Scope]) -> dict[Scope | None, Surgery]:
        with first_reduction_restored(request.waiting):
            found = self._differentiate(request)
            with torch.no_grad(), torch.autocast(found.values.device.type, enabled=False):
                plan = self._plan(request, found, [])
                return {scope: look_at(found, plan._replace(scope=scope)) for scope in scopes}

    def look(self, request: Request, scope: Scope) -> Surgery:
        """The inner products of the unscaled gradients, and no surgery."""
        with request.agreement or nullcontext():
            request, _ = self._prepared(request)
            return self._looks(replace(request, workspace={}), [scope])[scope]

    def jacobian(self, request: Request) -> tuple[PerLossGradients, dict[Tensor, Tensor]]:
        """Unscaled per-loss gradients of the shared parameters, in the optimizer's order, in memory of their own."""
        with request.agreement or nullcontext():
            request, _ = self._prepared(request)
            with first_reduction_restored(request.waiting):
                found = self._differentiate(replace(request, workspace={}, rows=True), whole=True)
        blocks = {part.parameters[0]: part for part in found.jacobian().parts()}
        rows = {parameter: blocks[parameter].dense() for parameter in in_order(list(blocks), request.wrapped)}
        factor = _factor(request, found)
        if bool(factor != 1):
            rows = {key: unscaled(own, factor) for key, own in rows.items()}
        return found, rows

    def observe(self, first: Request, second: Request) -> None:
        """Shows a method the gradients of two batches."""
        method = observing(self.settings.method, first.wrapped)
        (one, rows), (other, more) = self.jacobian(first), self.jacobian(second)
        if one.names != other.names:
            raise ValueError(
                f"MultiObjectiveOptimizer: `second` must hold the losses of `first` in their order, "
                f"{list(one.names)}, got {list(other.names)}."
            )
        known, objectives = self.numbered(one.names, one.all_names)
        either = {**more, **rows}  # a batch need not reach all parameters
        pair = [
            [batch[key] if key in batch else torch.zeros_like(either[key]) for key in either]
            for batch in (rows, more)
        ]
        if either:
            method.observe(*pair, rows=objectives)
        self.names = known

    def update(self, request: Request) -> None:
        """Shows a scalarizer the losses after the step."""
        method = self.settings.method
        if not isinstance(method, Scalarizer) or not method.wants_second_look:
            return
        with request.agreement or nullcontext():
            several = request.agreement is not None
            present = named_losses(request.losses, differentiable=False, may_be_absent=several)
            found = averages(request, present, sharded=False)
        self.names, objectives = self.numbered(found.names, found.all_names)
        method.update(found.values, rows=objectives)

    def numbered(self, present: Sequence[str], every: Sequence[str]) -> tuple[list[str], list[int]]:
        """All names seen so far, in order of first appearance, and which of them the present losses are."""
        known = self.names + [name for name in every if name not in self.names]
        return known, [known.index(name) for name in present]

    def _prepared(self, request: Request) -> tuple[Request, Numbering]:
        """The request with its losses at hand where they need not come as a callable, and how to number them.

        Losses of samples are numbered by position and forgotten: in the next step the samples are others.
        """
        if not self.settings.engine.needs_callable:
            request = replace(request, losses=request.evaluated())
        if not isinstance(request.losses, Tensor):
            return request, self.numbered
        check_instances(request.losses)
        check_instances_allowed(request, self.settings)
        return request, lambda present, every: (self.names, list(range(len(present))))

    def _differentiate(self, request: Request, *, whole: bool = False) -> PerLossGradients:
        engine = self.settings.instances if isinstance(request.losses, Tensor) else self.settings.engine
        with donation_explained():
            found = engine.differentiate(request)
        if request.agreement is None or engine.suited_to(request.wrapped).adds_up:
            return found
        method = self.settings.method
        if isinstance(method, Aggregator) and (method.remembers_gradients or not method.works_on_parts):
            whole = True
        return all_items(found, request.agreement, request.wrapped, request.names, whole=whole)


def _as_watched(surgery: Surgery, look: Surgery | None) -> Surgery:
    """A surgery with the Gramian of another look at its gradients, if there was one."""
    return surgery if look is None else replace(surgery, gramian=look.gramian, groups=look.groups)


def _factor(request: Request, found: PerLossGradients) -> Tensor:
    """What the gradients are multiplied by, or one where that is zero."""
    one = torch.ones((), dtype=torch.float64, device=found.values.device)
    if request.scale is _unscaled:
        return one
    factor = request.scale(one.float()).double()
    return torch.where(factor == 0, torch.ones_like(factor), factor)


def _unscaled(loss: Tensor) -> Tensor:
    return loss
