"""The methods: per-loss gradients in, one direction out. One file each, one row each in the registry."""

from ..state import Randomized
from .base import Aggregator, GramianAggregator
from .chain import Chain
from .graddrop import GradDrop
from .gradnorm import GradNorm
from .imtlg import IMTLG
from .mean import Mean
from .mgda import MGDA
from .pcgrad import PCGrad
from .registry import CONTRACTS, Contract
from .sum import Sum
from .upgrad import UPGrad

__all__ = [
    "CONTRACTS",
    "IMTLG",
    "MGDA",
    "Aggregator",
    "Chain",
    "Contract",
    "GradDrop",
    "GradNorm",
    "GramianAggregator",
    "Mean",
    "PCGrad",
    "Randomized",
    "Sum",
    "UPGrad",
]
