"""How losses move from one time to another."""

import torch
from torch import Tensor

_FAR = 1e300  # keeps a quotient finite, so that a softmax of it is defined


def ratio(now: Tensor, before: Tensor) -> Tensor:
    """``now / before``; 1, as if nothing had changed, where ``before`` is NaN (not known) or zero."""
    return torch.where(before.abs() > 0, now / before, 1.0).clamp(-_FAR, _FAR)
