"""SDMGrad: weights from two independent batches, pulled towards the average gradient."""

import math

import numpy as np
from torch import Tensor

from ..solvers import project_on_simplex
from ..solvers.nnls import Array
from .crossbatch import CrossBatch


class SDMGrad(CrossBatch):
    r"""Minimises the length of the combined gradient, regularised towards the average, without the bias of one batch.

    .. math:: w \approx \arg\min_{w \in \Delta_K} \tfrac12 w^\top A w + \lambda\, w^\top A \tfrac{1}{K} \mathbf{1},
        \quad A = J_1 J_2^\top, \quad d = J_3^\top \frac{w + \lambda \mathbf{1} / K}{1 + \lambda}

    Each training step has three batches. ``method.observe(J_1, J_2)`` takes the Jacobians of two of them and makes
    ``iterations`` projected gradient steps with momentum on w, which starts at 1/K and is kept; the method itself is
    called on the third one's. With :class:`MultiObjectiveOptimizer`: ``method.observe(optimizer.jacobian(losses_1),
    optimizer.jacobian(losses_2))``, then ``optimizer.backward(losses_3)`` and ``optimizer.step()``.

    Guarantees:
        scale_equivariant: ``d(sJ) = s d(J)``, and scaling what is observed does not matter.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems with weights of their own.
        permutation_equivariant: the order of the losses does not matter.
        state_round_trip: w is the state.

    Args:
        strength: lambda, >= 0: 0 is an unbiased MGDA, large values the average gradient.
        lr: Step size of w, > 0, for an A whose diagonal has square roots that average 1.
        momentum: Of these steps, in [0, 1); forgotten between observations.
        iterations: Steps an observation, >= 1.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, non-negative, sums to 1.

    Raises:
        ValueError: An option is out of its range.

    Cost:
        Of an observation, ``K^2 P`` multiplications and ``iterations`` products of size K; of a call, nothing that
        depends on P but the combination. In all, three backward passes for each loss instead of one.

    References:
        Xiao, Ban and Ji, Direction-oriented multi-objective learning: simple and provable stochastic algorithms,
        NeurIPS 2023 (arXiv:2305.18409).

    Example:
        >>> method = SDMGrad(strength=0.0, lr=0.5, iterations=50)
        >>> J = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
        >>> method.observe(J, J)
        >>> method(J)  # the shortest combination, as the batches are one and the same
        tensor([-0.2000,  0.6000])
    """

    # Departs from Xiao, Ban and Ji, their code: nothing is added to the scale of A; where no entry of its diagonal is
    # positive, there is none to go by, and w stands still.

    def __init__(
        self, strength: float = 0.3, *, lr: float = 10.0, momentum: float = 0.5, iterations: int = 20
    ) -> None:
        super().__init__()
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"SDMGrad: `strength` must be a finite number >= 0, got {strength!r}.")
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"SDMGrad: `lr` must be a finite number > 0, got {lr!r}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"SDMGrad: `momentum` must be in [0, 1), got {momentum!r}.")
        if not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"SDMGrad: `iterations` must be an integer >= 1, got {iterations!r}.")
        self.strength = float(strength)
        self.lr = float(lr)
        self.momentum = float(momentum)
        self.iterations = iterations

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        count = gramian.shape[-1]
        return (self._current(gramian[..., 0]) + self.strength / count) / (1 + self.strength)

    def step(self, cross: Array, weights: Array) -> Array:
        scale = np.sqrt(np.maximum(np.einsum("bii->bi", cross), 0.0)).mean(axis=1)[:, None, None] ** 2
        matrix = np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)
        pull = self.strength * matrix.mean(axis=2)
        velocity = np.zeros_like(weights)
        for _ in range(self.iterations):
            velocity = self.momentum * velocity + (matrix @ weights[:, :, None])[:, :, 0] + pull
            weights = project_on_simplex(weights - self.lr * velocity)
        return weights
