"""Composition of methods: magnitude first, direction second."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import kernels
from .base import Aggregator, GramianAggregator


class Chain(GramianAggregator):
    r"""Applies methods one after another, each to the rows as reweighted by those before it.

    .. math:: w = w_n \circ \dots \circ w_1, \quad w_i = \mathrm{method}_i(D_{i-1} G D_{i-1}), \quad
        D_i = \operatorname{diag}(w_i \circ \dots \circ w_1)

    ``Chain(GradNorm(alpha=0.0), PCGrad())`` balances the magnitudes and then removes conflicts between the
    balanced gradients.

    Guarantees:
        one_loss_is_identity: with one loss, ``w = 1``, if each of the methods guarantees it.
        scale_equivariant: ``d(sJ) = s d(J)``, if each of the methods guarantees it and where the weights of all but
            the last are unique.
        batched: leading dimensions are separate problems.
        state_round_trip: the methods' states are the state.

    Args:
        methods: Two or more aggregators. All but the last must need only the Gramian.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``.

    Raises:
        TypeError: One of the methods is not an aggregator, or one before the last needs the Jacobian.
        ValueError: There are fewer than two.

    Cost:
        The sum of the methods'; on a Jacobian, one scaled copy of it if the last method needs it, in float32 or
        better.

    Example:
        >>> J = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
        >>> Chain(Mean(), Sum())(J)
        tensor([1., 1.])
    """

    def __init__(self, *methods: Aggregator) -> None:
        super().__init__()
        if len(methods) < 2:
            raise ValueError(f"Chain: `methods` must be two or more aggregators, got {len(methods)}.")
        for position, method in enumerate(methods):
            if not isinstance(method, Aggregator):
                raise TypeError(
                    f"Chain: `methods` must be aggregators, got {type(method).__name__} at position {position}."
                )
        for method in methods[:-1]:
            if not isinstance(method, GramianAggregator) or method.needs_jacobian:
                raise TypeError(
                    f"Chain: `methods` before the last must only need the Gramian, got "
                    f"{type(method).__name__}. Put it last."
                )
        self.methods = torch.nn.ModuleList(methods)
        self.needs_jacobian = methods[-1].needs_jacobian

    @property
    def works_on_parts(self) -> bool:
        last = self.methods[-1]
        return isinstance(last, Aggregator) and last.works_on_parts

    @property
    def uses_losses(self) -> bool:
        return any(method.uses_losses for method in self.methods)

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        if self.needs_jacobian:
            raise TypeError(
                f"Chain: `gramian` is not enough for {type(self.methods[-1]).__name__}. Call it with the Jacobian."
            )
        return self._reweigh(list(self.methods), gramian, losses)

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        if not self.needs_jacobian:
            return super().direction(blocks, losses, at)
        weights = self._reweigh(list(self.methods)[:-1], self.gramian_of_all(blocks)[0], losses)
        scaled = [  # not in half precision, where products overflow
            rows * weights.to(rows).view(-1, *[1] * (rows.ndim - 1)) for rows in map(kernels.widened, blocks)
        ]
        directions: list[Tensor] = self.methods[-1](scaled, losses, at=at)
        return [direction.to(block.dtype) for direction, block in zip(directions, blocks, strict=True)]

    def _reweigh(self, methods: Sequence[torch.nn.Module], gramian: Tensor, losses: Tensor | None) -> Tensor:
        total = torch.ones_like(gramian[..., 0])
        for method in methods:
            reweighted = gramian * total.unsqueeze(-1) * total.unsqueeze(-2)
            weights: Tensor = method.solve(reweighted, losses)  # type: ignore[operator]
            total = total * weights
        return total
