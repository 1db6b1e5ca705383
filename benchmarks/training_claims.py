"""Claims about training: what a step does, with mixed precision, on several ranks, compiled, with state."""

import datetime
import importlib
import os
import socket
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from claiming import UNSEEN, apart, attempt, claim, gradients, problem
from peers import PEERS, Net, Peer, has_file
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

import gradsurgery as gs


@claim
def gradient_methods(peer: Peer) -> str:
    return str(len(peer.own))


@claim
def loss_weightings(peer: Peer) -> str:
    return str(len(peer.scalarizers))


@claim
def runs_as_installed(peer: Peer) -> str:
    """LibMTL loads a file of torchvision, and keeps gradients, that newer versions do not."""
    if peer.package != "LibMTL":
        net, x = problem()
        peer.step(net, net, x)
        return "yes"
    net, x = problem()
    try:
        peer.host(net, "PCGrad", 2, repaired=False).backward(net(x)[1])  # type: ignore[attr-defined]
    except AttributeError:
        importable = has_file("torchvision", "torchvision/models/utils.py")
        return "no: the step fails" if importable else "no: import and step fail"
    return "yes"


# --- one training step --------------------------------------------------------------------------------


@claim
def finds_the_shared_parameters(peer: Peer) -> str:
    """From the losses alone; else from what the caller names, which is how the step above is written."""
    net, x = problem()
    if peer.package == "gradsurgery":
        found = peer.step(net, net, x).gramian
        row = torch.autograd.grad(net(x)[1][0], list(net.trunk.parameters()))
        return "yes" if torch.allclose(found[0, 0], sum(part.square().sum().double() for part in row)) else "no"
    if peer.package == "torchjd":
        importlib.import_module("torchjd.autojac").backward(net(x)[1])
        return "no: from the features you name" if hasattr(net.heads[0].weight, "jac") else "yes"
    return UNSEEN


@claim
def heads_keep_their_gradients(peer: Peer) -> str:
    net, x = problem()
    torch.stack(net(x)[1]).sum().backward()
    expected = gradients(net.heads)
    net.zero_grad()
    peer.step(net, net, x)
    return "yes" if apart(gradients(net.heads), expected) < 1e-6 else "no: they take part"


@claim
def absent_loss(peer: Peer) -> str:
    net, x = problem(3)

    def forward(inputs: Tensor) -> tuple[Tensor, Any]:
        z, losses = net(inputs)
        return z, [losses[0], None, losses[2]]

    return attempt(lambda: peer.step(net, forward, x))


