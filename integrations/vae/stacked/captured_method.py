"""Methods in a CUDA graph: which can be captured, and what they remember from call to call."""

from __future__ import annotations

import torch
from torch import Tensor

import gradsurgery as gs
from gradsurgery.aggregators import CONTRACTS

# These read one thing on the host, whether what they remember may stay: `solve_in_place` decides that on the device.
_REMEMBERING = (gs.LossBalancer, gs.GradNorm)


def is_capturable(method: gs.Aggregator) -> bool:
    """Whether a CUDA graph can hold the method's calls.

    It must need inner products alone, draw nothing, and promise to read nothing on the host; ``LossBalancer`` and
    ``GradNorm`` can too. Of a method that the library does not know that cannot be told.

    Example:
        >>> is_capturable(gs.UPGrad()), is_capturable(gs.LossBalancer()), is_capturable(gs.PCGrad())
        (True, True, False)
    """
    if type(method) in _REMEMBERING:
        return True
    contract = CONTRACTS.get(type(method))
    promised = contract is not None and contract.kind == "gramian" and "no_host_sync" in contract.guarantees
    return promised and not method.stateful


def solve_in_place(method: gs.GramianAggregator, gramians: Tensor) -> Tensor:
    """As ``method.solve``, bit for bit, with nothing read on the host and the state kept in the same tensors.

    Methods replace what they remember, which a replay of the call would not see. The first call, which creates it, is
    ``method.solve``.

    Shape:
        - gramians: ``(..., K, K)``, float64.
        - output: ``(..., K)``.
    """
    before = [(owner, name, own) for owner in method.modules() for name, own in owner.named_buffers(recurse=False)]
    if method.keeps_buffers and not before:
        return method.solve(gramians)
    finite = gramians.isfinite().all(-1).all(-1)
    identity = torch.eye(gramians.shape[-1], dtype=gramians.dtype, device=gramians.device)
    weights = method.weights(torch.where(finite[..., None, None], gramians, identity))
    stays = finite.all() & weights.isfinite().all()
    for owner, name, own in before:
        own.copy_(torch.where(stays, owner.get_buffer(name), own))
        setattr(owner, name, own)
    return torch.where(finite[..., None], weights, torch.full_like(weights, torch.nan))
