"""The same rows through the same method of two libraries: the factor between the directions, and what is left.

Part of ``claims.py``. ``factor`` is ours over theirs in the sense of least squares, ``left`` the relative length of
ours minus the factor times theirs. Five rows in nine dimensions, or as many as a method can take; options as stated.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import LibMTL, Peer, default_dtype
from torch import Tensor

import gradsurgery as gs

ROUNDING = 1e-13  # below it nothing is left
Direction = Callable[[Tensor], Tensor]
Pair = tuple[Callable[[], Any], Direction, int]  # ours, theirs, number of rows


def rows(count: int) -> Tensor:
    """Gaussian, of lengths 1 to 3."""
    source = np.random.default_rng(2)
    return torch.from_numpy(source.standard_normal((count, 9)) * np.linspace(1.0, 3.0, count)[:, None] / 3.0)


def measure(installed: dict[str, Peer], scripts: Path | None = None) -> dict[str, dict[str, dict[str, float]]]:
    """By library and method."""
    pairs: dict[str, dict[str, Pair]] = {}
    if "torchjd" in installed:
        pairs["torchjd"] = of_torchjd()
    if isinstance(peer := installed.get("LibMTL"), LibMTL):
        pairs["LibMTL"] = of_libmtl(peer)
    if "conflictfree" in installed:
        pairs["conflictfree"] = of_conflictfree()
    if scripts:
        pairs["nash-mtl"] = of_scripts(scripts)
    found = {library: {name: compare(*pair) for name, pair in of.items()} for library, of in pairs.items()}
    if "torchjd" in installed:
        found["torchjd"] |= scalarizers_of_torchjd()
    return found


def scalarizers_of_torchjd() -> dict[str, dict[str, float]]:
    """The weights that the losses 1, 2 and 4 get at the first step."""
    theirs = importlib.import_module("torchjd.scalarization")
    s = gs.scalarizers
    pairs = {
        "UW": (s.UncertaintyWeighting(), theirs.UW(3)),
        "IMTLL": (s.IMTLL(), theirs.IMTLL(3)),
        "GeometricMean": (s.GeometricMean(), theirs.GeometricMean()),
        "STCH(mu=1.0)": (s.STCH(mu=1.0), theirs.STCH(mu=1.0)),
        "DWA": (s.DWA(), theirs.DWA()),
        "scalarization.FAMO": (s.FAMO(), theirs.FAMO(3)),
    }
    found = {}
    for name, pair in pairs.items():
        losses = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
        ours, other = (torch.autograd.grad(each(losses), losses)[0].double() for each in pair)
        found[name] = _figures(ours, other)
    return found


def compare(build: Callable[[], Any], theirs: Direction, count: int) -> dict[str, float]:
    torch.manual_seed(0)
    jacobian = rows(count)
    method = build()
    if isinstance(method, gs.GramianAggregator) and not method.needs_jacobian:
        ours = method.solve(gs.kernels.gramian([jacobian])[0]) @ jacobian
    else:
        ours = method(jacobian)
    other = theirs(jacobian.clone()).detach().double()
    return _figures(ours, other)


def _figures(ours: Tensor, other: Tensor) -> dict[str, float]:
    factor = float(ours @ other / (other @ other))
    left = float((ours - factor * other).norm() / ours.norm())
    return {"factor": float(f"{factor:.4g}"), "left": float(f"{left:.0e}") if left > ROUNDING else 0.0}


def of_torchjd() -> dict[str, Pair]:
    theirs = importlib.import_module("torchjd.aggregation")
    a, contrib = gs.aggregators, gs.aggregators.contrib
    halves = [0.1, 0.2, 0.3, 0.2, 0.2]
    projector = importlib.import_module("torchjd.linalg").QuadprogProjector
    return {
        "Sum": (gs.Sum, theirs.Sum(), 5),
        "Mean": (gs.Mean, theirs.Mean(), 5),
        "Constant": (lambda: a.Constant(halves), theirs.Constant(torch.tensor(halves, dtype=torch.float64)), 5),
        "UPGrad": (gs.UPGrad, theirs.UPGrad(), 5),
        "UPGrad(reg_eps=1e-12)": (gs.UPGrad, theirs.UPGrad(projector=projector(reg_eps=1e-12)), 5),
        "DualProj": (gs.DualProj, theirs.DualProj(), 5),
        "MGDA": (gs.MGDA, theirs.MGDA(), 5),
        "MGDA(epsilon=1e-9, max_iters=100000)": (gs.MGDA, theirs.MGDA(epsilon=1e-9, max_iters=100000), 5),
        "PCGrad": (gs.PCGrad, theirs.PCGrad(), 2),
        "GradVac(beta=0.01)": (lambda: gs.GradVac(beta=0.01), theirs.GradVac(beta=0.01), 2),
        "CAGrad(c=0.4)": (lambda: gs.CAGrad(c=0.4), theirs.CAGrad(c=0.4), 5),
        "IMTLG": (gs.IMTLG, theirs.IMTLG(), 5),
        "ConFIG": (gs.ConFIG, theirs.ConFIG(), 5),
        "AlignedMTL": (gs.AlignedMTL, theirs.AlignedMTL(), 5),
        "FairGrad(alpha=2.0)": (lambda: gs.FairGrad(alpha=2.0), theirs.FairGrad(alpha=2.0), 5),
        "NashMTL": (lambda: gs.NashMTL(normalize=False, max_norm=1.0), theirs.NashMTL(n_tasks=5), 5),
        "NashMTL(max_norm=0)": (lambda: gs.NashMTL(normalize=False), theirs.NashMTL(n_tasks=5, max_norm=0.0), 5),
        "PCD": (contrib.PCD, theirs.PCD(), 5),
        "Krum(n_byzantine=1)": (lambda: a.Krum(1), theirs.Krum(n_byzantine=1), 5),
        "TrimmedMean(trim_number=1)": (lambda: a.TrimmedMean(1), theirs.TrimmedMean(trim_number=1), 5),
    }


def of_libmtl(peer: LibMTL) -> dict[str, Pair]:
    def through(name: str, **options: Any) -> Direction:
        def direction(jacobian: Tensor) -> Tensor:
            from peers import Rows

            net = Rows(jacobian)
            with default_dtype(torch.float64):
                peer.host(net, name, len(jacobian)).backward(net()[1], **options)
            return net.trunk[0].grad

        return direction

    return {
        "MGDA(mgda_gn='none')": (gs.MGDA, through("MGDA", mgda_gn="none"), 5),
        "MGDA(mgda_gn='l2')": (lambda: gs.MGDA("l2"), through("MGDA", mgda_gn="l2"), 5),
        "PCGrad": (gs.PCGrad, through("PCGrad"), 2),
        "GradVac(beta=0.01)": (lambda: gs.GradVac(beta=0.01), through("GradVac", beta=0.01), 2),
        "CAGrad(calpha=0.4, rescale=0)": (lambda: gs.CAGrad(c=0.4), through("CAGrad", calpha=0.4, rescale=0), 3),
        "CAGrad(calpha=0.4, rescale=1)": (
            lambda: gs.CAGrad(c=0.4, rescale="1+c^2"),
            through("CAGrad", calpha=0.4, rescale=1),
            3,
        ),
    }


def of_conflictfree() -> dict[str, Pair]:
    operators = importlib.import_module("conflictfree.grad_operator")

    def of(name: str) -> Direction:
        def direction(jacobian: Tensor) -> Tensor:
            with default_dtype(torch.float64):
                return getattr(operators, name)().calculate_gradient(jacobian)

        return direction

    return {
        "ConFIGOperator, two losses": (gs.ConFIG, of("ConFIGOperator"), 2),
        "ConFIGOperator": (gs.ConFIG, of("ConFIGOperator"), 5),
        "PCGradOperator": (gs.PCGrad, of("PCGradOperator"), 2),
        "IMTLGOperator": (gs.IMTLG, of("IMTLGOperator"), 5),
    }


def of_scripts(clone: Path) -> dict[str, Pair]:
    """The weight methods of the Nash-MTL code base, from which those of FAMO, FairGrad and others descend."""
    sys.path.insert(0, str(clone))
    methods = importlib.import_module("methods.weight_methods").METHODS

    def through(name: str, count: int, **options: Any) -> Direction:
        def direction(jacobian: Tensor) -> Tensor:
            with default_dtype(torch.float64):
                shared = torch.nn.Parameter(torch.zeros(jacobian.shape[1]))
                method = methods[name](n_tasks=count, device=torch.device("cpu"), **options)
                method.backward(jacobian @ shared, shared_parameters=[shared])
            return shared.grad

        return direction

    return {
        "pcgrad": (gs.PCGrad, through("pcgrad", 2), 2),
        "cagrad(c=0.4)": (lambda: gs.CAGrad(c=0.4, rescale="1+c^2"), through("cagrad", 5, c=0.4), 5),
        "imtl": (gs.IMTLG, through("imtl", 5), 5),
        "nashmtl": (lambda: gs.NashMTL(normalize=False, max_norm=1.0), through("nashmtl", 5), 5),
        "nashmtl(max_norm=0)": (lambda: gs.NashMTL(normalize=False), through("nashmtl", 5, max_norm=0.0), 5),
    }
