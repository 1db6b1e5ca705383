"""Keeps what compiled parts of the graph have saved from backward passes that write over it.

A backward pass made by ``torch.compile`` may reuse the memory of what the forward pass has saved for it: torch calls
such tensors donated buffers. That is right for one pass, and makes every later one wrong. torch refuses a pass that
keeps the graph where it knows of donated buffers, but does not know of them where the pass came out of a cache: the
key of the cache of inductor's graphs says nothing about donation.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..eager import uncompiled
from .graph import Node, Reach

CURE = (
    "Before the first call of a compiled model, set torch._functorch.config.donated_buffer = False and "
    "torch._inductor.config.fx_graph_cache = False (the former alone loads earlier graphs from the cache)."
)

_GUARDED = "gradsurgery guards what this node has saved"

_writes: "WeakKeyDictionary[type, bool]" = WeakKeyDictionary()
"""For each compiled graph whether its backward pass writes over what was saved; absent until that is known."""

_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def protect(graph: Reach) -> None:
    """Sees to it that later passes through the compiled parts of a graph find what the forward pass has saved.

    What a compiled graph has saved is copied before the first pass that keeps the graph, and compared afterwards. If
    it was written over, or torch says that it may be, it is put back, and so in every later pass.

    Args:
        graph: What the losses reach.

    Cost:
        Nothing without compiled parts. One comparison for each compiled graph; for those that write over what they
        have saved, a copy of it, made and put back, in each pass that keeps the graph.
    """
    if not graph.compiled or _is_taken_over():
        return
    parameters = frozenset(leaf.untyped_storage().data_ptr() for leaf in graph.leaves if _has_own_memory(leaf))
    for node in graph.compiled:
        if _GUARDED not in node.metadata:
            node.metadata[_GUARDED] = True
            guard = _Guard(node, parameters)
            node.register_prehook(guard.before)
            node.register_hook(guard.after)


@contextmanager
def donation_explained() -> Iterator[None]:
    """Adds to torch's refusal to pass a compiled graph several times what cures it."""
    try:
        yield
    except RuntimeError as error:
        if "donated buffers" not in str(error) or CURE in str(error):
            raise
        raise RuntimeError(
            f"MultiObjectiveOptimizer: `losses` must depend on compiled graphs that can be differentiated once a "
            f"loss, got one that frees what it has saved. {CURE}"
        ) from error


def _is_taken_over() -> bool:
    """Whether compiled autograd makes passes of its own from the parts, which leave alone what was saved."""
    return bool(getattr(sys.modules.get("torch._dynamo.compiled_autograd"), "compiled_autograd_enabled", False))


class _Guard:
    """Stands before and behind one compiled node.

    Args:
        node: The node; it is not kept alive.
        parameters: Where parameters lie, which no compiled graph writes over.
    """

    def __init__(self, node: Node, parameters: frozenset[int]) -> None:
        self._node = ref(node)
        self._parameters = parameters
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._donated: tuple[Any] | None = None

    @uncompiled
    def before(self, _: Any) -> None:
        """Copies what may be written over."""
        node = self._node()
        if node is None:
            return
        graph = node._forward_cls
        self._restore(graph)  # after a pass that has failed
        if not _keeps_graph() or _writes.get(graph) is False:
            return
        self._copies = [(saved, saved.detach().clone()) for saved in _saved(node, self._parameters)]
        if graph.compiled_bw is not None:  # else torch will compile it for several passes
            donated = graph.metadata.bw_donated_idxs
            if donated:
                _writes[graph] = True
            self._donated = (donated,)
            graph.metadata.bw_donated_idxs = []  # else torch refuses this pass

    @uncompiled
    def after(self, _: Any, gradients: Iterable[Tensor | None]) -> None:
        """Notes whether something was written over, and puts it back."""
        node = self._node()
        if node is None or not self._copies:
            return
        graph = node._forward_cls
        if graph not in _writes:
            if any(not torch.equal(saved, copy) for saved, copy in self._copies):
                _writes[graph] = True
            elif any(gradient is not None and bool(gradient.any()) for gradient in gradients):
                _writes[graph] = False  # zeros might have been written over zeros
        self._restore(graph)

    def _restore(self, graph: Any) -> None:
        for saved, copy in self._copies if _writes.get(graph) is not False else ():
            saved.data.copy_(copy)  # this does not count as a change of it
        self._copies = []
        if self._donated is not None:
            (graph.metadata.bw_donated_idxs,) = self._donated
            self._donated = None


def _saved(node: Node, parameters: frozenset[int]) -> list[Tensor]:
    """What a node has saved and may write over; what hooks unpack is made anew for each pass."""
    hooked = any(getattr(raw, "unpack_hook", None) is not None for raw in node._raw_saved_tensors)
    saved = [*(() if hooked else node.saved_tensors), *getattr(node, "_tensors_no_vc_check", ())]
    return [
        tensor
        for tensor in saved
        if _has_own_memory(tensor) and tensor.untyped_storage().data_ptr() not in parameters
    ]


def _has_own_memory(tensor: Tensor | None) -> bool:
    """Whether this is an ordinary tensor with a place for each number."""
    if tensor is None or type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    return all(stride or size < 2 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
