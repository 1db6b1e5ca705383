"""The contract of every method: one row each, its guarantees equal to those its docstring states.

Tests run over these rows, never over names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .alignedmtl import AlignedMTL
from .base import Aggregator
from .cagrad import CAGrad
from .chain import Chain
from .conflict_free import ConFIG
from .conflict_free_momentum import MConFIG
from .constant import Constant
from .contrib import DCGD, PCD, ChebyshevCenter
from .crmogm import CRMOGM
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
from .sdmgrad import SDMGrad
from .sum import Sum
from .trimmedmean import TrimmedMean
from .upgrad import UPGrad

Guarantee = Literal[
    "non_conflicting",
    "permutation_equivariant",
    "linear_under_scaling",
    "scale_equivariant",
    "stationary",
    "equals_mean_without_conflict",
    "zero_rows_constrain_nothing",
    "one_loss_is_identity",
    "batched",
    "no_host_sync",
    "state_round_trip",
]


@dataclass(frozen=True)
class Contract:
    """What a method promises.

    Args:
        build: Makes an instance in its default configuration.
        kind: What it needs: the Gramian or the Jacobian.
        guarantees: The properties that hold for every Jacobian.
    """

    build: Callable[[], Aggregator]
    kind: Literal["gramian", "jacobian"]
    guarantees: frozenset[Guarantee]


def _contract(
    build: Callable[[], Aggregator], kind: Literal["gramian", "jacobian"], *guarantees: Guarantee
) -> Contract:
    return Contract(build, kind, frozenset(guarantees))


CONTRACTS: dict[type[Aggregator], Contract] = {
    Sum: _contract(
        Sum,
        "gramian",
        "permutation_equivariant",
        "linear_under_scaling",
        "scale_equivariant",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
    ),
    Mean: _contract(
        Mean,
        "gramian",
        "permutation_equivariant",
        "linear_under_scaling",
        "scale_equivariant",
        "equals_mean_without_conflict",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
    ),
    MGDA: _contract(
        MGDA,
        "gramian",
        "non_conflicting",
        "permutation_equivariant",
        "scale_equivariant",
        "stationary",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
    ),
    PCGrad: _contract(
        PCGrad,
        "gramian",
        "linear_under_scaling",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
        "state_round_trip",
    ),
    IMTLG: _contract(
        IMTLG,
        "gramian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
    ),
    ConFIG: _contract(
        ConFIG,
        "gramian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
    ),
    MConFIG: _contract(
        MConFIG,
        "jacobian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "state_round_trip",
    ),
    NashMTL: _contract(
        NashMTL,
        "gramian",
        "non_conflicting",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
    ),
    FairGrad: _contract(
        FairGrad,
        "gramian",
        "non_conflicting",
        "permutation_equivariant",
        "zero_rows_constrain_nothing",
        "batched",
    ),
    AlignedMTL: _contract(
        AlignedMTL,
        "gramian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
    ),
    UPGrad: _contract(
        UPGrad,
        "gramian",
        "non_conflicting",
        "permutation_equivariant",
        "linear_under_scaling",
        "scale_equivariant",
        "equals_mean_without_conflict",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
    ),
    DualProj: _contract(
        DualProj,
        "gramian",
        "non_conflicting",
        "permutation_equivariant",
        "scale_equivariant",
        "equals_mean_without_conflict",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
    ),
    CAGrad: _contract(
        CAGrad,
        "gramian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "batched",
    ),
    GradNorm: _contract(
        GradNorm,
        "gramian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "state_round_trip",
    ),
    GradDrop: _contract(
        GradDrop,
        "jacobian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "state_round_trip",
    ),
    ChebyshevCenter: _contract(
        ChebyshevCenter,
        "gramian",
        "non_conflicting",
        "permutation_equivariant",
        "scale_equivariant",
        "stationary",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
    ),
    DCGD: _contract(
        DCGD,
        "gramian",
        "scale_equivariant",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
    ),
    PCD: _contract(
        PCD,
        "gramian",
        "scale_equivariant",
        "one_loss_is_identity",
        "batched",
        "state_round_trip",
    ),
    ExcessMTL: _contract(
        ExcessMTL,
        "jacobian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "state_round_trip",
    ),
    MoCo: _contract(
        MoCo,
        "jacobian",
        "permutation_equivariant",
        "state_round_trip",
    ),
    DBMTL: _contract(
        DBMTL,
        "jacobian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "state_round_trip",
    ),
    SDMGrad: _contract(
        SDMGrad,
        "gramian",
        "permutation_equivariant",
        "scale_equivariant",
        "one_loss_is_identity",
        "batched",
        "state_round_trip",
    ),
    MoDo: _contract(
        MoDo,
        "gramian",
        "permutation_equivariant",
        "one_loss_is_identity",
        "batched",
        "state_round_trip",
    ),
    Constant: _contract(
        lambda: Constant([0.5, 2.0, 1.0, 0.25, 3.0, 1.5, 0.1, 4.0]),
        "gramian",
        "linear_under_scaling",
        "scale_equivariant",
        "batched",
        "no_host_sync",
    ),
    Random: _contract(
        Random,
        "gramian",
        "linear_under_scaling",
        "scale_equivariant",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
        "state_round_trip",
    ),
    GradVac: _contract(
        GradVac,
        "gramian",
        "linear_under_scaling",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "state_round_trip",
    ),
    NormalizedSGD: _contract(
        NormalizedSGD,
        "gramian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "state_round_trip",
    ),
    LossBalancer: _contract(
        LossBalancer,
        "gramian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "state_round_trip",
    ),
    Krum: _contract(
        Krum,
        "gramian",
        "permutation_equivariant",
        "scale_equivariant",
        "one_loss_is_identity",
        "batched",
    ),
    TrimmedMean: _contract(
        TrimmedMean,
        "jacobian",
        "permutation_equivariant",
        "scale_equivariant",
        "one_loss_is_identity",
        "batched",
        "no_host_sync",
    ),
    CRMOGM: _contract(
        lambda: CRMOGM(MGDA(), alpha=0.5),
        "gramian",
        "permutation_equivariant",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
        "state_round_trip",
    ),
    Chain: _contract(
        lambda: Chain(GradNorm(alpha=0.0, progress="gradient"), PCGrad()),
        "gramian",
        "scale_equivariant",
        "one_loss_is_identity",
        "batched",
        "state_round_trip",
    ),
}
