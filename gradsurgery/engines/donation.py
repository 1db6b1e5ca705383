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
from torch.utils import _pytree as pytree

from ..eager import uncompiled
from .graph import Node, Reach, compiled_graph

CURE = (
    "Before the first call of a compiled model, set torch._functorch.config.donated_buffer = False and "
    "torch._inductor.config.fx_graph_cache = False (the former alone loads earlier graphs from the cache)."
)

_GUARDED = "gradsurgery guards what this node has saved"

_writes: "WeakKeyDictionary[type, bool]" = WeakKeyDictionary()
"""For each compiled graph whether its backward pass writes over what was saved; absent until that is known."""

_donated: "WeakKeyDictionary[type, Any]" = WeakKeyDictionary()
"""For compiled graphs that are passed now what torch says of donated buffers, which it has to forget meanwhile."""

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
    return _is_on("torch._dynamo.compiled_autograd", "compiled_autograd_enabled")


def _is_on(module: str, setting: str) -> bool:
    """Whether a module is loaded, and a setting of it is on."""
    return bool(getattr(sys.modules.get(module), setting, False))


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

    @uncompiled
    def before(self, _: Any) -> None:
        """Copies what may be written over."""
        node = self._node()
        if node is None:
            return
        graph = compiled_graph(node)
        self._restore(graph)  # after a pass that has failed
        if not _keeps_graph() or _writes.get(graph) is False:
            return
        self._copies = [(saved, saved.detach().clone()) for saved in _saved(node, self._parameters)]
        metadata: Any = getattr(graph, "metadata", None)
        if getattr(graph, "compiled_bw", None) is None or not hasattr(metadata, "bw_donated_idxs"):
            return  # torch will compile it for several passes, or refuses this pass if it must
        if metadata.bw_donated_idxs:
            _writes[graph] = True
        _donated[graph] = metadata.bw_donated_idxs
        metadata.bw_donated_idxs = []  # else torch refuses this pass

    @uncompiled
    def after(self, _: Any, gradients: Iterable[Tensor | None]) -> None:
        """Notes whether something was written over, and puts it back."""
        node = self._node()
        if node is None:
            return
        graph = compiled_graph(node)
        if self._copies and graph not in _writes:
            if any(not torch.equal(saved, copy) for saved, copy in self._copies):
                _writes[graph] = True
            elif all(_has_nonzero(copy) for _, copy in self._copies) and any(map(_has_nonzero, gradients)):
                _writes[graph] = False  # otherwise zeros might have been written over zeros
        self._restore(graph)

    def _restore(self, graph: Any) -> None:
        for saved, copy in self._copies if _writes.get(graph) is not False else ():
            saved.data.copy_(copy)  # this does not count as a change of it
        self._copies = []
        if graph in _donated:
            graph.metadata.bw_donated_idxs = _donated.pop(graph)


def _saved(node: Node, parameters: frozenset[int]) -> list[Tensor]:
    """What a node has saved and may write over.

    What hooks unpack may be made anew for each pass, and only once; what they have packed can be looked at.

    Raises:
        RuntimeError: This version of torch does not show it, and may write over it.
    """
    raw = getattr(node, "_raw_saved_tensors", None)
    if raw is None:
        if _is_on("torch._functorch.config", "donated_buffer") or _is_on("torch._inductor.config", "fx_graph_cache"):
            raise RuntimeError(
                f"MultiObjectiveOptimizer: `losses` must depend on compiled graphs that show what they have saved, "
                f"got one of torch {torch.__version__} that does not. {CURE}"
            )
        return []
    hooked = any(getattr(each, "unpack_hook", None) is not None for each in raw)
    packed = pytree.tree_leaves([getattr(each, "data", None) for each in raw]) if hooked else node.saved_tensors
    saved = [each for each in packed if isinstance(each, Tensor)] + [*getattr(node, "_tensors_no_vc_check", ())]
    return [
        tensor
        for tensor in saved
        if _has_own_memory(tensor) and tensor.untyped_storage().data_ptr() not in parameters
    ]


def _has_nonzero(tensor: Tensor | None) -> bool:
    return tensor is not None and bool(tensor.any())


def _has_own_memory(tensor: Tensor | None) -> bool:
    """Whether this is an ordinary tensor with a place for each number."""
    if tensor is None or type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    return all(stride or size < 2 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
