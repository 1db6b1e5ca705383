"""A ``torch.optim.Optimizer`` that is another one: everything forwarded by name, nothing guessed.

There is no ``__getattr__``: an attribute that torch looks up on the wrapper and finds on the wrapped optimizer
by accident (``_step_supports_amp_scaling`` is one) makes both of them act, and corrupts weights silently.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

_HOOK_DICTIONARIES = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class _Rebound:
    """A hook that receives the wrapper in the place of the optimizer that fires it."""

    def __init__(self, wrapper: Optimizer, hook: Callable[..., Any]) -> None:
        self.wrapper = weakref.ref(wrapper)  # the hook must not keep the wrapper alive
        self.hook = hook

    def __call__(self, optimizer: Optimizer, *args: Any) -> Any:
        wrapper = self.wrapper()
        return self.hook(optimizer if wrapper is None else wrapper, *args)


class DelegatingOptimizer(Optimizer):
    """Wraps an optimizer and is one: schedulers, hooks, scalers and trainers see no difference.

    ``param_groups``, ``state``, ``defaults`` and the hooks are those of the wrapped optimizer itself, so what
    was built on it before wrapping goes on working. Hooks registered here receive the wrapper and fire once a
    step.

    Args:
        optimizer: The optimizer to wrap.
    """

    _wrapped: Optimizer

    def __init__(self, optimizer: Optimizer) -> None:
        # Optimizer.__init__ is left out on purpose: it would create groups, state and hooks of its own.
        self.__dict__["_wrapped"] = optimizer

    @property
    def optimizer(self) -> Optimizer:
        """The wrapped optimizer."""
        return self._wrapped

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._wrapped!r})"

    # torch's annotations call these attributes; here they belong to the wrapped optimizer.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._wrapped.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._wrapped.param_groups = groups

    @property
    def state(self) -> Any:
        return self._wrapped.state

    @state.setter
    def state(self, state: Any) -> None:
        self._wrapped.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self._wrapped.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self._wrapped.defaults = defaults

    def step(self, closure: Any = None) -> Any:
        if closure is None:
            return self._wrapped.step()
        return self._wrapped.step(closure)

    # The wrapped optimizer's step is the one that is profiled and hooked; a second layer would fire twice.
    step.hooked = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._wrapped.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._wrapped.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        return self._wrapped.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._wrapped.load_state_dict(state_dict)

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        return self._wrapped.register_step_pre_hook(_Rebound(self, hook))

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        return self._wrapped.register_step_post_hook(_Rebound(self, hook))

    def register_state_dict_pre_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        return self._wrapped.register_state_dict_pre_hook(_Rebound(self, hook), prepend)

    def register_state_dict_post_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        return self._wrapped.register_state_dict_post_hook(_Rebound(self, hook), prepend)

    def register_load_state_dict_pre_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        return self._wrapped.register_load_state_dict_pre_hook(_Rebound(self, hook), prepend)

    def register_load_state_dict_post_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        return self._wrapped.register_load_state_dict_post_hook(_Rebound(self, hook), prepend)


def _forward(name: str) -> property:
    def read(self: DelegatingOptimizer) -> Any:
        return getattr(self._wrapped, name)

    return property(read, doc=f"The wrapped optimizer's ``{name}``.")


for _name in _HOOK_DICTIONARIES:
    setattr(DelegatingOptimizer, _name, _forward(_name))


def parameters_in(groups: Iterable[dict[str, Any]]) -> list[Any]:
    """The parameters of an optimizer's groups, in order."""
    return [parameter for group in groups for parameter in group["params"]]


def names_in(groups: Iterable[dict[str, Any]]) -> dict[int, str]:
    """The names by id of the parameters that were handed to the optimizer with names."""
    return {
        id(parameter): name
        for group in groups
        for parameter, name in zip(group["params"], group.get("param_names", ()), strict=False)
    }
