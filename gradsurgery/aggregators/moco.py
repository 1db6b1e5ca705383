"""MoCo: weights and direction from tracked gradients instead of noisy ones."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from .. import kernels
from ..solvers import project_on_simplex, start_on_simplex
from .base import undefined
from .tracking import Tracking, inverse, row_norms

Normalization = Literal["none", "loss"]


class MoCo(Tracking):
    r"""Follows the gradients with averages Y and steps the weights towards the shortest combination of these.

    .. math:: Y \leftarrow Y + \frac{\beta}{t^{b}} (J - Y), \quad
        \lambda \leftarrow \Pi_\Delta \bigl(\lambda - \tfrac{\gamma}{t^{c}} (Y Y^\top + \rho I) \lambda \bigr), \quad
        d = Y^\top \lambda

    Y starts at zero, :math:`\lambda` at 1/K; t counts the calls that a loss was present in. With
    ``normalization="loss"``, the rows of J are first brought to the length of their loss values. The steps of
    :math:`\lambda` depend on the scale of the rows: :math:`\gamma` has to be chosen for it. The wrapper hands over
    unscaled gradients, so a GradScaler makes no difference. Not for an ``ImpartialityBlock``, where a row is a batch.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        state_round_trip: Y, the weights and the numbers of calls are the state.

    Args:
        beta: Step size of Y, in (0, 1].
        gamma: Step size of the weights, > 0.
        rho: Pulls the weights together, >= 0.
        beta_decay: b, >= 0.
        gamma_decay: c, >= 0.
        normalization: ``"none"``, as in the paper, or ``"loss"``: ``L_k g_k / ||g_k||``, as in the code of its
            experiments.

    Shape:
        - jacobian: ``(K, P)`` or a list of blocks ``(K, ...)``.
        - losses: ``(K,)``; only needed by ``"loss"``, >= 0.
        - output: ``(P,)`` or a list of tensors ``(...)``.

    Raises:
        ValueError: An option is out of its range, ``"loss"`` is used without losses or with negative ones, or the
            Jacobian is a batch.

    Cost:
        Four passes over the Jacobian, ``K^2 P`` multiplications. The state has K x P numbers, in the gradients' dtype
        or float32: 4 K P bytes, twice that during a call.

    References:
        Fernando et al., Mitigating gradient bias in multi-objective learning: a provably convergent approach, ICLR
        2023 (arXiv:2210.12624).

    Example:
        >>> method = MoCo(beta=1.0, beta_decay=0.0)
        >>> method(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([0.8500, 0.5750])
    """

    # Departs from Fernando et al., the code of their experiments: it takes a softmax of the weights, which pulls them
    # towards 1/K in every step; we project on the simplex as the paper does.

    def __init__(
        self,
        beta: float = 0.5,
        gamma: float = 0.1,
        rho: float = 0.0,
        *,
        beta_decay: float = 0.5,
        gamma_decay: float = 0.5,
        normalization: Normalization = "none",
    ) -> None:
        super().__init__()
        if not 0 < beta <= 1:
            raise ValueError(f"MoCo: `beta` must be in (0, 1], got {beta!r}.")
        if not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"MoCo: `gamma` must be a finite number > 0, got {gamma!r}.")
        for name, value in (("rho", rho), ("beta_decay", beta_decay), ("gamma_decay", gamma_decay)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"MoCo: `{name}` must be a finite number >= 0, got {value!r}.")
        if normalization not in get_args(Normalization):
            raise ValueError(
                f"MoCo: `normalization` must be one of {list(get_args(Normalization))}, got {normalization!r}."
            )
        self.beta, self.gamma, self.rho = float(beta), float(gamma), float(rho)
        self.beta_decay, self.gamma_decay = float(beta_decay), float(gamma_decay)
        self.normalization = normalization
        self.register_per_loss("simplex", math.nan)

    @property
    def uses_losses(self) -> bool:
        return self.normalization == "loss"

    def direction(
        self, blocks: Sequence[Tensor], losses: Tensor | None = None, at: Tensor | None = None
    ) -> list[Tensor]:
        factors = self._factors(blocks, losses)
        calls = self.count(blocks)
        rows = self.follow(blocks, factors, self.beta / calls**self.beta_decay)
        gamma = self.gamma / float(calls.max()) ** self.gamma_decay
        gramian = kernels.gramian(rows)[0].cpu().numpy()
        if not math.isfinite(gramian.trace()):
            return undefined(blocks)
        start = start_on_simplex(self.recall("simplex", factors).cpu().numpy())
        stepped = project_on_simplex(start - gamma * (gramian @ start + self.rho * start))
        weights = torch.from_numpy(stepped).to(factors.device)
        self.remember("simplex", weights)
        directions = kernels.combine(rows, weights.unsqueeze(0))
        return [direction.to(block.dtype) for direction, block in zip(directions, blocks, strict=True)]

    def _factors(self, blocks: Sequence[Tensor], losses: Tensor | None) -> Tensor:
        """What the rows are multiplied by before they are followed."""
        if self.normalization == "none":
            return torch.ones(blocks[0].shape[0], dtype=torch.float64, device=blocks[0].device)
        if losses is None or bool(((losses < 0) & losses.isfinite()).any()):
            got = "none" if losses is None else f"{losses.tolist()}"
            raise ValueError(
                f"MoCo: `losses` must be >= 0 for normalization='loss', got {got}. Hand over the loss values, or use "
                f"normalization='none'."
            )
        return losses * inverse(row_norms(blocks))
