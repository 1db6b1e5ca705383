"""Surgery at a point inside the network."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from . import kernels
from .aggregators import Aggregator, GramianAggregator
from .distributed import Agreement, Peers, Ranks, Share, described, state_of_first
from .hooks import Hook, SurgeryHooks
from .surgery import Surgery

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
        process_group: The ranks that have the other items of the batch, which must all run this backward pass.
            ``None``: all, where ``torch.distributed`` is set up. Gradients are averaged over them elsewhere, as by
            ``DistributedDataParallel``.

    Shape:
        - input: any.
        - output: K tensors of the same shape.

    Raises:
        ValueError: ``num_branches`` is < 1, or ``aggregator`` needs the losses or remembers gradients.
        TypeError: ``aggregator`` is not an aggregator, or ``process_group`` no process group.
        RuntimeError: The backward pass is differentiated again, or there are several ranks and they disagree, or the
            method cannot do with a part of the batch.

    Cost:
        One ordinary backward pass; the K gradients with respect to z; the method. With several ranks ``O(K^2)``
        numbers between them.

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
        process_group: "ProcessGroup | None" = None,
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
        self._peers = Peers(process_group, "ImpartialityBlock")
        self._hooks = SurgeryHooks()

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        """Returns one view of ``z`` a branch."""
        views: Tensor = self.expand(z)
        return views.unbind(0)

    def expand(self, z: Tensor) -> Tensor:
        """Returns the views as one tensor ``(K, *z.shape)`` without copying, for heads that are batched."""
        expanded = torch.compiler.disable(_expanded) if torch.compiler.is_compiling() else _expanded
        return expanded(z, self)

    def aggregate(self, rows: Tensor, z: Tensor) -> Tensor:
        """Turns the K gradients ``(K, *z.shape)`` into the one that is passed on."""
        wide_dtype = torch.promote_types(rows.dtype, torch.float32)
        if self.needs_rows:
            items = self._other_items()
            factor = self._loss_scale(items)
            if self._hooks:
                self._show(self._gramian_of_due(rows, items, factor), None)
            wide = rows if factor == 1.0 else rows.to(wide_dtype) / factor
            with self.aggregator.seeing(items):
                direction: Tensor = self.aggregator([wide], at=z)[0]
            direction = direction if factor == 1.0 else direction * factor
        else:
            weights = self.weights(kernels.gramian([rows])[0])
            direction = kernels.combine([kernels.widened(rows)], weights.unsqueeze(0))[0]  # rounded once, at the end
        if self.rescale:
            direction = self.rescaled(direction, rows.sum(0, dtype=wide_dtype))
        return direction.to(rows.dtype)

    def rescaled(self, direction: Tensor, total: Tensor) -> Tensor:
        """The direction with the Frobenius norm of ``total``, in float64; zero stays zero.

        In float64, squares of float32 numbers neither overflow nor underflow.
        """
        norm, target = (torch.linalg.vector_norm(vector, dtype=torch.float64) for vector in (direction, total))
        ranks = self._peers.now()
        if ranks is not None:
            norm, target = ranks.total(torch.stack([norm, target]).square()).sqrt().unbind()
        if not norm.is_cpu:
            return direction.double() * torch.where(norm > 0, target / norm, 1.0)
        length = float(norm)  # three small operations less, which in a small network one notices
        return direction.double() * (float(target) / length if length > 0 else 1.0)

    def register_surgery_hook(self, hook: Hook, *, every: int = 1) -> RemovableHandle:
        """Calls a function with what the backward passes through this block did.

        Numbers and gradients are bit-identical with and without it. Neither ``deepcopy`` nor pickling copies hooks.

        Args:
            hook: Gets a :class:`Surgery`: branches are named ``"0"`` and so on, their losses NaN. It is called within
                the backward pass, which what it raises ends.
            every: It is called after the first backward pass from now on, and then after each so many, >= 1.

        Returns:
            A handle, whose ``remove()`` takes the hook away.

        Raises:
            TypeError: ``hook`` cannot be called.
            ValueError: ``every`` is < 1.
        """
        return self._hooks.register(hook, every, None, "register_surgery_hook")

    @property
    def needs_rows(self) -> bool:
        """Whether the method needs the gradients themselves, not only their inner products."""
        return self.aggregator.needs_jacobian or not isinstance(self.aggregator, GramianAggregator)

    def weights(self, gramian: Tensor) -> Tensor:
        """The weights ``(K,)`` of the K gradients, by a method that needs only their inner products ``(K, K)``."""
        items = self._other_items()
        if items is not None:
            gramian = items.total(gramian)
        factor = self._loss_scale(items)
        gramian = gramian if factor == 1.0 else gramian / factor**2
        solved = cast(GramianAggregator, self.aggregator).solve(gramian)
        weights = solved if items is None else items.ranks.from_first(solved)
        self._show(gramian, weights)
        return weights

    def _gramian_of_due(self, rows: Tensor, items: Share | None, factor: float) -> Tensor | None:
        """Inner products that only the hooks want, if one of them is due."""
        if not self._hooks.due():
            return None
        gramian = kernels.gramian([rows])[0]
        return (gramian if items is None else items.total(gramian)) / factor**2

    def _show(self, gramian: Tensor | None, weights: Tensor | None) -> None:
        """Shows the hooks what one backward pass did."""
        if not self._hooks:
            return
        names = tuple(map(str, range(self.num_branches)))
        losses = torch.full((self.num_branches,), torch.nan, dtype=torch.float64)
        surgery = Surgery(names, losses, weights, gramian, engine="impartiality block")
        self._hooks.show(self._hooks.due(), lambda watcher: surgery)

    def _loss_scale(self, items: Share | None) -> float:
        """What the rows are multiplied by: each rank's loss is an average over its own items."""
        scale = 1.0 if self.grad_scaler is None else float(self.grad_scaler.get_scale())
        return scale if items is None else scale * items.ranks.size

    def _other_items(self) -> Share | None:
        """The ranks that have the rest of the batch, once they have agreed."""
        ranks = self._peers.now()
        if ranks is None:
            return None
        method = self.aggregator
        if not method.works_on_parts:
            raise RuntimeError(
                f"ImpartialityBlock: `aggregator` must be a method that can do with a part of the batch when there "
                f"are several ranks, got {type(method).__name__}. Use a method that needs only inner products."
            )
        aspects = {
            "num_branches": f"{self.num_branches}",
            "aggregator": described(method),
            "rescale": f"{self.rescale}",
            "hooks": f"{'a' if self.needs_rows and self._hooks.due() else 'no'} monitor or other hook to look for",
        }
        behind = not self._peers.have_followed
        Agreement(
            ranks, "ImpartialityBlock", aspects, follow=lambda: self._follow_first(ranks), behind=behind
        ).presence([], [], {})
        return Share(ranks)

    def _follow_first(self, ranks: Ranks) -> None:
        """Takes over what the first rank remembers, so that generators and states agree from the start."""
        first = state_of_first(ranks, dict(self.aggregator.state_dict()))
        if first is not None:
            self.aggregator.load_state_dict(first)
        self._peers.have_followed = True

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """As in torch; other ranks may load something else."""
        super()._load_from_state_dict(*arguments)
        self._peers.have_followed = False

    def extra_repr(self) -> str:
        return f"num_branches={self.num_branches}, rescale={self.rescale}"


def _expanded(z: Tensor, block: ImpartialityBlock) -> Tensor:
    result: Tensor = _Impartial.apply(z, block)  # type: ignore[no-untyped-call]
    return result


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
