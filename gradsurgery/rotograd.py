"""RotoGrad: a rotation of the representation for each branch, learned so that their gradients agree."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .aggregators import Aggregator
from .aggregators.normalizedsgd import NormalizedSGD
from .aggregators.tracking import inverse, row_norms
from .block import ImpartialityBlock
from .kernels import widened
from .learning import PerLossAdam

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RotoGrad(nn.Module):
    r"""Hands each branch the representation in a rotation of its own and turns these until the gradients agree.

    .. math:: z_k = R_k z, \quad
        R_k \leftarrow \arg\max_R \sum_n \langle R\, v_n, q_{nk} \rangle \text{ by small steps}, \quad
        q_{nk} = R_k\, g_{nk}, \quad v_n = \frac1K \sum_k \frac{g_{nk}}{\lVert g_k \rVert}

    :math:`g_k` is the gradient of loss k with respect to z, :math:`q_k` with respect to :math:`z_k`; n runs over the
    batch. A backward pass goes through as in :class:`ImpartialityBlock`, with the method's direction in place of the
    sum, and in training mode takes a step of Adam on every rotation. The losses themselves do not train them.

    It is meant for one ordinary backward pass over the sum of the losses, not inside ``MultiObjectiveOptimizer``:
    where each loss has a backward pass of its own, no two gradients meet and the rotations stand still.

    The rotations and their moments are buffers, no parameters: they are in ``state_dict()``, keep their dtype, and no
    optimizer takes hold of them. ``reset()`` turns them back.

    Guarantees:
        orthogonal: the rotations stay orthogonal to rounding, in float64.
        nonfinite_propagates: non-finite gradients pass as such and leave rotations and method as they were.

    Args:
        num_branches: K, >= 1.
        features: How many features, the first of the last dimension, are rotated, >= 1. The others pass through.
        aggregator: The method, for the magnitudes. ``None``: ``NormalizedSGD()``, as published; with ``Sum()`` it is
            the paper's "rotate only".
        lr: Adam's step size of the rotations, in radians, > 0. They should turn more slowly than the network learns.
        decay: Factor on the step size after each step, in (0, 1], so that they do in the long run.
        rescale: As in :class:`ImpartialityBlock`; not part of the method as published.
        grad_scaler: As in :class:`ImpartialityBlock`, for the method; the rotations do not need it.
        process_group: As in :class:`ImpartialityBlock`.

    Shape:
        - input: ``(..., width)``, ``width >= features``. Channels of images go last.
        - output: K tensors of the same shape.

    Raises:
        ValueError: An option is out of its range, the input is too narrow, or ``aggregator`` needs the losses or
            remembers gradients; or a state is loaded that has another number or size of rotations.
        TypeError: ``aggregator`` is not an aggregator.

    Cost:
        With m features, ``m^2`` multiplications for each branch and item, forward, backward and in the step, which
        has K exponentials of m x m matrices besides. The state has ``4 K m^2`` float64 numbers.

    References:
        Javaloy and Valera, RotoGrad: gradient homogenization in multitask learning, ICLR 2022 (arXiv:2103.02631).

    Example:
        >>> block = RotoGrad(2, features=2, lr=0.1)
        >>> z = torch.tensor([[1.0, 0.0]], requires_grad=True)
        >>> for step in range(100):
        ...     z.grad = None
        ...     first, second = block(z)
        ...     (first[0, 0] + second[0, 1]).backward()  # two gradients at a right angle
        >>> z.grad  # half a right angle each, and they are one
        tensor([[1.4142, 1.4142]])
    """

    # Departs from Javaloy and Valera, their rotation loss: all gradients in it have length 1, so the scale of the
    # losses does not matter; Adam's steps start from the present rotation, not from a fixed one, which spares the
    # derivative of the exponential.

    def __init__(
        self,
        num_branches: int,
        features: int,
        aggregator: Aggregator | None = None,
        *,
        lr: float = 5e-4,
        decay: float = 0.99999,
        rescale: bool = False,
        grad_scaler: "torch.amp.GradScaler | None" = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__()
        if not isinstance(features, int) or features < 1:
            raise ValueError(f"RotoGrad: `features` must be an integer >= 1, got {features!r}.")
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"RotoGrad: `lr` must be a finite number > 0, got {lr!r}.")
        if not 0 < decay <= 1:
            raise ValueError(f"RotoGrad: `decay` must be in (0, 1], got {decay!r}.")
        method = NormalizedSGD() if aggregator is None else aggregator
        self.block = ImpartialityBlock(
            num_branches, method, rescale=rescale, grad_scaler=grad_scaler, process_group=process_group
        )
        self.block.aggregator = _Turning(num_branches, features, method, float(lr), float(decay))
        self.features = features

    @property
    def aggregator(self) -> Aggregator:
        """The method."""
        return self._turning.method

    @property
    def rotations(self) -> Tensor:
        """The rotations ``(K, features, features)``, float64."""
        return self._turning.rotations

    @property
    def _turning(self) -> "_Turning":
        return self.block.aggregator  # type: ignore[return-value]

    def reset(self) -> None:
        """Turns the rotations back and forgets what the method has seen."""
        self._turning.reset()

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        """Returns one rotated view of ``z`` a branch."""
        if z.ndim == 0 or z.shape[-1] < self.features:
            raise ValueError(f"RotoGrad: `z` must be (..., {self.features} or more), got {tuple(z.shape)}.")
        return tuple(_rotated(view, rotation) for view, rotation in zip(self.block(z), self.rotations, strict=True))


class _Turning(Aggregator):
    """The method, and the rotations that learn from the rows that it is given."""

    def __init__(self, count: int, features: int, method: Aggregator, lr: float, decay: float) -> None:
        super().__init__()
        self.method = method
        self.decay = decay
        self.adam = PerLossAdam(lr)
        self.rotations: Tensor
        self.pace: Tensor  # the factor on the step size
        self.register_buffer("rotations", torch.eye(features, dtype=torch.float64).repeat(count, 1, 1))
        self.register_buffer("pace", torch.ones((), dtype=torch.float64))

    @property
    def works_on_parts(self) -> bool:
        return self.method.works_on_parts

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        directions = self.method.direction(blocks, losses, at)
        if self.training:
            self._turn(blocks[0])
        return directions

    def _turn(self, rows: Tensor) -> None:
        """Turns each rotation a little further, so that its branch's gradient comes closer to the mean of all."""
        count, size = len(self.rotations), self.rotations.shape[-1]
        norms = self.total(row_norms([rows]).square()).sqrt()
        if not bool(norms.isfinite().all()) or int((norms > 0).sum()) < 2:
            return  # one gradient alone has nothing to agree with
        used = widened(rows)[..., :size].reshape(count, math.prod(rows.shape[1:-1]), size)
        units = used * inverse(norms).to(used).view(-1, 1, 1)
        products = self.total((units.mT @ units.mean(dim=0)).double())  # (K, m, m), sums over n of g_nk v_n^T
        gradient = products.mT - products  # of -sum <R exp(A) v, q> with respect to the skew matrix A, at A = 0
        change = self.adam.change(gradient.permute(1, 2, 0), norms > 0).permute(2, 0, 1)
        self.rotations = self.rotations @ torch.linalg.matrix_exp(self.pace * change)
        self.pace = self.pace * self.decay

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(prefix + "rotations")
        if saved is not None and saved.shape != self.rotations.shape:
            raise ValueError(
                f"RotoGrad: `state_dict` must have rotations {tuple(self.rotations.shape)}, got "
                f"{tuple(saved.shape)}. Load it into RotoGrad({saved.shape[0]}, {saved.shape[-1]})."
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast would compute products in half precision, whatever the dtype of their factors."""
    kind = tensor.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def _rotated(view: Tensor, rotation: Tensor) -> Tensor:
    """The view with its first features rotated, in the view's dtype."""
    size = len(rotation)
    dtype = torch.promote_types(view.dtype, torch.float32)
    with _full_precision(view):
        turned = (view[..., :size].to(dtype) @ rotation.mT.to(dtype)).to(view.dtype)
    return turned if size == view.shape[-1] else torch.cat([turned, view[..., size:]], dim=-1)
