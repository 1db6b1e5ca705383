"""How much the columns pull against each other while a model is trained, recorded by the way."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import gradsurgery as gs


@dataclass(frozen=True)
class Conflicts:
    """What a :class:`ConflictRecorder` has seen in each of T stages of a training, of K gradients.

    Args:
        cosines: Mean cosine between two gradients, ``(T, K, K)``; NaN where never both were there.
        norms: Mean length of a gradient as it came, ``(T, K)``; NaN where it never was there.
        pulls: Mean length after the method's weights, ``(T, K)``. NaN where it never was there, and throughout with
            a method that gives no weights.
    """

    cosines: Tensor
    norms: Tensor
    pulls: Tensor


class ConflictRecorder(gs.GramianAggregator):
    r"""Any method, with a record of the gradients it was given.

    The direction is the method's. Recorded are means over the calls of each stage of

    .. math:: \cos_{jk} = \frac{G_{jk}}{\sqrt{G_{jj} G_{kk}}}, \quad \lVert g_k \rVert = \sqrt{G_{kk}}, \quad
        \text{and} \quad \lvert w_k \rvert \, \lVert g_k \rVert,

    each over the calls in which the gradients are not zero. They are part of the state, so they follow it through
    training of several seeds together; but loading an earlier state, as that of a best epoch, does not take back
    what has been seen since.

    Guarantees:
        transparent: weights, directions and draws are those of the method alone.
        batched: leading dimensions of a Gramian are separate problems with records of their own.
        state_round_trip: the record, and the method's state.

    Args:
        method: An aggregator.
        ends: After how many calls each stage ends, in ascending order; later calls count to the last stage.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``.

    Raises:
        TypeError: ``method`` is not an aggregator.
        ValueError: ``ends`` are not ascending and >= 1.

    Cost:
        The method's, and a few operations on T K x K numbers; for a method that needs the gradients themselves
        also their inner products.

    Example:
        >>> recorder = ConflictRecorder(gs.Sum(), ends=[1, 2])
        >>> recorder(torch.tensor([[3.0, 4.0], [-1.0, 0.0]]))
        tensor([2., 4.])
        >>> recorder.conflicts().cosines[0]
        tensor([[ 1.0000, -0.6000],
                [-0.6000,  1.0000]], dtype=torch.float64)
        >>> recorder.conflicts().norms
        tensor([[5., 1.],
                [nan, nan]], dtype=torch.float64)
    """

    calls: Tensor  # how many were recorded; with none, the others are None
    pairs: Tensor  # (..., T, K, K), in how many both gradients were there
    cosines: Tensor  # (..., T, K, K), sums, and so below
    norms: Tensor  # (..., T, K)
    pulls: Tensor  # (..., T, K)

    def __init__(self, method: gs.Aggregator, ends: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(method, gs.Aggregator):
            raise TypeError(
                f"ConflictRecorder: `method` must be an aggregator such as gs.Sum(), got {type(method).__name__}."
            )
        if not ends or list(ends) != sorted({*ends}) or ends[0] < 1:
            raise ValueError(f"ConflictRecorder: `ends` must be ascending numbers >= 1, got {list(ends)}.")
        self.method = method
        self.ends = tuple(ends)
        self.needs_jacobian = method.needs_jacobian
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        for name in RECORD:
            self.register_buffer(name, None)

    @property
    def works_on_parts(self) -> bool:
        return self.method.works_on_parts

    @property
    def uses_losses(self) -> bool:
        return self.method.uses_losses

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        if not isinstance(self.method, gs.GramianAggregator) or self.needs_jacobian:
            raise TypeError(
                f"ConflictRecorder: `gramian` is not enough for {type(self.method).__name__}. Call it with the "
                "Jacobian."
            )
        weights = self.method.solve(gramian, losses)
        self._record(gramian, weights)
        return weights

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        if not self.needs_jacobian:
            return super().direction(blocks, losses, at)
        directions: list[Tensor] = self.method(list(blocks), losses, at=at)
        self._record(self.gramian_of_all(blocks)[0].double(), None)
        return directions

    def conflicts(self) -> Conflicts:
        """The record as means, on the CPU.

        Raises:
            RuntimeError: nothing was recorded yet.
        """
        if not int(self.calls):
            raise RuntimeError(
                "ConflictRecorder: `conflicts` must be asked for after a call, got none yet. Train with it first."
            )
        pairs = self.pairs.cpu()
        times = pairs.diagonal(dim1=-2, dim2=-1)
        return Conflicts(self.cosines.cpu() / pairs, self.norms.cpu() / times, self.pulls.cpu() / times)

    def _record(self, gramian: Tensor, weights: Tensor | None) -> None:
        """Adds one call to its stage. State is replaced, so that a failed call can be taken back."""
        calls = int(self.calls)
        if not calls:
            stages = (*gramian.shape[:-2], len(self.ends), gramian.shape[-1])
            self.norms = self.pulls = gramian.new_zeros(stages)
            self.cosines = self.pairs = gramian.new_zeros((*stages, gramian.shape[-1]))
        stage = torch.tensor([min(bisect_right(self.ends, calls), len(self.ends) - 1)], device=gramian.device)
        norms = gramian.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
        there = (norms > 0).to(gramian)
        self.pairs = self.pairs.index_add(-3, stage, (there.unsqueeze(-1) * there.unsqueeze(-2)).unsqueeze(-3))
        divisors = torch.where(norms > 0, norms, 1.0)
        cosines = (gramian / divisors.unsqueeze(-1) / divisors.unsqueeze(-2)).clamp(-1.0, 1.0)
        self.cosines = self.cosines.index_add(-3, stage, cosines.unsqueeze(-3))
        self.norms = self.norms.index_add(-2, stage, norms.unsqueeze(-2))
        pulls = norms * (torch.nan if weights is None else weights.abs())
        self.pulls = self.pulls.index_add(-2, stage, pulls.unsqueeze(-2))
        self.calls = self.calls + 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """As in torch, but what has been seen since an earlier state stays seen."""
        earlier = int(state_dict.get(f"{prefix}calls", self.calls)) < int(self.calls)
        record = {name: self._buffers[name] for name in ("calls", *RECORD)} if earlier else {}
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self._buffers.update(record)


RECORD = ("pairs", "cosines", "norms", "pulls")


def conflicts_of(model: nn.Module) -> dict[str, Conflicts]:
    """What the recorders in a trained model have seen, by the name of the block they are in."""
    return {
        name.removesuffix(".aggregator"): module.conflicts()
        for name, module in model.named_modules()
        if isinstance(module, ConflictRecorder)
    }
