"""The methods: per-loss gradients in, one direction out. One file each, one row each in the registry."""

from ..state import Randomized
from .alignedmtl import AlignedMTL
from .base import Aggregator, GramianAggregator
from .cagrad import CAGrad
from .chain import Chain
from .conflict_free import ConFIG
from .conflict_free_momentum import MConFIG
from .constant import Constant
from .crmogm import CRMOGM
from .crossbatch import CrossBatch
from .dbmtl import DBMTL
from .dualproj import DualProj
from .excessmtl import ExcessMTL
from .fairgrad import FairGrad
from .graddrop import GradDrop
from .gradnorm import GradNorm
from .gradvac import GradVac
from .imtlg import IMTLG
from .krum import Krum
from .lossbalancer import LossBalancer
from .mean import Mean
from .mgda import MGDA
from .moco import MoCo
from .modo import MoDo
from .nashmtl import NashMTL
from .normalizedsgd import NormalizedSGD
from .pcgrad import PCGrad
from .random import Random
from .registry import CONTRACTS, Contract
from .sdmgrad import SDMGrad
from .sum import Sum
from .trimmedmean import TrimmedMean
from .upgrad import UPGrad

__all__ = [
    "CONTRACTS",
    "CRMOGM",
    "DBMTL",
    "IMTLG",
    "MGDA",
    "Aggregator",
    "AlignedMTL",
    "CAGrad",
    "Chain",
    "ConFIG",
    "Constant",
    "Contract",
    "DualProj",
    "ExcessMTL",
    "FairGrad",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GramianAggregator",
    "Krum",
    "LossBalancer",
    "MConFIG",
    "Mean",
    "MoCo",
    "MoDo",
    "NashMTL",
    "NormalizedSGD",
    "PCGrad",
    "Random",
    "Randomized",
    "CrossBatch",
    "SDMGrad",
    "Sum",
    "TrimmedMean",
    "UPGrad",
]
