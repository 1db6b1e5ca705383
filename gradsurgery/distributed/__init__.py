"""Several processes that train one model: what they add up, what they agree on. On ``torch.distributed`` alone."""

from .agreement import Agreement, Counts, Presence, own_counts
from .dtensors import any_sharded, is_sharded
from .fingerprint import digest
from .ranks import Peers, Ranks
from .share import Place, Share
from .states import described, described_parameters, state_of_first

__all__ = [
    "Agreement",
    "Counts",
    "Peers",
    "Place",
    "Presence",
    "Ranks",
    "Share",
    "any_sharded",
    "described",
    "described_parameters",
    "digest",
    "is_sharded",
    "own_counts",
    "state_of_first",
]
