"""Which parameters the losses share: tags on modules and parameters, and what a wrapper makes of them.

A tag is an attribute of the module. Copying or unpickling the module copies or unpickles the attribute, which then
registers the new module; the parameters are looked up when they are needed. So a tag survives deepcopy, pickling and
the replacement of parameters, at no cost in the forward pass.
"""

import warnings
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_ATTRIBUTE = "_gradsurgery_tag"

# Dictionaries, because a WeakSet has no order.
_shared_modules: "weakref.WeakKeyDictionary[nn.Module, None]" = weakref.WeakKeyDictionary()
_specific_modules: "weakref.WeakKeyDictionary[nn.Module, None]" = weakref.WeakKeyDictionary()
_shared_parameters = WeakTensorKeyDictionary()


class _Tag:
    """Marks the module that carries it, and every copy of that module, without keeping it alive."""

    def __init__(self, module: nn.Module, shared: bool) -> None:
        self.module = weakref.ref(module)
        self.shared = shared
        (_shared_modules if shared else _specific_modules)[module] = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Tag | None":
        copied = memo.get(id(self.module()))  # the module is in there before its attributes are copied
        return None if copied is None else _Tag(copied, self.shared)

    def __reduce__(self) -> tuple[Any, ...]:
        module = self.module()  # gone where a shallow copy of it has outlived it
        return (type(None), ()) if module is None else (_Tag, (module, self.shared))


def tag_shared(*modules_or_parameters: nn.Module | Tensor) -> None:
    """Declares what the losses share.

    Surgery then happens on these parameters and no others; all other parameters receive the plain sum of
    their gradients. Nothing tagged: a wrapper finds out by itself, see :class:`MultiObjectiveOptimizer`.

    Args:
        modules_or_parameters: Modules, for all their parameters, or single parameters. A module's tag follows
            it through deepcopy and pickling and covers parameters that replace those it has now. A parameter's
            tag stays with that very tensor.

    Raises:
        TypeError: Something is neither a module nor a parameter.
        ValueError: Nothing is given, or a tensor is not a leaf of the graph.

    Cost:
        None in the forward pass.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> tag_shared(model[0])
        >>> [tuple(parameter.shape) for parameter in shared_parameters(model)]
        [(8, 4), (8,)]
    """
    if not modules_or_parameters:
        raise ValueError("tag_shared: `modules_or_parameters` must name at least one, got none.")
    for item in modules_or_parameters:
        check_module_or_parameter(item, "tag_shared", "modules_or_parameters")
    for item in modules_or_parameters:
        if isinstance(item, nn.Module):
            item.__dict__[_ATTRIBUTE] = _Tag(item, shared=True)
        else:
            _shared_parameters[item] = True


def untag_shared(*modules_or_parameters: nn.Module | Tensor) -> None:
    """Takes tags back; what carries none is passed over.

    Args:
        modules_or_parameters: What was handed to :func:`tag_shared`.
    """
    for item in modules_or_parameters:
        if isinstance(item, nn.Module):
            if item in _shared_modules:
                del item.__dict__[_ATTRIBUTE]
            _shared_modules.pop(item, None)
        elif item in _shared_parameters:
            del _shared_parameters[item]


def mark_task_specific(module: nn.Module) -> None:
    """Keeps a module's parameters out of automatic discovery, though several losses reach them.

    For modules that hold the parameters of several losses in one tensor, each loss in rows of its own.
    """
    module.__dict__[_ATTRIBUTE] = _Tag(module, shared=False)


