"""What keeps the fused kernels from being used."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

LARGEST = 64
"""Losses up to which there are fused kernels."""


def misfit(
    blocks: Sequence[Tensor],
    groups: Sequence[int] | None,
    weights: Tensor | None,
    out: Sequence[Tensor] | None,
) -> str | None:
    """What would lead a kernel out of a tensor's memory, two programs to the same place, or lose a gradient."""
    size, indices = blocks[0].shape[0], [0] * len(blocks) if groups is None else groups
    if any(block.shape[0] != size for block in blocks):
        return "the blocks have different numbers of rows"
    if len(indices) != len(blocks) or min(indices) < 0:
        return f"the groups of {len(blocks)} blocks are {list(indices)}"
    if weights is not None and not (weights.ndim == 2 and weights.shape[1] == size and len(weights) > max(indices)):
        return f"weights of shape {tuple(weights.shape)} do not fit {size} rows in {max(indices) + 1} groups"
    if weights is not None and weights.requires_grad and torch.is_grad_enabled():
        return "the weights require a gradient"
    places = [target.data_ptr() for target in out or () if target.numel()]
    return "two tensors of `out` share memory" if len(set(places)) < len(places) else None


def misfit_of_order(gramian: Tensor, order: Tensor, targets: Tensor | None = None) -> str | None:
    """What would lead a projection out of a tensor's memory."""
    shape = tuple(gramian.shape)
    if shape[-2] != shape[-1] or order.shape != (shape[-1] - 1, *shape[:-1]):
        return f"an order of shape {tuple(order.shape)} does not fit Gramians of shape {shape}"
    if targets is not None and targets.shape != gramian.shape:
        return f"targets of shape {tuple(targets.shape)} do not fit Gramians of shape {shape}"
    return None


def obstacle(tensors: Sequence[Tensor], size: int, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why there is no fused kernel for the tensors, or None."""
    if not 0 < size <= LARGEST:
        return f"there are {size} losses, not 1 to {LARGEST}"
    if wrong := [tensor.dtype for tensor in tensors if tensor.dtype not in dtypes]:
        return f"a tensor is {wrong[0]}"
    if len({tensor.device for tensor in tensors}) > 1:
        return "the blocks are on several devices"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "a tensor requires a gradient"
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors):
        return "a tensor is of a subclass"
    if any(tensor.is_neg() for tensor in tensors):
        return "a tensor is negated when it is read"
    return _missing(tensors[0].device)


@cache
def _missing(device: torch.device) -> str | None:
    """What the device or the installation lacks."""
    try:
        import triton
        import triton.language
    except ImportError:
        return "Triton is not installed"
    if not hasattr(triton.language, "tuple"):
        return f"Triton is older than 3.3: {triton.__version__}"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return _trial(device) if capability >= (8, 0) else f"the GPU's compute capability is {capability}, below 8.0"
    from .triton import INTERPRETED

    return None if device.type == "cpu" and INTERPRETED else f"the tensors are on {device.type!r}"


def _trial(device: torch.device) -> str | None:
    """What happens to a first small kernel: Triton also needs a C compiler, Python's headers, a driver it knows."""
    from . import triton_combine, worklist

    worklist.refuse_capture(device, "the first kernel")
    one = torch.ones(1, 1, device=device)
    try:
        triton_combine.combine([one], one, [0], [torch.empty_like(one[0])], [False])
    except Exception as error:  # of many kinds, none of them Triton's own
        return f"a trial of Triton ended in {type(error).__name__}: {error}"
    return None
