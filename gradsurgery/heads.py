"""Linear heads that are evaluated in one go, also behind an impartiality block."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .block import ImpartialityBlock
from .sharing import mark_task_specific

# Up to this ratio of multiplications, products of the outputs' gradients beat those of K gradients with respect to z.
_WORTHWHILE = 1.5
# A squared norm below this share of its terms has lost digits that the gradient itself still has.
_CANCELS = 1e-4


class FusedHeads(nn.Module):
    r"""K linear heads on one representation, in one matrix product each way.

    The weights of all heads lie in one matrix, and the forward pass is a single product with it. Behind an
    :class:`ImpartialityBlock` whose method needs only inner products, the backward pass never forms the K gradients
    with respect to z: with :math:`\delta_k` what the outputs of head k receive and :math:`W_k` its weights,

    .. math:: \langle \delta_i W_i, \delta_j W_j \rangle = \sum (\delta_i^\top \delta_j) \circ (W_i W_j^\top), \quad
        d = \sum_k w_k \delta_k W_k

    It does form them, in one padded batched product, where that is cheaper (wide heads) or more exact (terms that
    cancel), on a GPU, and for the other methods.

    Args:
        in_features: Width of the representation.
        out_features: Width of each head's output.
        bias: Whether the heads have biases.

    Shape:
        - input: ``(..., in_features)``, and a block with one branch a head, or None.
        - output: K tensors ``(..., out_features[k])``.

    Raises:
        ValueError: A width is < 1, there is no head, the input has another shape, or the block another number of
            branches.

    Cost:
        One product forward. Backward those of a linear layer; behind a block, the products of all outputs' gradients
        with each other in float64 and one product for the direction, or K gradients with respect to z.

    Example:
        >>> heads = FusedHeads(50, [1, 3])
        >>> [tuple(output.shape) for output in heads(torch.zeros(8, 50), ImpartialityBlock(2, PCGrad()))]
        [(8, 1), (8, 3)]
    """

    def __init__(self, in_features: int, out_features: Sequence[int], *, bias: bool = True) -> None:
        super().__init__()
        widths = tuple(int(width) for width in out_features)
        if in_features < 1 or not widths or min(widths) < 1:
            raise ValueError(
                f"FusedHeads: `in_features` and `out_features` must be >= 1, got {in_features} and {list(widths)}."
            )
        self.in_features = in_features
        self.out_features = widths
        self.weight = nn.Parameter(torch.empty(sum(widths), in_features))
        self.bias = nn.Parameter(torch.empty(sum(widths))) if bias else None
        self.slices = self.head_slices()
        self.owners: Tensor  # (sum(widths), K), on the host: 1 where a row of weight belongs to a head
        self.padded: Tensor  # for each row of weight its place when all heads are as wide as the widest
        self.register_buffer("padded", None, persistent=False)
        self._lay_out()
        mark_task_specific(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights and biases as ``nn.Linear`` does, which depends on ``in_features`` alone."""
        bound = self.in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def _lay_out(self) -> None:
        widest = max(self.out_features)
        places = [head * widest + row for head, width in enumerate(self.out_features) for row in range(width)]
        self.padded = torch.tensor(places, device=self.weight.device)
        self.owners = torch.zeros(sum(self.out_features), len(self.out_features), dtype=torch.float64, device="cpu")
        for head, rows in enumerate(self.slices):
            self.owners[rows, head] = 1.0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FusedHeads":
        """As in torch; what is not in a state dict is written anew, for ``to_empty`` leaves it as it finds memory."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._lay_out()
        return self

    def head_slices(self) -> list[slice]:
        """The rows of ``weight`` that belong to each head."""
        ends = list(accumulate(self.out_features))
        return [slice(end - width, end) for end, width in zip(ends, self.out_features, strict=True)]

    def forward(self, z: Tensor, block: ImpartialityBlock | None = None) -> tuple[Tensor, ...]:
        """Applies all heads to ``z``; through ``block``, if given, each to a view of its own."""
        if z.ndim == 0 or z.shape[-1] != self.in_features:
            raise ValueError(f"FusedHeads: `z` must be (..., {self.in_features}), got {tuple(z.shape)}.")
        if block is None:
            output = functional.linear(z, self.weight, self.bias)
        elif block.num_branches != len(self.out_features):
            raise ValueError(
                f"FusedHeads: `block` must have one branch a head, {len(self.out_features)}, got "
                f"{block.num_branches}."
            )
        else:
            behind = torch.compiler.disable(self._behind) if torch.compiler.is_compiling() else self._behind
            output = behind(z, block)
        return tuple(output.split(self.out_features, dim=-1))

    def _behind(self, z: Tensor, block: ImpartialityBlock) -> Tensor:
        """All outputs as one tensor, each head on its own view of ``z``."""
        if not (z.requires_grad and torch.is_grad_enabled()):
            return functional.linear(z, self.weight, self.bias)
        # at most one: a pass for the heads' parameters alone leaves its own behind
        received: list[Tensor | None] = []
        view = _Passed.apply(z, self.weight.detach(), self, block, received)  # type: ignore[no-untyped-call]
        output = functional.linear(view, self.weight, self.bias)
        output.register_hook(lambda gradient: _replace(received, gradient))
        return output

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={list(self.out_features)}"


def _replace(received: list[Tensor | None], gradient: Tensor | None) -> None:
    received[:] = [None if gradient is None else gradient.detach()]  # else a graph of it would keep itself alive


class _Passed(torch.autograd.Function):
    """The identity; backward, what the block makes of the gradient that the heads' outputs have received."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor,
        heads: FusedHeads,
        block: ImpartialityBlock,
        received: list[Tensor | None],
    ) -> Tensor:
        ctx.save_for_backward(z, weight)
        ctx.heads, ctx.block, ctx.received = heads, block, received
        return z.view_as(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor) -> tuple[Tensor, None, None, None, None]:
        z, weight = ctx.saved_tensors
        gradient = ctx.received.pop()
        if gradient is None:  # nothing came back
            return total, None, None, None, None
        gradient = gradient.reshape(-1, gradient.shape[-1])  # in lower precision than the weights under autocast
        block, heads = ctx.block, ctx.heads
        found = None if block.needs_rows else _direction(gradient, weight, total, heads, block)
        if found is None:
            rows = _gradient_by_head(gradient, weight.to(gradient.dtype), heads)
            found = block.aggregate(rows.view(len(heads.out_features), *z.shape).to(z.dtype), z)
        return found, None, None, None, None


