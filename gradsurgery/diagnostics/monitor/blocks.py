"""Blocks inside a network, watched together: what they do in one backward pass is one surgery in groups."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ...block import ImpartialityBlock
from ...surgery import Surgery


def blocks_in(model: nn.Module) -> dict[str, ImpartialityBlock]:
    """The blocks in a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ImpartialityBlock)}


class WatchedBlocks:
    """Several blocks, each a group of one surgery.

    A backward pass ends when all blocks were heard, one of them is heard again, or any in another pass; those that
    were not are absent.

    Args:
        blocks: By name, at least one.
        every: As for :meth:`ImpartialityBlock.register_surgery_hook`; several blocks count together.
        seen: Is given each surgery, with a group for each block if there are several.

    Raises:
        ValueError: The blocks differ in their numbers of branches.
    """

    def __init__(self, blocks: dict[str, ImpartialityBlock], every: int, seen: Callable[[Surgery], None]) -> None:
        counts = {name: block.num_branches for name, block in blocks.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"ConflictMonitor: `watched` must have blocks with the same number of branches, got {counts}. Watch "
                f"each of them with a monitor of its own: ConflictMonitor(model.get_submodule(name))."
            )
        self.branches = next(iter(counts.values()))
        self._order = list(blocks)
        self._every = every
        self._seen = seen
        self._passes = 0  # that have ended
        self._current = -1  # the backward pass that the blocks were heard in
        self._heard: dict[str, Surgery] = {}
        if len(blocks) == 1:
            self.handles: Sequence[RemovableHandle] = [
                block.register_surgery_hook(seen, every=every) for block in blocks.values()
            ]
        else:
            self.handles = [  # of each pass: a block that some pass by would count otherwise
                block.register_surgery_hook(partial(self._hear, name)) for name, block in blocks.items()
            ]

    def _hear(self, name: str, surgery: Surgery) -> None:
        current = torch._C._current_graph_task_id()
        if name in self._heard or current != self._current:
            self.finish()
        self._current = current
        self._heard[name] = surgery
        if len(self._heard) == len(self._order):
            self.finish()

    def finish(self) -> None:
        """Ends a backward pass, which may not have gone through all blocks."""
        if not self._heard:
            return
        heard, self._heard = self._heard, {}
        self._passes += 1
        if (self._passes - 1) % self._every == 0:
            self._seen(_as_groups({name: heard[name] for name in self._order if name in heard}))


def _as_groups(surgeries: dict[str, Surgery]) -> Surgery:
    """Surgeries on the same losses as one with a group for each."""
    each = list(surgeries.values())
    first, found = each[0], [surgery.gramian for surgery in each if surgery.gramian is not None]
    weights = None
    if any(surgery.weights is not None for surgery in each):
        missing = torch.full_like(first.losses, torch.nan)
        weights = torch.stack(
            [(missing if surgery.weights is None else surgery.weights).to(found[0]) for surgery in each]
        )
    return replace(first, weights=weights, gramian=torch.stack(found), groups=tuple(surgeries))


__all__ = ["WatchedBlocks", "blocks_in"]
