"""Per-loss gradients through ``torch.func``: one ``vjp`` of the forward pass, ``vmap`` over the losses.

:func:`functional_jacobian` is the core, for code that calls ``torch.func.functional_call`` itself. The engine
:class:`Func` puts it under a closure over ordinary modules.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..losses import NamedLosses, named_losses
from ..sharing import describe
from .base import Engine, Request, check_leaves
from .graph import reach
from .masks import EagerMasks
from .per_loss import Block, Jacobian, PerLossGradients, PlainSum

Parameters = TypeVar("Parameters")


def functional_jacobian(
    function: Callable[[Parameters], Any],
    parameters: Parameters,
    *,
    chunk_size: int | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Parameters, Any]:
    r"""Differentiates K scalars that a function computes from parameters.

    .. math:: J_k = \partial L_k / \partial \theta, \quad k = 1 \dots K

    Args:
        function: Maps parameters to ``(losses, auxiliary)``: losses is a ``(K,)`` tensor, auxiliary tensors to
            hand out, or an empty list or dict.
        parameters: A tensor, or a dict, list or tuple of them. Only these are differentiated; other tensors
            the function uses keep their place in the outer graph.
        chunk_size: How many losses are differentiated at once. ``None``: all. 1: one after the other without
            ``vmap``, for operations that cannot be batched.
        scale: Multiplies the gradients, for mixed precision.

    Shape:
        - losses: ``(K,)``, attached to the outer graph.
        - Jacobian: like ``parameters``, each ``(K, *shape)``.
        - auxiliary: as returned.

    Raises:
        ValueError: The losses are not ``(K,)``, or ``chunk_size`` is not positive.

    Cost:
        One forward pass, one backward pass batched over ``chunk_size`` losses, K x P numbers.

    Example:
        >>> losses, jacobian, _ = functional_jacobian(
        ...     lambda p: (torch.stack([p["a"] * 2, p["a"] * p["a"]]), []), {"a": torch.tensor(3.0)}
        ... )
        >>> losses, jacobian
        (tensor([6., 9.]), {'a': tensor([2., 6.])})
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"functional_jacobian: `chunk_size` must be >= 1 or None, got {chunk_size}.")
    losses, pullback, auxiliary = torch.func.vjp(function, parameters, has_aux=True)  # type: ignore[misc]
    if not isinstance(losses, Tensor) or losses.ndim != 1:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"functional_jacobian: `function` must return (K,) losses, got {got}.")
    seeds = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    if scale is not None:
        seeds = seeds * scale
    with torch.no_grad():  # the Jacobian itself is not differentiated
        if chunk_size == 1:
            rows = [pullback(seed)[0] for seed in seeds]
            jacobian = pytree.tree_map(lambda *parts: torch.stack(parts), *rows)
        else:
            jacobian = torch.func.vmap(pullback, chunk_size=chunk_size)(seeds)[0]
    return losses, cast(Parameters, jacobian), auxiliary


class Func(Engine):
    """Differentiates all losses in one batched backward pass; the losses come from a closure.

    The parameters of the shared modules are swapped in functionally while the closure runs. Their buffers
    (BatchNorm's statistics) are cloned, and written back afterwards. Random numbers are drawn as in any forward
    pass. Task-specific parameters are differentiated in the outer graph of the same pass.

    Args:
        chunk_size: How many losses are differentiated at once. ``None``: all. 1: without ``vmap``.

    Raises:
        TypeError: The losses are not handed over as a callable.
        RuntimeError: Shared modules are not declared, or ``torch.func`` cannot differentiate the closure:
            checkpointing, sparse gradients, custom Functions without ``setup_context``, in-place changes of
            buffers outside the shared modules, alpha dropout on an input that is not contiguous; or shared
            parameters are used from elsewhere too, or have gradient hooks.

    Cost:
        One forward pass, one backward pass batched over the losses, K x P numbers; activations of the backward
        pass K times over.
    """

    needs_callable = True

    def __init__(self, chunk_size: int | None = None) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"Func: `chunk_size` must be >= 1 or None, got {chunk_size}.")
        self.chunk_size = chunk_size

    def differentiate(self, request: Request) -> PerLossGradients:
        if not callable(request.losses):
            raise TypeError(
                "Func: `losses` must be a callable that runs the forward pass and returns the losses, got "
                f"{type(request.losses).__name__}. Use backward(lambda: losses(batch)), or engine='loop'."
            )
        places = _places(request)
        parameters = list(places.parameters)
        forward = _Forward(request.losses, places)
        scale = request.scale(torch.ones((), device=parameters[0].device))
        with torch.enable_grad(), _explained():
            losses, jacobian, buffers = functional_jacobian(
                forward, [parameter.detach() for parameter in parameters], chunk_size=self.chunk_size, scale=scale
            )
        present = NamedLosses(forward.names, tuple(losses), forward.all_names)
        agreed, _ = request.agree(present, {})
        kept = [forward.names.index(name) for name in agreed.names]
        weights = request.weights
        plain = _outer_gradients(losses, kept, places, request)
        for (module, name), value in zip(forward.buffers, buffers, strict=True):
            current = module._buffers[name]
            if current is None:
                module._buffers[name] = value.detach()
            else:
                current.copy_(value)
        blocks = [
            Block([parameter], _weighted(rows.detach()[kept].reshape(len(kept), parameter.numel()), weights))
            for position, (parameter, rows) in enumerate(zip(parameters, jacobian, strict=True))
            if position in forward.reached
        ]
        return PerLossGradients(
            agreed.names,
            forward.all_names,
            losses.detach()[kept].double(),
            Jacobian(blocks),
            plain,
            "func: one backward pass batched over the losses",
        )


