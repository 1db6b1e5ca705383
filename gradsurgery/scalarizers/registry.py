"""The contract of every scalarizer: one row each, its guarantees equal to those its docstring states.

Tests run over these rows, never over names. What is promised about weights is promised about the derivatives of the
scalar, in every step of a training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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
from .relobralo import ReLoBRaLo
from .softadapt import SoftAdapt
from .stch import STCH
from .sum import Sum
from .uncertainty_weighting import UncertaintyWeighting

Guarantee = Literal[
    "permutation_equivariant",
    "monotone",
    "linear_under_scaling",
    "scale_equivariant",
    "invariant_to_units",
    "constant_total",
    "one_loss_is_identity",
    "no_host_sync",
    "state_round_trip",
]

Domain = Literal["real", "nonnegative", "positive"]


@dataclass(frozen=True)
class Contract:
    """What a scalarizer promises.

    Args:
        build: Makes an instance in its default configuration, for three losses where it must know how many.
        guarantees: The properties that hold for all losses that it is meant for.
        domain: Which losses it takes; it refuses others.
    """

    build: Callable[[], Scalarizer]
    guarantees: frozenset[Guarantee]
    domain: Domain = "real"


def _contract(build: Callable[[], Scalarizer], *guarantees: Guarantee, domain: Domain = "real") -> Contract:
    return Contract(build, frozenset(guarantees), domain)


CONTRACTS: dict[type[Scalarizer], Contract] = {
    Sum: _contract(
        Sum,
        "permutation_equivariant",
        "monotone",
        "linear_under_scaling",
        "scale_equivariant",
        "constant_total",
        "one_loss_is_identity",
        "no_host_sync",
    ),
    Mean: _contract(
        Mean,
        "permutation_equivariant",
        "monotone",
        "linear_under_scaling",
        "scale_equivariant",
        "constant_total",
        "one_loss_is_identity",
        "no_host_sync",
    ),
    Constant: _contract(
        lambda: Constant([0.5, 2.0, 1.0]),
        "linear_under_scaling",
        "scale_equivariant",
        "constant_total",
        "no_host_sync",
    ),
    Random: _contract(
        Random,
        "monotone",
        "linear_under_scaling",
        "scale_equivariant",
        "constant_total",
        "one_loss_is_identity",
        "state_round_trip",
    ),
    GeometricMean: _contract(
        GeometricMean,
        "permutation_equivariant",
        "monotone",
        "scale_equivariant",
        "invariant_to_units",
        "one_loss_is_identity",
        "no_host_sync",
        domain="positive",
    ),
    UncertaintyWeighting: _contract(
        UncertaintyWeighting,
        "permutation_equivariant",
        "monotone",
        "state_round_trip",
    ),
    IMTLL: _contract(
        IMTLL,
        "permutation_equivariant",
        "monotone",
        "state_round_trip",
    ),
    DWA: _contract(
        DWA,
        "permutation_equivariant",
        "monotone",
        "linear_under_scaling",
        "scale_equivariant",
        "constant_total",
        "one_loss_is_identity",
        "state_round_trip",
    ),
    SoftAdapt: _contract(
        SoftAdapt,
        "permutation_equivariant",
        "monotone",
        "constant_total",
        "one_loss_is_identity",
        "state_round_trip",
    ),
    ReLoBRaLo: _contract(
        ReLoBRaLo,
        "permutation_equivariant",
        "monotone",
        "linear_under_scaling",
        "scale_equivariant",
        "constant_total",
        "one_loss_is_identity",
        "state_round_trip",
    ),
    FAMO: _contract(
        FAMO,
        "permutation_equivariant",
        "monotone",
        "scale_equivariant",
        "invariant_to_units",
        "constant_total",
        "one_loss_is_identity",
        "state_round_trip",
        domain="nonnegative",
    ),
    STCH: _contract(
        STCH,
        "permutation_equivariant",
        "monotone",
        "constant_total",
        "one_loss_is_identity",
        "no_host_sync",
    ),
    COSMOS: _contract(
        COSMOS,
        "permutation_equivariant",
        "no_host_sync",
    ),
    PBI: _contract(
        PBI,
        "permutation_equivariant",
        "scale_equivariant",
        "constant_total",
        "one_loss_is_identity",
        "no_host_sync",
    ),
}
