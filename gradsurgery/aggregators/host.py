"""Runs a NumPy solver on Gramians that may live on any device."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..solvers.arrays import Array


def on_host(solver: Callable[..., Array], gramian: Tensor, *arguments: Array | float) -> Tensor:
    """Calls ``solver`` with the Gramians as ``(B, K, K)`` in NumPy float64; one copy each way on a GPU."""
    gramian = gramian.double()
    if gramian.is_cpu and gramian.ndim == 2:  # the common case, at half the overhead
        return torch.from_numpy(solver(gramian.numpy()[None], *arguments)[0])
    size = gramian.shape[-1]
    if gramian.numel() == 0:
        return gramian.new_empty(gramian.shape[:-1])
    flat = gramian.reshape(-1, size, size).cpu().numpy()
    result = torch.from_numpy(solver(flat, *arguments))
    return result.reshape(gramian.shape[:-1]).to(gramian.device)