def _weighted(rows: Tensor, weights: list[float] | None) -> Tensor:
    """Rows, or losses, times the weights that the ranks have agreed on."""
    if weights is None:
        return rows
    return rows * torch.tensor(weights[: len(rows)], dtype=rows.dtype, device=rows.device).view(
        -1, *[1] * (rows.ndim - 1)
    )


class _Forward:
    """The closure as a function of the shared parameters; notes what it saw on its one run."""

    def __init__(self, closure: Callable[[], Any], places: "_Places") -> None:
        self._closure = closure
        self._places = places
        self.names: tuple[str, ...] = ()
        self.all_names: tuple[str, ...] = ()
        self.reached: set[int] = set()
        self.buffers: list[tuple[nn.Module, str]] = []

    def __call__(self, values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        with _swapped(self._places, values), EagerMasks(), _compiling_nothing():
            self.names, scalars, self.all_names = named_losses(self._closure(), differentiable=False)
            after = [module._buffers[name] for module, name in self._places.buffers]
            buffers = [value for value in after if value is not None]
            self.buffers = [
                place for place, value in zip(self._places.buffers, after, strict=True) if value is not None
            ]
        leaves = reach(scalars).leaves
        self.reached = {position for position, value in enumerate(values) if value in leaves}
        common = torch.promote_types(scalars[0].dtype, torch.float32)
        return torch.stack([scalar.to(common) for scalar in scalars]), buffers


class _Places(NamedTuple):
    """Where the shared parameters and the shared modules' buffers live."""

    parameters: dict[Tensor, list[tuple[nn.Module, str]]]
    buffers: list[tuple[nn.Module, str]]


def _places(request: Request) -> _Places:
    """Finds the parameters to train and all buffers in the modules declared as shared."""
    places = _Places({}, [])
    declared = request.sharing.declared_modules(request.wrapped)
    for module in dict.fromkeys(submodule for root in declared for submodule in root.modules()):
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                places.parameters.setdefault(parameter, []).append((module, name))
        places.buffers.extend((module, name) for name in module._buffers)
    if not places.parameters:
        raise RuntimeError(
            "Func: `shared` must be declared as modules, because their parameters are swapped while the losses "
            "are computed; got none with parameters to train. Use tag_shared(module), for a module of which this "
            "optimizer holds a parameter, or shared=module, or engine='loop'."
        )
    for loose in request.sharing.declared_parameters(request.wrapped):
        if loose.requires_grad and loose not in places.parameters:
            raise RuntimeError(
                f"Func: `shared` must be declared as modules, got {describe(loose, request.names)} by itself. "
                f"Tag the module that holds it, or use engine='loop'."
            )
    check_leaves(places.parameters, request.names)
    for shared in places.parameters:
        if shared._backward_hooks:
            raise RuntimeError(
                f"Func: `shared` must not have gradient hooks, got {describe(shared, request.names)} with one, "
                f"which would not fire. Use engine='loop'."
            )
    return places


@contextmanager
def _swapped(places: _Places, values: list[Tensor]) -> Iterator[None]:
    """Puts values in the parameters' places and clones in the buffers', and everything back afterwards."""
    originals = [module._buffers[name] for module, name in places.buffers]
    try:
        for owners, value in zip(places.parameters.values(), values, strict=True):
            for module, name in owners:
                module._parameters[name] = value  # type: ignore[assignment]
        for (module, name), original in zip(places.buffers, originals, strict=True):
            module._buffers[name] = None if original is None else original.clone()
        yield
    finally:
        for parameter, owners in places.parameters.items():
            for module, name in owners:
                module._parameters[name] = cast(nn.Parameter, parameter)
        for (module, name), original in zip(places.buffers, originals, strict=True):
            module._buffers[name] = original


def _compiling_nothing() -> AbstractContextManager[object]:
    """Runs compiled functions as they were written: torch.func needs that, and they would stay so for good."""
    loaded = "torch._dynamo" in sys.modules  # else nothing is compiled, and loading it takes long
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


@contextmanager
def _explained() -> Iterator[None]:
    """Adds which engine may help to what ``torch.func`` has to say."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        if str(error).startswith(("Func:", "MultiObjectiveOptimizer:")):
            raise
        raise RuntimeError(
            f"Func: the losses could not be computed and differentiated by torch.func: {error}\nIf they can without "
            f"it, use engine='loop', or engine=Func(chunk_size=1) if only vmap is in the way."
        ) from error


def _outer_gradients(
    losses: Tensor, kept: list[int], places: _Places, request: Request
) -> list[tuple[Tensor, Tensor]]:
    """Plain sums for what is not shared, from the outer graph of the same forward pass."""
    plain = PlainSum()
    with torch.enable_grad():
        total = _weighted(losses[kept], request.weights).sum()
    if request.weights is not None:
        request = replace(request, weights=[1.0, request.weights[-1]])
    roots, graph = request.reach([total])
    for leaf, bits in graph.leaves.items():
        if bits & 1 and leaf in places.parameters:
            raise RuntimeError(
                f"Func: `losses` must use the shared parameters through their modules while the callable runs, got "
                f"{describe(leaf, request.names)} used before it or from elsewhere (a tied weight?). Run the whole "
                f"forward pass in the callable, declare both modules as shared, or use engine='loop'."
            )
    for position, root in enumerate(roots):
        leaves = [leaf for leaf, bits in graph.leaves.items() if bits >> position & 1]
        if root.requires_grad and leaves:
            plain.add(leaves, request.gradients(roots, graph, position, leaves))
    return plain.items()
