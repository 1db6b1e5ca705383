"""Train one PyTorch network on several losses without overlooking any of them.

Wrap an optimizer, hand over the losses instead of their sum::

    optimizer = gs.MultiObjectiveOptimizer(torch.optim.Adam(model.parameters()), gs.UPGrad())
    optimizer.zero_grad()
    optimizer.backward({"depth": ..., "labels": ...})
    optimizer.step()
"""

from . import aggregators, diagnostics, scalarizers
from .aggregators import (
    CRMOGM,
    IMTLG,
    MGDA,
    Aggregator,
    AlignedMTL,
    CAGrad,
    Chain,
    ConFIG,
    DualProj,
    FairGrad,
    GradDrop,
    GradNorm,
    GradVac,
    GramianAggregator,
    LossBalancer,
    Mean,
    NashMTL,
    NormalizedSGD,
    PCGrad,
    Randomized,
    Sum,
    UPGrad,
)
from .block import ImpartialityBlock
from .catalogue import available, get
from .comparison import compare
from .diagnostics import ConflictMonitor, diagnose
from .engines import functional_jacobian
from .heads import FusedHeads
from .optimizer import MultiObjectiveOptimizer
from .resumption import SurgeryState
from .rotograd import RotoGrad
from .sharing import shared_parameters, tag_shared, untag_shared
from .surgery import Surgery

__version__ = "0.1.0"

__all__ = [
    # the wrapper
    "MultiObjectiveOptimizer",
    "Surgery",
    "SurgeryState",
    # what the losses share
    "shared_parameters",
    "tag_shared",
    "untag_shared",
    # inside the network
    "FusedHeads",
    "ImpartialityBlock",
    "RotoGrad",
    # methods; the others are in gs.aggregators
    "AlignedMTL",
    "CAGrad",
    "CRMOGM",
    "Chain",
    "ConFIG",
    "DualProj",
    "FairGrad",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "IMTLG",
    "LossBalancer",
    "MGDA",
    "Mean",
    "NashMTL",
    "NormalizedSGD",
    "PCGrad",
    "Sum",
    "UPGrad",
    # methods by name
    "available",
    "get",
    # do the losses conflict, and does surgery help
    "ConflictMonitor",
    "compare",
    "diagnose",
    # writing a method
    "Aggregator",
    "GramianAggregator",
    "Randomized",
    # how gradients are obtained
    "functional_jacobian",
    # more of them
    "aggregators",
    "diagnostics",
    "scalarizers",
]  # fmt: skip
