"""Memory that serves again in the next step: touching fresh memory can cost as much as computing what goes there."""

from typing import TypeAlias

import torch
from torch import Tensor

Workspace: TypeAlias = dict[tuple[object, torch.device, torch.dtype], Tensor]
"""Flat tensors by what they were asked for."""


def reused(workspace: Workspace, key: object, shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
    """Returns a tensor of undefined content, of the device and dtype of another, in older memory if it fits.

    Whatever was returned for an equal key before is overwritten.
    """
    known = (key, like.device, like.dtype)
    needed = torch.Size(shape).numel()
    flat = workspace.get(known)
    if flat is None or not needed <= flat.numel() <= 2 * needed:
        with torch.inference_mode(False):  # else it could not be written to later
            flat = workspace[known] = torch.empty(needed, dtype=like.dtype, device=like.device)
    return flat[:needed].view(shape)
