"""The scalarizers: losses in, one scalar to differentiate out. One file each, one row each in the registry."""

from .base import Scalarizer
from .constant import Constant
from .cosmos import COSMOS
from .dwa import DWA
from .famo import FAMO
from .geometric_mean import GeometricMean
from .imtll import IMTLL
from .mean import Mean
from .pbi import PBI
from .random import Random
from .registry import CONTRACTS, Contract
from .relobralo import ReLoBRaLo
from .softadapt import SoftAdapt
from .stch import STCH
from .sum import Sum
from .uncertainty_weighting import UncertaintyWeighting

__all__ = [
    "CONTRACTS",
    "COSMOS",
    "DWA",
    "FAMO",
    "IMTLL",
    "PBI",
    "STCH",
    "Constant",
    "Contract",
    "GeometricMean",
    "Mean",
    "Random",
    "ReLoBRaLo",
    "Scalarizer",
    "SoftAdapt",
    "Sum",
    "UncertaintyWeighting",
]
