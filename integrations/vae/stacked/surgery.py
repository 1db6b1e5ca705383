"""Linear heads of several models at once, and what their impartiality blocks make of the heads' gradients."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import gradsurgery as gs

from .captured_method import is_capturable, solve_in_place

# A squared norm below this share of its terms has lost digits that the gradient itself still has.
CANCELS = 1e-4


class StackedBlocks:
    r"""The impartiality blocks of S models with the same heads, in one call.

    A method that needs only inner products and draws nothing solves the S Gramians together, with a state for each;
    they are formed from the gradients of the heads' outputs, without the K gradients with respect to z. Of any
    other method each model's own instance is called, which then draws what it would draw alone. On a GPU the K
    gradients are formed in any case: whether their inner products are exact without would have to be waited for.

    Args:
        blocks: One a model, with methods of the same kind and options.
        widths: Widths of the K heads' outputs.
        rows: The order that the rows of all heads' weights are in.
    """

    def __init__(self, blocks: Sequence[gs.ImpartialityBlock], widths: Sequence[int], rows: Sequence[int]) -> None:
        self.blocks = list(blocks)
        owners = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))[list(rows)]
        self._heads = [(owners == head).nonzero().flatten() for head in range(len(widths))]
        self._owners = torch.nn.functional.one_hot(owners, len(widths)).double()  # (rows, K)
        method = blocks[0].aggregator
        self.is_plain_sum = all(type(block.aggregator) is gs.Sum for block in blocks)
        together = not blocks[0].needs_rows and not any(isinstance(part, gs.Randomized) for part in method.modules())
        self._method = copy.deepcopy(method) if together and isinstance(method, gs.GramianAggregator) else None
        self._on_gpu = False
        self._shapes: dict[str, torch.Size] = {}
        if self._method is not None:
            alone = copy.deepcopy(self._method)
            alone.solve(torch.eye(len(widths)))
            self._shapes = {name: value.shape for name, value in alone.state_dict().items()}

    def to(self, device: torch.device) -> None:
        """Goes where the gradients are."""
        self._owners = self._owners.to(device)
        self._heads = [own.to(device) for own in self._heads]
        self._on_gpu = device.type != "cpu"

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph can hold what happens to gradients on a GPU."""
        return self.is_plain_sum or (self._method is not None and is_capturable(self._method))

    def heads(self, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The outputs of all heads; what goes back to z is aggregated.

        Shape:
            - z: ``(S, N, h)``.
            - weight: ``(S, rows, h)``.
            - bias: ``(S, rows)``.
            - output: ``(S, N, rows)``.
        """
        outputs: Tensor = _Heads.apply(z, weight, bias, self)  # type: ignore[no-untyped-call]
        return outputs

    def hand_back(self) -> None:
        """Gives each model's method what was learnt on its Gramians."""
        if self._method is None:
            return
        state = self._method.state_dict()
        for index, block in enumerate(self.blocks):
            own = {name: _share(value, self._shapes[name], index) for name, value in state.items()}
            block.aggregator.load_state_dict(own)

    @property
    def learnt(self) -> dict[str, Tensor]:
        """What was learnt on all Gramians; nothing where the models' own methods learn."""
        return {} if self._method is None else dict(self._method.state_dict())

    def load_learnt(self, learnt: dict[str, Tensor]) -> None:
        """Takes what :attr:`learnt` gave."""
        if self._method is not None:
            self._method.load_state_dict(learnt)
            self._method.to(self._owners.device)

    def aggregate(self, delta: Tensor, weight: Tensor, z: Tensor) -> Tensor:
        """What is passed on to z, from the gradient ``(S, N, rows)`` of the heads' outputs."""
        if self.is_plain_sum:
            return delta @ weight
        if self.blocks[0].needs_rows:
            gradients = zip(self.blocks, self._by_head(delta, weight), z, strict=True)
            return torch.stack([block.aggregate(own, at) for block, own, at in gradients])
        direction, gramians = (self._by_rows if self._on_gpu else self._by_products)(delta, weight)
        direction = direction.view(z.shape)
        return (_rescaled(direction, gramians) if self.blocks[0].rescale else direction).to(z.dtype)

    def _by_products(self, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The direction and the Gramians, without the K gradients where these are as exact."""
        wide, matrix = delta.double(), weight.double()
        products = (wide.mT @ wide).mul_(matrix @ matrix.mT)
        gramians = self._owners.mT @ products @ self._owners
        terms = products.diagonal(dim1=1, dim2=2) @ self._owners
        if bool((gramians.diagonal(dim1=1, dim2=2) < CANCELS * terms).any()):
            return self._by_rows(delta, weight)
        weights = self._solve(gramians) @ self._owners.mT
        return (wide * weights.unsqueeze(1)) @ matrix, gramians

    def _by_rows(self, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The same from the K gradients."""
        by_head = self._by_head(delta, weight).double().flatten(2)
        gramians = by_head @ by_head.mT
        return self._solve(gramians).unsqueeze(1) @ by_head, gramians

    def _solve(self, gramians: Tensor) -> Tensor:
        """The weights ``(S, K)`` of the heads."""
        if self._method is not None:
            in_place = self._on_gpu and self.is_capturable
            return solve_in_place(self._method, gramians) if in_place else self._method.solve(gramians)
        return torch.stack([block.weights(own) for block, own in zip(self.blocks, gramians, strict=True)])

    def _by_head(self, delta: Tensor, weight: Tensor) -> Tensor:
        """The gradients with respect to z, ``(S, K, N, h)``."""
        return torch.stack([delta[..., own] @ weight[:, own] for own in self._heads], dim=1)


def _share(stacked: Tensor, shape: torch.Size, index: int) -> Tensor:
    """The part of one problem in a state; what has no leading dimension belongs to all of them."""
    return stacked if stacked.shape == shape else stacked[index]


def _rescaled(direction: Tensor, gramians: Tensor) -> Tensor:
    """Each model's direction with the norm of its plain sum; zero stays zero."""
    norm = torch.linalg.vector_norm(direction, dim=(1, 2))
    target = gramians.sum((1, 2)).clamp(min=0.0).sqrt()
    return direction.mul_(torch.where(norm > 0, target / norm, 1.0)[:, None, None])


class _Heads(torch.autograd.Function):
    """A linear layer for each model; backward, the gradient of its input is aggregated."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor, blocks: StackedBlocks) -> Tensor:
        ctx.save_for_backward(z, weight)
        ctx.blocks = blocks
        return torch.baddbmm(bias.unsqueeze(1), z, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        z, weight = ctx.saved_tensors
        aggregated = ctx.blocks.aggregate(delta, weight, z)
        if not ctx.needs_input_grad[1]:  # the heads are held
            return aggregated, None, None, None
        return aggregated, delta.mT @ z, delta.sum(1), None
