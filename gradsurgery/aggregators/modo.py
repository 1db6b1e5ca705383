"""MoDo: one step of the weights a pair of independent batches."""

import math

from torch import Tensor

from ..solvers import project_on_simplex
from ..solvers.arrays import Array
from .crossbatch import CrossBatch


class MoDo(CrossBatch):
    r"""Steps the weights towards the shortest combined gradient, without the bias of a single batch.

    .. math:: \lambda \leftarrow \Pi_\Delta \bigl(\lambda - \gamma (J_1 J_2^\top + \rho I) \lambda\bigr), \quad
        d = J_3^\top \lambda

    Each training step has three batches. ``method.observe(J_1, J_2)`` takes the Jacobians of two of them and makes
    one projected step from the present weights, which start at 1/K; the method itself is called on the third one's,
    or, to save a backward pass, on the average of the two. With :class:`MultiObjectiveOptimizer`:
    ``optimizer.observe(losses_1, losses_2)``, then ``optimizer.backward(losses_3)`` and ``optimizer.step()``.

    The steps depend on the scale of the gradients: :math:`\gamma` has to be chosen for it. The wrapper hands over
    unscaled ones, so a GradScaler makes no difference.

    Guarantees:
        permutation_equivariant: the order of the losses does not matter.
        one_loss_is_identity: with one loss, ``w = 1``.
        batched: leading dimensions are separate problems with weights of their own.
        state_round_trip: the weights are the state.

    Args:
        gamma: Step size, > 0.
        rho: Pulls the weights together, >= 0. The plain algorithm has 0, its authors' code 0.1.

    Shape:
        - gramian: ``(..., K, K)``.
        - output: ``(..., K)``, non-negative, sums to 1.

    Raises:
        ValueError: An option is out of its range.

    Cost:
        Of an observation, ``K^2 P`` multiplications; of a call, nothing that depends on P but the combination. In
        all, three backward passes for each loss instead of one, or two with the average.

    References:
        Chen et al., Three-way trade-off in multi-objective learning: optimization, generalization and
        conflict-avoidance, NeurIPS 2023 (arXiv:2305.20057).

    Example:
        >>> method = MoDo(gamma=0.1, rho=0.0)
        >>> method.observe(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> method(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # from 0.5, less the half of 0.1 x (1.0 - 0.5)
        tensor([0.4750, 0.5250])
    """

    def __init__(self, gamma: float = 0.1, rho: float = 0.1) -> None:
        super().__init__()
        if not (math.isfinite(gamma) and gamma > 0):
            raise ValueError(f"MoDo: `gamma` must be a finite number > 0, got {gamma!r}.")
        if not (math.isfinite(rho) and rho >= 0):
            raise ValueError(f"MoDo: `rho` must be a finite number >= 0, got {rho!r}.")
        self.gamma = float(gamma)
        self.rho = float(rho)

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return self._current(gramian[..., 0])

    def step(self, cross: Array, weights: Array) -> Array:
        gradient = (cross @ weights[:, :, None])[:, :, 0] + self.rho * weights
        return project_on_simplex(weights - self.gamma * gradient)
