"""Fingerprints that are compared without waiting, and counts of items."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gradsurgery.distributed import Peers, own_counts
from gradsurgery.distributed.fingerprint import Fingerprint, digest


class Pair:
    """Two ranks, of which the other one has what it is told to have."""

    def __init__(self) -> None:
        self.other: list[int] = []

    def __call__(self, own: Tensor) -> Tensor:
        return torch.stack([own, torch.tensor(self.other)])


@pytest.mark.parametrize("waits", [True, False])
def test_what_is_new_is_waited_for(waits: bool) -> None:
    pair = Pair()
    fingerprint = Fingerprint(pair, waits)
    pair.other = [1, 3]
    assert fingerprint.differing([1, 2]) == [False, True]
    assert fingerprint.all_wait


def test_what_is_steady_is_looked_at_in_the_next_call() -> None:
    pair = Pair()
    fingerprint = Fingerprint(pair, waits=False)
    pair.other = [1, 2]
    assert fingerprint.differing([1, 2]) == [False, False]
    pair.other = [1, 7]
    assert fingerprint.differing([1, 2]) == [False, False]  # not known yet
    assert fingerprint.differing([1, 2]) == [False, True]
    assert not fingerprint.all_wait


def test_the_rank_that_changes_knows_at_once_and_that_the_other_goes_on() -> None:
    pair = Pair()
    fingerprint = Fingerprint(pair, waits=False)
    pair.other = [1, 2]
    fingerprint.differing([1, 2])
    assert fingerprint.differing([1, 7]) == [False, True]
    assert not fingerprint.all_wait


def test_where_the_host_communicates_all_wait() -> None:
    pair = Pair()
    fingerprint = Fingerprint(pair, waits=True)
    pair.other = [1, 2]
    fingerprint.differing([1, 2])
    pair.other = [1, 7]
    assert fingerprint.differing([1, 2]) == [False, True]
    assert fingerprint.all_wait


def test_where_all_wait_one_may_change_alone() -> None:
    pair = Pair()
    fingerprint = Fingerprint(pair, waits=False)
    pair.other = [1, 2]
    fingerprint.differing([1, 2], wait=True)
    assert fingerprint.differing([1, 7], wait=True) == [False, True]
    assert fingerprint.all_wait
    pair.other = [1, 8]
    assert fingerprint.differing([1, 7], wait=True) == [False, True]  # known at once
    assert fingerprint.all_wait


def test_digests_tell_texts_apart() -> None:
    texts = ["", "a", "b", "ab", "['a', 'b']"]
    assert len({digest(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (None, [1.0, 0.0, 1.0]),
        (4, [4.0, 0.0, 4.0]),
        ({"a": 3, "b": 0}, [3.0, 0.0, 1.0]),
        ([3, 5], [3.0, 0.0, 1.0]),
    ],
)
def test_counts(counts: Any, expected: list[float]) -> None:
    assert own_counts(counts, ["a"], ["a", "b"], "Test") == expected


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 1}, r"Test: `counts` must have one number a loss, \['a', 'b'\], got \['a'\]"),
        ([1, 2, 3], r"`counts` must have one number a loss, \['a', 'b'\], got \['0', '1', '2'\]"),
        ({"a": 1, "b": -1}, r"`counts` must be finite and >= 0, got {'b': -1.0}"),
        (float("nan"), "`counts` must be finite and >= 0"),
    ],
)
def test_wrong_counts(counts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_counts(counts, ["a"], ["a", "b"], "Test")


def test_peers_are_alone_without_a_group_and_survive_copying() -> None:
    peers = Peers(None, "Test")
    peers.have_followed = True
    for copied in (copy.deepcopy(peers), pickle.loads(pickle.dumps(peers))):
        assert copied.now() is None
        assert not copied.have_followed


def test_a_given_group_that_is_gone_is_refused() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        peers = Peers(dist.new_group([0]), "Test")
        assert peers.now() is None  # of one
    finally:
        dist.destroy_process_group()
    with pytest.raises(RuntimeError, match="Test: `process_group` must be one that has not been destroyed"):
        peers.now()
