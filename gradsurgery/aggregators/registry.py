"""The contract of every method: one row each, its guarantees equal to those its docstring states.

Tests run over these rows, never over names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .base import Aggregator
from .chain import Chain
from .graddrop import GradDrop
from .gradnorm import GradNorm
from .imtlg import IMTLG
from .mean import Mean
from .mgda import MGDA
from .pcgrad import PCGrad
from .sum import Sum
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
    ),
    PCGrad: _contract(
        PCGrad,
        "gramian",
        "linear_under_scaling",
        "scale_equivariant",
        "zero_rows_constrain_nothing",
        "one_loss_is_identity",
        "batched",
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
    Chain: _contract(
        lambda: Chain(GradNorm(alpha=0.0, progress="gradient"), PCGrad()),
        "gramian",
        "scale_equivariant",
        "one_loss_is_identity",
        "batched",
        "state_round_trip",
    ),
}
