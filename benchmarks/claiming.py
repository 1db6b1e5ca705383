"""What all claims share: the list of them, the network they train, and how a failure is written down."""

from collections.abc import Callable

import torch
from peers import Net, Peer
from torch import Tensor, nn

Claim = Callable[[Peer], str]
CLAIMS: dict[str, Claim] = {}
UNSEEN = ""  # not for a program to see: the table has a link


def claim(run: Claim) -> Claim:
    """Adds a claim under its function's name."""
    CLAIMS[run.__name__] = run
    return run


def problem(heads: int = 2) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return Net(heads), torch.randn(8, 4)


def gradients(net: nn.Module) -> Tensor:
    """All of them in one vector; those of sharded parameters put together."""
    held = [parameter.grad for parameter in net.parameters()]
    whole = [part.full_tensor() if hasattr(part, "full_tensor") else part for part in held if part is not None]
    return torch.cat([part.flatten() for part in whole])


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def attempt(run: Callable[[], object]) -> str:
    """yes, or what went wrong."""
    try:
        run()
    except Exception as found:  # whatever a library raises is what was observed
        return f"no: {type(found).__name__}"
    return "yes"
