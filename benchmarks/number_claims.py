"""Claims about numbers: what a step holds, other places for surgery, zero and tiny gradients, exactness."""

import math
import random
from typing import Any

import mpmath
import torch
from accuracy import METHODS as EXACT
from accuracy import jacobian as hard
from claiming import CLAIMS, UNSEEN, Claim, apart, attempt, claim, problem
from peers import Net, Peer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradsurgery as gs

SHRUNK = 1e-8
ROUNDING = 1e-13
CONFLICTING = torch.tensor([[1.0, 0.0, 0.5, 0.2], [-0.6, 1.0, 0.0, 0.1], [0.0, -0.8, 1.5, 0.0]], dtype=torch.float64)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return out


@claim
def largest_tensor(peer: Peer) -> str:
    """In weights of the widest layer, eight losses, the Gramian at its leanest."""
    torch.manual_seed(0)
    net, x = Net(8, width=256), torch.randn(16, 4)
    with Largest() as seen:
        if peer.package == "gradsurgery":
            plain = torch.optim.SGD(net.parameters(), lr=0.0)
            gs.MultiObjectiveOptimizer(plain, gs.UPGrad(), shared=net.trunk, engine="ghost").backward(net(x)[1])
        elif peer.package == "torchjd":
            from torchjd.aggregation import UPGradWeighting
            from torchjd.autogram import Engine

            engine, losses = Engine(net.trunk, batch_dim=None), torch.stack(net(x)[1])
            losses.backward(UPGradWeighting()(engine.compute_gramian(losses)))
        else:
            peer.step(net, net, x, method="PCGrad")
    return f"{seen.numbers / net.trunk[2].weight.numel():.2g}"


@claim
def one_loss_a_sample(peer: Peer) -> str:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(6, 4)
    losses = net(x).squeeze(1).square()
    rows = [torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for loss in losses]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    if peer.package == "gradsurgery":
        optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(net.parameters(), lr=0.0), gs.MGDA())
        found = optimizer.backward(losses).gramian
    elif peer.package == "torchjd":
        from torchjd.autogram import Engine

        engine = Engine(net, batch_dim=0)
        found = engine.compute_gramian(net(x).squeeze(1).square())
    else:
        return UNSEEN
    return "yes" if apart(found.float(), jacobian @ jacobian.T) < 1e-4 else "no"


@claim
def inside_the_network(peer: Peer) -> str:
    """At the features, in one pass below them."""
    net, x = problem()
    if peer.package == "gradsurgery":
        z = net.trunk(x)
        views = gs.ImpartialityBlock(2, gs.PCGrad())(z)
        heads = zip(net.heads, views, strict=True)
        return attempt(lambda: sum(head(view).square().mean() for head, view in heads).backward())
    if peer.package == "torchjd":
        from torchjd.autojac import jac

        features, losses = net(x)
        return "by hand, with jac" if attempt(lambda: jac(losses, [features])) == "yes" else "no"
    return UNSEEN


# --- numbers --------------------------------------------------------------------------------


@claim
def zero_gradient(peer: Peer) -> str:
    """The methods whose direction is not finite when one of three gradients is zero."""
    rows = CONFLICTING.clone()
    rows[1] = 0.0
    failed = []
    for name in peer.methods:
        held: list[Tensor] = []
        said = attempt(lambda name=name, held=held: held.append(peer.direction(name, rows)))
        if said != "yes" or not held[0].isfinite().all():
            failed.append(name)
    return "all finite" if not failed else f"not {', '.join(failed)}"


@claim
def losses_times_1e_8(peer: Peer) -> str:
    """How far the unit direction moves when three losses are scaled down together; the worst method."""
    rows = CONFLICTING
    moved = {}
    for name in peer.methods:
        one, small = _seeded(peer, name, rows.clone()), _seeded(peer, name, SHRUNK * rows)
        moved[name] = apart(small / small.norm(), one / one.norm()) if small.norm() > 0 else 1.0
    worst = max(moved, key=lambda name: moved[name])
    return shown(moved[worst]) + ("" if moved[worst] < 1e-6 else f", {worst}; {_others(moved, worst)}")


def shown(error: float) -> str:
    """What is rounding is not told apart: it depends on the machine."""
    return f"{error:.0e}" if error > ROUNDING else f"< {ROUNDING:.0e}"


def _seeded(peer: Peer, name: str, rows: Tensor) -> Tensor:
    """Methods that take the losses in random order take them in the same one."""
    random.seed(0)
    torch.manual_seed(0)
    return peer.direction(name, rows)


def _others(moved: dict[str, float], worst: str) -> str:
    also = [name for name in moved if name != worst and moved[name] > 1e-6]
    return f"also {', '.join(also)}" if also else "no other"


def exactness(name: str) -> Claim:
    """Against 60 digits: five rows of one length, condition 100, and condition 1e6 with lengths a million apart."""

    def run(peer: Peer) -> str:
        if name not in peer.methods:
            return "–"
        return " / ".join(_worst(peer, name, condition, spread) for condition, spread in ((1e2, 1.0), (1e6, 1e6)))

    return run


def _worst(peer: Peer, name: str, condition: float, spread: float) -> str:
    """Of three problems, relative to the direction; of Nash-MTL, whose length is a convention, of the unit one."""
    errors = []
    for seed in range(3):
        rows = hard(condition, seed, spread)
        held: list[Tensor] = []
        said = attempt(lambda rows=rows, held=held: held.append(peer.direction(name, torch.from_numpy(rows))))
        if said != "yes":
            return said.removeprefix("no: ")
        found, exact = held[0].numpy(), mpmath.matrix(rows.tolist())
        wanted = exact.T * EXACT[name][1](exact * exact.T)
        actual = mpmath.matrix(found.tolist())
        if name == "NashMTL":
            actual, wanted = actual / mpmath.norm(actual), wanted / mpmath.norm(wanted)
        errors.append(
            float(mpmath.norm(actual - wanted) / mpmath.norm(wanted)) if held[0].isfinite().all() else math.inf
        )
    return shown(max(errors))


for method in ("MGDA", "UPGrad", "DualProj", "CAGrad", "IMTLG", "ConFIG", "NashMTL", "FairGrad", "AlignedMTL"):
    CLAIMS[f"exact_{method}"] = exactness(method)
