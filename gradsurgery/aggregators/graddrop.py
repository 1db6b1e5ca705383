"""GradDrop: each coordinate keeps one sign."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..distributed import Place
from ..kernels import widened
from ..state import Randomized
from .base import Aggregator


class GradDrop(Randomized, Aggregator):
    r"""Keeps, in every coordinate, only the positive or only the negative entries, at random by their purity.

    .. math:: P = \tfrac12 \Bigl(1 + \frac{\sum_k g_k}{\sum_k \lvert g_k \rvert}\Bigr), \quad
        m_k = [U < P] [g_k > 0] + [U \ge P] [g_k < 0], \quad
        d = \sum_k \bigl(\ell_k + (1 - \ell_k)\, m_k\bigr) g_k

    U is uniform, drawn for each coordinate. At an ``ImpartialityBlock`` the signs compared are those of
    :math:`\operatorname{sign}(z)\, g_k`, summed over the batch (the block's first dimension), as published.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter (without leak), for the same draws.
        scale_equivariant: ``d(sJ) = s d(J)``, for the same draws.
        zero_rows_constrain_nothing: a zero row changes no sign.
        one_loss_is_identity: with one loss, ``d = g``.
        batched: leading dimensions are separate problems with draws of their own.
        state_round_trip: the generator's position is part of the state.

    Args:
        leak: Share of each gradient that is let through untouched, in [0, 1]; one number or one a loss.
        generator: Source of the seeds of the draws, on the CPU. ``None``: a new one, seeded with the global
            seed.

    Shape:
        - jacobian: ``(..., K, P)`` or a list of blocks ``(K, ...)``.
        - output: ``(..., P)`` or a list of tensors ``(...)``.

    Raises:
        ValueError: A leak is outside [0, 1], or there is not one a loss.

    Cost:
        Two passes over the Jacobian, and memory for one more copy of a block.

    References:
        Chen et al., Just pick a sign: optimizing deep multitask models with gradient sign dropout, NeurIPS
        2020 (arXiv:2010.06808), algorithm 1.

    Example:
        >>> GradDrop()(torch.tensor([[3.0, -1.0], [2.0, -5.0]]))  # the signs agree: the plain sum
        tensor([ 5., -6.])
    """

    def __init__(self, leak: float | Sequence[float] = 0.0, *, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        leaks = [float(leak)] if isinstance(leak, int | float) else [float(value) for value in leak]
        if not leaks or not all(0.0 <= value <= 1.0 for value in leaks):
            raise ValueError(f"GradDrop: `leak` must be in [0, 1], got {leak!r}.")
        self.leak = leak if isinstance(leak, int | float) else tuple(leaks)

    @property
    def works_on_parts(self) -> bool:
        return True

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        leak = self._leak_of_rows(blocks[0].shape[0])
        seed = int(torch.randint(1 << 62, (), generator=self.generator))
        draws: dict[torch.device, torch.Generator] = {}
        directions = []
        for position, block in enumerate(blocks):
            source = draws.get(block.device)
            if source is None:
                source = draws[block.device] = torch.Generator(block.device).manual_seed(seed)
            signed = widened(block)
            if at is not None:
                signed = self.total((signed * at.sign()).sum(dim=1, keepdim=True))
            draw = _draw(signed[0], source, self.place(position))
            directions.append(_keep_one_sign(block, signed, draw, leak))
        return directions

    def _leak_of_rows(self, count: int) -> Tensor:
        if isinstance(self.leak, int | float):
            return torch.full((count,), float(self.leak), dtype=torch.float64)
        rows = self.current_rows(count)
        if max(rows) >= len(self.leak):
            raise ValueError(
                f"GradDrop: `leak` must have one entry a loss, got {len(self.leak)} for loss {max(rows)}."
            )
        return torch.tensor([self.leak[row] for row in rows], dtype=torch.float64)


def _draw(like: Tensor, source: torch.Generator, place: Place | None) -> Tensor:
    """One number a coordinate; where only some of the coordinates are here, those that the whole would get."""
    shape = like.shape if place is None else place.shape
    drawn = torch.rand(shape, generator=source, device=like.device, dtype=like.dtype)
    return drawn if place is None else drawn[place.slices].view(like.shape)


def _keep_one_sign(block: Tensor, signed: Tensor, draw: Tensor, leak: Tensor) -> Tensor:
    dtype = block.dtype
    block = widened(block)
    total = signed.abs().sum(dim=0)
    purity = 0.5 * (1.0 + signed.sum(dim=0) / torch.where(total == 0, torch.ones_like(total), total))
    keep = torch.where(draw < purity, signed > 0, signed < 0)  # (K, ...)
    shares = leak.to(device=block.device, dtype=block.dtype).view(-1, *[1] * (block.ndim - 1))
    mask = torch.lerp(keep.to(block.dtype), torch.ones_like(shares), shares)
    return (block * mask).sum(dim=0).to(dtype)