def shared_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Lists the tagged parameters of a module, in the order of ``module.parameters()``.

    Args:
        module: A model, whole or in part; tags on the modules that contain it are not seen.

    Returns:
        The parameters that carry a tag themselves or belong to a tagged module below ``module``.
    """
    tagged = {
        id(parameter)
        for submodule in module.modules()
        if submodule in _shared_modules
        for parameter in submodule.parameters()
    }
    return [
        parameter for parameter in module.parameters() if id(parameter) in tagged or parameter in _shared_parameters
    ]


def parameters_of(items: Iterable[nn.Module | Tensor]) -> Iterator[Tensor]:
    """Yields the parameters of modules and the tensors themselves, repeats included."""
    for item in items:
        if isinstance(item, nn.Module):
            yield from item.parameters()
        else:
            yield item


def tagged_parameters() -> Iterator[Tensor]:
    """Yields all that is tagged as shared, whichever optimizer it belongs to."""
    return parameters_of([*_shared_modules, *_shared_parameters])


def check_module_or_parameter(item: object, caller: str, argument: str) -> None:
    """Raises unless ``item`` is a module or a leaf tensor."""
    if isinstance(item, nn.Module):
        return
    if not isinstance(item, Tensor):
        raise TypeError(
            f"{caller}: `{argument}` must be modules or parameters, got {type(item).__name__}. "
            f"Unpack an iterable: {caller}(*parameters)."
        )
    if not item.is_leaf:
        raise ValueError(
            f"{caller}: `{argument}` must be parameters (leaves of the graph), got the result of "
            f"{item.grad_fn.name() if item.grad_fn is not None else 'an operation'}, shape {tuple(item.shape)}. "
            f"For surgery at a point inside the network use ImpartialityBlock."
        )


class Sharing:
    """Decides, step by step, which of the parameters the losses reach are shared.

    In this order: what ``shared=`` names; tagged modules that hold a parameter of the wrapped optimizer, and tagged
    parameters of it; else those of the wrapped optimizer's that two or more losses reach, now or before.
    """

    def __init__(self, shared: nn.Module | Tensor | Iterable[nn.Module | Tensor] | None) -> None:
        if isinstance(shared, nn.Module | Tensor):
            shared = [shared]
        self.explicit = None if shared is None else list(shared)
        for item in self.explicit or []:
            check_module_or_parameter(item, "MultiObjectiveOptimizer", "shared")
        if self.explicit is not None and not self.explicit:
            raise ValueError(
                "MultiObjectiveOptimizer: `shared` must name at least one module or parameter, got an empty "
                "sequence. Use None to find the shared parameters automatically."
            )
        self.discovered = WeakTensorKeyDictionary()
        self._warned = False

    def declared_modules(self, wrapped: Iterable[Tensor]) -> list[nn.Module]:
        """The modules declared as shared that matter to an optimizer over the ``wrapped`` parameters."""
        if self.explicit is not None:
            return [item for item in self.explicit if isinstance(item, nn.Module)]
        if not _shared_modules:
            return []
        ids = {id(parameter) for parameter in wrapped}
        return [m for m in list(_shared_modules) if any(id(parameter) in ids for parameter in m.parameters())]

    def declared_parameters(self, wrapped: Iterable[Tensor]) -> list[Tensor]:
        """The parameters declared as shared by themselves."""
        if self.explicit is not None:
            return [item for item in self.explicit if isinstance(item, Tensor)]
        return [parameter for parameter in wrapped if parameter in _shared_parameters] if _shared_parameters else []

    def declared(self, wrapped: list[Tensor]) -> list[Tensor]:
        """All parameters that are declared as shared, repeats included."""
        return [*parameters_of(self.declared_modules(wrapped)), *self.declared_parameters(wrapped)]

    def select(self, wrapped: list[Tensor], reach: dict[Tensor, int], *, sticky: bool = True) -> list[Tensor]:
        """Picks the shared ones among the parameters reached; ``reach`` has one bit a loss.

        What is found stays shared in later steps, if it is ``sticky``.
        """
        declared = self.declared(wrapped)
        if declared or self.explicit is not None:
            ids = {id(parameter) for parameter in declared}
            return [parameter for parameter in reach if id(parameter) in ids]
        self._warn_of_tags_elsewhere(reach)
        specific = {id(parameter) for parameter in parameters_of(list(_specific_modules))}
        several = [parameter for parameter in wrapped if (losses := reach.get(parameter, 0)) & (losses - 1)]
        found = [parameter for parameter in several if id(parameter) not in specific]
        if not sticky:
            ids = {id(parameter) for parameter in found}
            return [parameter for parameter in reach if id(parameter) in ids]
        for parameter in found:
            self.discovered[parameter] = True
        return [parameter for parameter in reach if parameter in self.discovered]

    def _warn_of_tags_elsewhere(self, reach: dict[Tensor, int]) -> None:
        if self._warned or not (_shared_modules or _shared_parameters):
            return
        tagged = {id(parameter) for parameter in tagged_parameters()}
        if any(id(parameter) in tagged for parameter in reach):
            self._warned = True
            warnings.warn(
                "MultiObjectiveOptimizer: the losses reach parameters tagged as shared of which this optimizer holds "
                "none, so they get the plain sum of their gradients. Name them by shared=, or hand them to this "
                "optimizer.",
                UserWarning,
                stacklevel=6,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"explicit": self.explicit, "discovered": list(self.discovered.keys())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.explicit = state["explicit"]
        self._warned = False
        self.discovered = WeakTensorKeyDictionary()
        for parameter in state["discovered"]:
            self.discovered[parameter] = True


def describe(parameter: Tensor, names: dict[int, str] | None = None) -> str:
    """Names a parameter for an error message: by name where one is known, else by shape."""
    name = (names or {}).get(id(parameter))
    shape = tuple(parameter.shape)
    if name is None:
        for module in list(_shared_modules):
            for found, candidate in module.named_parameters():
                if candidate is parameter:
                    return f"parameter {found!r} of the shared {type(module).__name__}, shape {shape}"
        return f"a parameter of shape {shape}"
    return f"parameter {name!r}, shape {shape}"


__all__ = ["shared_parameters", "tag_shared", "untag_shared"]
