"""Decides where small problems are solved: on the host in NumPy, or in torch where the Gramians are."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..generators import is_captured
from ..solvers.arrays import Array

_FEW = 8
"""Up to so many losses the host does not wait for a GPU; for more, waiting takes less time than the launches."""


def on_host(solver: Callable[..., Array], gramian: Tensor, *arguments: Array | float | str) -> Tensor:
    """Calls ``solver`` with the Gramians as ``(B, K, K)`` in NumPy float64; one copy each way on a GPU.

    Raises:
        RuntimeError: A CUDA graph is being captured.
    """
    gramian = gramian.double()
    if gramian.is_cpu and gramian.ndim == 2:  # the common case, at half the overhead
        return torch.from_numpy(solver(gramian.numpy()[None], *arguments)[0])
    size = gramian.shape[-1]
    if gramian.numel() == 0:
        return gramian.new_empty(gramian.shape[:-1])
    if is_captured(gramian.device):
        raise RuntimeError(
            f"{solver.__name__}: `gramian` must not be captured in a CUDA graph by a solver on the host, got one on "
            f"{gramian.device}. Choose a method that promises no_host_sync, or call this one outside of the graph."
        )
    flat = gramian.reshape(-1, size, size).cpu().numpy()
    result = torch.from_numpy(solver(flat, *arguments))
    return result.reshape(gramian.shape[:-1]).to(gramian.device)


def on_host_or_device(
    solver: Callable[..., Array], device_solver: Callable[..., Tensor], gramian: Tensor, *arguments: Array | str
) -> Tensor:
    """Calls the solver that is right for where the Gramians are.

    On a GPU that is ``device_solver`` for up to 8 losses, and for any number while a CUDA graph is being captured; on
    the meta device it always is.

    Args:
        solver: Takes NumPy arrays, as in :func:`on_host`.
        device_solver: Takes tensors on one device instead, and reads none of them on the host.
        gramian: Gramians.
        arguments: What both take beside the Gramians.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``.
    """
    if not _stays(gramian):
        return on_host(solver, gramian, *arguments)
    if gramian.numel() == 0:
        return gramian.new_empty(gramian.shape[:-1], dtype=torch.float64)
    flat = gramian.double().reshape(-1, *gramian.shape[-2:])
    placed = [_placed(argument, flat) if isinstance(argument, np.ndarray) else argument for argument in arguments]
    return device_solver(flat, *placed).reshape(gramian.shape[:-1])


def _stays(gramian: Tensor) -> bool:
    if gramian.is_cuda:
        return gramian.shape[-1] <= _FEW or is_captured(gramian.device)
    return gramian.is_meta


def _placed(vector: Array, like: Tensor) -> Tensor:
    """The numbers on the device, written there: a copy of them would make the host wait, or break a capture."""
    numbers = vector.tolist()
    if len(set(numbers)) == 1:
        return like.new_full((len(numbers),), numbers[0])
    return torch.stack([like.new_full((), number) for number in numbers])
