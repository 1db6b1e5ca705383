"""Surgery at a point inside the network: the block, and heads that evaluate in one go behind it."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .aggregators import Aggregator
from .distributed import check_single_process
from .sharing import mark_task_specific


class ImpartialityBlock(nn.Module):
    r"""Hands a representation to several branches and aggregates what they send back.

    The forward pass is the identity, K times. The backward pass receives the K gradients with respect to z and
    passes on one direction in place of their sum:

    .. math:: \frac{\partial L}{\partial z} := s \cdot \mathrm{aggregator}(J), \quad
        J_k = \frac{\partial L_k}{\partial z}, \quad
        s = \frac{\lVert \sum_k J_k \rVert}{\lVert \mathrm{aggregator}(J) \rVert}

    Everything below z is then trained impartially by any optimizer, in any training loop; the branches keep
    their own gradients. A branch that is not used, or sends back nothing, is a row of zeros.

    Guarantees:
        with ``Sum()``, the gradients are those of the plain sum.
        nonfinite_propagates: non-finite gradients pass as such and leave the method's state as it was.

    Args:
        num_branches: K, >= 1.
        aggregator: The method. Its state is the block's. One that needs the losses, or remembers gradients, cannot
            work here: a block sees no losses, and its rows are as long as the batch is large.
        rescale: Whether the result gets the Frobenius norm of the plain sum, so that the learning rate keeps its
            meaning.
        grad_scaler: The scaler of float16 training, for methods that are not homogeneous in the gradients; it
            is not needed by the others.

    Shape:
        - input: any.
        - output: K tensors of the same shape.

    Raises:
        ValueError: ``num_branches`` is < 1, or ``aggregator`` needs the losses or remembers gradients.
        TypeError: ``aggregator`` is not an aggregator.
        RuntimeError: The backward pass is differentiated again.

    Cost:
        One ordinary backward pass; the K gradients with respect to z; the method.

    References:
        Javaloy, Meghdadi and Valera, Mitigating modality collapse in multimodal VAEs via impartial
        optimization, ICML 2022.

    Example:
        >>> z = torch.ones(2, requires_grad=True)
        >>> first, second = ImpartialityBlock(2, MGDA(), rescale=False)(z)
        >>> (first @ torch.tensor([4.0, 2.0]) + second @ torch.tensor([-2.0, 0.0])).backward()
        >>> z.grad
        tensor([-0.2000,  0.6000])
    """

    def __init__(
        self,
        num_branches: int,
        aggregator: Aggregator,
        *,
        rescale: bool = True,
        grad_scaler: "torch.amp.GradScaler | None" = None,
    ) -> None:
        super().__init__()
        if not isinstance(num_branches, int) or num_branches < 1:
            raise ValueError(f"ImpartialityBlock: `num_branches` must be an integer >= 1, got {num_branches!r}.")
        if not isinstance(aggregator, Aggregator):
            raise TypeError(
                f"ImpartialityBlock: `aggregator` must be an aggregator such as gs.PCGrad(), got {aggregator!r}."
            )
        if aggregator.uses_losses:
            raise ValueError(
                f"ImpartialityBlock: `aggregator` must be a method that needs no losses, which a block does not "
                f"have, got {type(aggregator).__name__}. Use an option without losses, or MultiObjectiveOptimizer."
            )
        if aggregator.remembers_gradients:
            raise ValueError(
                f"ImpartialityBlock: `aggregator` must be a method that remembers no gradients, as batches differ, "
                f"got {type(aggregator).__name__}. Use it with MultiObjectiveOptimizer."
            )
        self.num_branches = num_branches
        self.aggregator = aggregator
        self.rescale = rescale
        self.grad_scaler = grad_scaler

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        """Returns one view of ``z`` a branch."""
        views: Tensor = self.expand(z)
        return views.unbind(0)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def expand(self, z: Tensor) -> Tensor:
        """Returns the views as one tensor ``(K, *z.shape)`` without copying, for heads that are batched."""
        result: Tensor = _Impartial.apply(z, self)  # type: ignore[no-untyped-call]
        return result

    def aggregate(self, rows: Tensor, z: Tensor) -> Tensor:
        """Turns the K gradients ``(K, *z.shape)`` into the one that is passed on."""
        check_single_process("ImpartialityBlock")
        wide_dtype = torch.promote_types(rows.dtype, torch.float32)
        factor = 1.0 if self.grad_scaler is None else float(self.grad_scaler.get_scale())
        wide = rows if factor == 1.0 else rows.to(wide_dtype) / factor
        direction: Tensor = self.aggregator([wide], at=z)[0]
        if factor != 1.0:
            direction = direction * factor
        if self.rescale:
            norm, target = _norm(direction), _norm(rows.sum(0, dtype=wide_dtype))
            direction = direction.double() * torch.where(norm > 0, target / norm, 1.0)
        return direction.to(rows.dtype)

    def extra_repr(self) -> str:
        return f"num_branches={self.num_branches}, rescale={self.rescale}"


def _norm(vector: Tensor) -> Tensor:
    """The Frobenius norm in float64, where squares of float32 numbers neither overflow nor underflow."""
    norm: Tensor = torch.linalg.vector_norm(vector, dtype=torch.float64)
    return norm


class _Impartial(torch.autograd.Function):
    """Expands in the forward pass, aggregates in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, block: ImpartialityBlock) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(z)
        return z.expand(block.num_branches, *z.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return ctx.block.aggregate(rows, z), None


class FusedHeads(nn.Module):
    """K linear heads on one representation, in one matrix product each way.

    The weights of all heads lie in one matrix, and the forward pass is a single product with it. Through an
    :class:`ImpartialityBlock`, the backward pass obtains the K gradients with respect to z in one padded batched
    product.

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
        One product forward; backward, one for the weights and one padded to the widest head for z.

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
        self.padded: Tensor  # for each row of weight its place when all heads are as wide as the widest
        self.register_buffer("padded", None, persistent=False)
        mark_task_specific(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights and biases as ``nn.Linear`` does, which depends on ``in_features`` alone."""
        widest = max(self.out_features)
        places = [head * widest + row for head, width in enumerate(self.out_features) for row in range(width)]
        self.padded = torch.tensor(places, device=self.weight.device)
        bound = self.in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

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
            output = _HeadsOnViews.apply(block.expand(z), self.weight, self.bias, self)  # type: ignore[no-untyped-call]
        return tuple(output.split(self.out_features, dim=-1))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={list(self.out_features)}"


class _HeadsOnViews(torch.autograd.Function):
    """All heads on K equal views: one product forward, one gradient a view backward."""

    @staticmethod
    def forward(ctx: Any, views: Tensor, weight: Tensor, bias: Tensor | None, heads: FusedHeads) -> Tensor:
        ctx.save_for_backward(views, weight)
        ctx.heads = heads
        ctx.bias_dtype = None if bias is None else bias.dtype
        return functional.linear(views[0], weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        views, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])  # under autocast in a lower precision than the weights
        grad_views = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            by_head = _gradient_by_head(flat, weight.to(flat.dtype), ctx.heads)
            grad_views = by_head.view(views.shape).to(views.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = (flat.mT @ views[0].reshape(-1, views.shape[-1]).to(flat.dtype)).to(weight.dtype)
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            grad_bias = flat.sum(0).to(ctx.bias_dtype)
        return grad_views, grad_weight, grad_bias, None


def _gradient_by_head(gradient: Tensor, weight: Tensor, heads: FusedHeads) -> Tensor:
    """For each head the gradient with respect to its input: ``(N, sum(widths))`` to ``(K, N, in_features)``."""
    count, widest = len(heads.out_features), max(heads.out_features)
    padded_weight = weight.new_zeros(count * widest, weight.shape[1]).index_copy_(0, heads.padded, weight)
    padded = gradient.new_zeros(gradient.shape[0], count * widest).index_copy_(1, heads.padded, gradient)
    by_head = padded.view(-1, count, widest).transpose(0, 1)
    return torch.bmm(by_head, padded_weight.view(count, widest, -1))
