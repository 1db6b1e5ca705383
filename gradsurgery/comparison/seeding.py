"""The same random numbers in every training of a seed, whatever its method draws, and the caller's left alone."""

import copy
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader

Batches: TypeAlias = Iterable[Any] | Callable[[int], Iterable[Any]]
"""The batches of every epoch, or of the epoch with a number."""

TRAINING = "training"
_END = object()


def seed_everything(*key: object) -> None:
    """Seeds torch on every device, NumPy and Python with a number made from ``key``."""
    number = _number(*key)
    # torch.manual_seed would look through the stack for every device that is not in use yet.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    np.random.seed(number)
    random.seed(number)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Puts every random state back to where it was, on leaving."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate(), torch.initial_seed()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.manual_seed(before[3])  # also of devices that are not in use yet
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)


def stream(
    batches: Batches, seed: int, epoch: int, purpose: str = TRAINING
) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Yields the batches of an epoch, each with what brings the random state back to where its forward pass began.

    Everything is seeded anew before a batch is fetched and after, so that what a method draws, or how often it runs
    the model, changes neither the batches nor the draws of dropout.
    """
    whole = _with_new_workers(batches(epoch) if callable(batches) else batches)
    own = _generators(whole)
    # Further batches are fetched while those of the training are, which bring the generators back to where they were.
    states = [generator.get_state() for generator in own] if purpose == TRAINING else []
    try:
        for generator in own:
            generator.manual_seed(_number(seed, epoch, purpose))
        seed_everything(seed, epoch, purpose)
        iterator = iter(whole)
        for step in count():
            seed_everything(seed, epoch, purpose, step, "batch")
            batch = next(iterator, _END)
            if batch is _END:
                return
            replay = partial(seed_everything, seed, epoch, purpose, step, "forward")
            replay()
            yield batch, replay
    finally:
        for generator, state in zip(own, states, strict=False):
            generator.set_state(state)


def endless(batches: Batches, seed: int, purpose: str) -> Iterator[Any]:
    """Yields batches epoch after epoch, in another order than those of the training."""
    for epoch in count():
        for batch, _ in stream(batches, seed, epoch, purpose):
            yield batch


def _with_new_workers(batches: Any) -> Any:
    """A DataLoader whose workers live for one epoch: those that stay are seeded once, and serve one iterator only."""
    if not (isinstance(batches, DataLoader) and batches.persistent_workers):
        return batches
    own = copy.copy(batches)
    own._iterator = None
    return own


def _generators(batches: object) -> list[torch.Generator]:
    """The generators that a DataLoader, or a sampler of it, was given."""
    chosen_by = getattr(batches, "batch_sampler", None)
    owners = (batches, getattr(batches, "sampler", None), chosen_by, getattr(chosen_by, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    own = {id(generator): generator for generator in found if isinstance(generator, torch.Generator)}
    return list(own.values())


def _number(*key: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "big")
