"""SDMGrad: weights from two independent batches, pulled towards the average gradient."""

import math

import numpy as np
from torch import Tensor

from ..solvers import project_on_simplex
from ..solvers.arrays import Array
from .crossbatch import CrossBatch


class SDMGrad(CrossBatch):
    r"""Minimises the length of the combined gradient, regularised towards the average, without the bias of one batch.

    .. math:: w \to \arg\min_{w \in \Delta_K} \tfrac12 w^\top A w + \lambda\, w^\top A \tfrac{1}{K} \mathbf{1},
        \quad A = \tfrac12 (J_1 J_2^\top + J_2 J_1^\top),
        \quad d = J_3^\top \frac{w + \lambda \mathbf{1} / K}{1 + \lambda}

    Each training step has three batches. ``method.observe(J_1, J_2)`` takes the Jacobians of two of them and makes
    ``iterations`` projected gradient steps with momentum on w, which starts at 1/K and is kept; the method itself is
    called on the third one's. With :class:`MultiObjectiveOptimizer`: ``optimizer.observe(losses_1, losses_2)``, then
    ``optimizer.backward(losses_3)`` and ``optimizer.step()``.

    The steps approach the minimiser where A is positive semidefinite, as it is when both batches are one; noise may
    make it indefinite, and then they approach a local minimum. A loss whose gradient is zero draws weight.

    Guarantees:
        scale_equivariant: ``d(sJ) = s d(J)``, and scaling what is observed does not matter.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems with weights of their own.
        permutation_equivariant: the order of the losses does not matter; where a large ``lr`` makes w bounce, it
            also magnifies rounding.
        state_round_trip: w is the state.

    Args:
        strength: lambda, >= 0: 0 is an unbiased MGDA, large values the average gradient.
        lr: Step size of w. ``None``: one over the largest row sum of ``|A|``, which is stable. A number > 0: the
            iteration of the authors' code, for an A not symmetrised, divided by the square of the mean root of its
            diagonal. Theirs is 10; the largest eigenvalue of that A is at least 1, and from about
            ``2 (1 + momentum)`` over it on, w bounces between single losses instead of approaching the minimiser.
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
        >>> method = SDMGrad(strength=0.0)
        >>> J = torch.tensor([[4.0, 2.0], [-2.0, 0.0]])
        >>> for _ in range(3):  # w goes on from where it was
        ...     method.observe(J, J)
        >>> method(J)  # the shortest combination, as the batches are one and the same
        tensor([-0.2000,  0.6000])
    """

    # Departs from Xiao, Ban and Ji, their code: its step size, 10, is beyond what is stable, so the default is one
    # that is; A is symmetrised, which its minimum does not notice and without which steps may circle. Nothing is
    # added to the scale of A; where no entry of its diagonal is positive, w stands still.

    def __init__(
        self, strength: float = 0.3, *, lr: float | None = None, momentum: float = 0.5, iterations: int = 20
    ) -> None:
        super().__init__()
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"SDMGrad: `strength` must be a finite number >= 0, got {strength!r}.")
        if lr is not None and not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"SDMGrad: `lr` must be a finite number > 0 or None, got {lr!r}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"SDMGrad: `momentum` must be in [0, 1), got {momentum!r}.")
        if not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"SDMGrad: `iterations` must be an integer >= 1, got {iterations!r}.")
        self.strength = float(strength)
        self.lr = None if lr is None else float(lr)
        self.momentum = float(momentum)
        self.iterations = iterations

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        count = gramian.shape[-1]
        return (self._current(gramian[..., 0]) + self.strength / count) / (1 + self.strength)

    def step(self, cross: Array, weights: Array) -> Array:
        count = cross.shape[-1]
        roots = np.sqrt(np.maximum(cross.diagonal(0, 1, 2), 0.0)).mean(axis=1)
        if self.lr is None:
            matrix = 0.5 * cross + 0.5 * cross.transpose(0, 2, 1)
            scale = (np.abs(matrix) / count).sum(axis=2).max(axis=1)  # a mean: a sum might overflow
            lr = 1.0 / count
        else:
            matrix, scale, lr = cross, roots**2, self.lr
        usable = (roots > 0)[:, None, None]
        matrix = np.divide(matrix, scale[:, None, None], out=np.zeros_like(cross), where=usable)
        pull = self.strength * matrix.mean(axis=2)
        velocity = np.zeros_like(weights)
        for _ in range(self.iterations):
            velocity = self.momentum * velocity + (matrix @ weights[:, :, None])[:, :, 0] + pull
            weights = project_on_simplex(weights - lr * velocity)
        return weights