def _direction(
    gradient: Tensor, weight: Tensor, total: Tensor, heads: FusedHeads, block: ImpartialityBlock
) -> Tensor | None:
    """What a method makes of the inner products, from the gradient ``(N, sum(widths))`` of the heads' outputs.

    None where the K gradients with respect to z are cheaper, or more exact because their terms cancel.
    """
    rows, count, width = len(gradient), len(heads.out_features), heads.in_features
    if not weight.is_cpu or len(weight) ** 2 * (rows + width) > _WORTHWHILE * count**2 * rows * width:
        return None
    deltas, matrix = gradient.double(), weight.to(gradient.dtype).double()
    products = (deltas.mT @ deltas).mul_(matrix @ matrix.mT)
    gramian = heads.owners.mT @ products @ heads.owners
    terms = products.diagonal().tolist()
    for squared_norm, own in zip(gramian.diagonal().tolist(), heads.slices, strict=True):
        if squared_norm < _CANCELS * sum(terms[own]):
            return None
    weights = heads.owners @ block.weights(gramian)
    direction = ((deltas * weights) @ matrix).view(total.shape)
    return (block.rescaled(direction, total) if block.rescale else direction).to(total.dtype)


def _gradient_by_head(gradient: Tensor, weight: Tensor, heads: FusedHeads) -> Tensor:
    """For each head the gradient with respect to its input: ``(N, sum(widths))`` to ``(K, N, in_features)``."""
    count, widest = len(heads.out_features), max(heads.out_features)
    padded_weight = weight.new_zeros(count * widest, weight.shape[1]).index_copy_(0, heads.padded, weight)
    padded = gradient.new_zeros(gradient.shape[0], count * widest).index_copy_(1, heads.padded, gradient)
    by_head = padded.view(-1, count, widest).transpose(0, 1)
    return torch.bmm(by_head, padded_weight.view(count, widest, -1))