@claim
def sees_unscaled_gradients(peer: Peer) -> str:
    """What reaches a method under a GradScaler with scale 1024."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    seen: list[float] = []
    net, x = problem()
    plain = torch.autograd.grad(net(x)[1][0], list(net.trunk.parameters()))
    unit = float(torch.cat([part.flatten() for part in plain]).square().sum())
    peer.step(net, net, x, method=_spy(peer, net, seen), scaler=scaler)
    return "yes" if abs(seen[0] / unit - 1.0) < 1e-4 else "no: times the scale"


def _spy(peer: Peer, net: Net, seen: list[float]) -> Any:
    """A method that notes the squared length of the first gradient."""
    if peer.package == "gradsurgery":

        class Spy(gs.GramianAggregator):
            def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
                seen.append(float(gramian[0, 0]))
                return torch.ones_like(gramian[0])

        return Spy()
    method = _remembering(peer, net) if peer.package == "LibMTL" else peer.methods["PCGrad"](2)
    if peer.package == "torchjd":
        method.register_forward_pre_hook(lambda _, given: seen.append(float(given[0][0].square().sum())))
        return method
    asked = "_compute_grad" if peer.package == "LibMTL" else "calculate_gradient"
    original = getattr(method, asked)

    def noting(*given: Any, **options: Any) -> Any:
        returned = original(*given, **options)
        row = returned[0] if peer.package == "LibMTL" else given[0][0]
        seen.append(float(row[: sum(parameter.numel() for parameter in net.trunk.parameters())].square().sum()))
        return returned

    setattr(method, asked, noting)
    return method


@claim
def state_survives_an_overflow(peer: Peer) -> str:
    """The step after one with an infinite loss, with a method that remembers."""
    net, x = problem()
    method = _remembering(peer, net)

    def forward(inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        z, losses = net(inputs)
        return z, [losses[0] * torch.inf, losses[1]]

    peer.step(net, net, x, method=method)
    net.zero_grad()
    attempt(lambda: peer.step(net, forward, x, method=method))
    net.zero_grad()
    said = attempt(lambda: peer.step(net, net, x, method=method))
    if said != "yes":
        return said
    return "yes" if gradients(net.trunk).isfinite().all() else "no: not finite from then on"


def _remembering(peer: Peer, net: Net) -> Any:
    if peer.package == "conflictfree":
        from conflictfree.momentum_operator import PseudoMomentumOperator

        inner = PseudoMomentumOperator(num_vectors=2)
        calculate = inner.calculate_gradient
        inner.calculate_gradient = lambda rows: calculate([0, 1], rows)
        return inner
    if peer.package == "LibMTL":
        return peer.host(net, "GradVac", 2)  # type: ignore[attr-defined]
    return peer.methods["GradVac"](2)


@claim
def state_in_checkpoints(peer: Peer) -> str:
    """Whether what GradVac, or the momentum of ConFIG, remembers comes back from a ``state_dict``."""
    net, x = problem()
    method = _remembering(peer, net)
    peer.step(net, net, x, method=method)
    if not hasattr(method, "state_dict"):
        return "no"
    state, again = method.state_dict(), _remembering(peer, net)
    said = attempt(lambda: again.load_state_dict(state))
    if not state:
        return "no"
    return said


# --- several processes, compilation ------------------------------------------------------------


@claim
def distributed_data_parallel(peer: Peer) -> str:
    return _on_two_ranks(peer, "ddp")


@claim
def fully_sharded(peer: Peer) -> str:
    return _on_two_ranks(peer, "fsdp")


def _on_two_ranks(peer: Peer, kind: str) -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "said"
        torch.multiprocessing.spawn(_rank, (port, peer.package, kind, note), nprocs=2)
        return note.read_text()


def _rank(rank: int, port: int, package: str, kind: str, note: Path) -> None:
    warnings.simplefilter("ignore")
    wait = datetime.timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=wait)
    net, x = problem()
    peer = PEERS[package]()
    peer.step(net, net, x)
    expected = gradients(net)
    net.zero_grad()
    forward: Any = net
    if kind == "ddp":
        one_head_a_pass = package == "conflictfree"
        forward = nn.parallel.DistributedDataParallel(net, find_unused_parameters=one_head_a_pass)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    said = attempt(lambda: peer.step(net, forward, x.chunk(2)[rank]))
    if said == "yes":
        found: Any = [None, None]
        said = attempt(lambda: dist.all_gather_object(found, gradients(net)))
        if said == "yes" and apart(found[0], expected) > 1e-5:
            same = apart(found[0], found[1]) < 1e-5
            said = "no: another direction" if same else "no: each rank has its own gradients"
    if rank == 0:
        note.write_text(said)
    sys.stdout.flush()
    os._exit(0)  # a library that has failed may have left the other rank in a collective


@claim
def compiled_trunk(peer: Peer) -> str:
    """By inductor, with its settings as they come; torchjd as it suggests where its default fails."""
    net, x = problem()
    peer.step(net, net, x)
    expected = gradients(net)
    said = _compiled(peer, expected)
    if said == "yes" or peer.package != "torchjd":
        return said
    peer.options = {"parallel_chunk_size": 1}  # type: ignore[attr-defined]
    with_option = _compiled(peer, expected)
    peer.options = {}  # type: ignore[attr-defined]
    return "with parallel_chunk_size=1" if with_option == "yes" else f"{said}, with parallel_chunk_size=1 too"


def _compiled(peer: Peer, expected: Tensor) -> str:
    net, x = problem()
    torch._dynamo.reset()
    net.trunk = torch.compile(net.trunk)  # type: ignore[assignment]
    with fresh_cache():
        if "Compiled" not in str(net(x)[0].grad_fn):
            raise RuntimeError("the trunk has not been compiled")
        said = attempt(lambda: peer.step(net, net, x))
    return said if said != "yes" or apart(gradients(net), expected) < 1e-4 else "no: wrong gradients"
