"""What the scalarizers have in common that follow a preference."""

import torch
from torch import Tensor

from .given import Given, Numbers


class Preference(Given):
    """A scalarizer that weighs the losses, above an ideal point, by a preference.

    Args:
        weights: The preference, one number an objective, >= 0, not all zero. ``None``: ``1 / K`` each.
        ideal: What is subtracted from the losses, one number an objective. ``None``: zero.
    """

    def __init__(self, weights: Numbers | None, ideal: Numbers | None = None) -> None:
        super().__init__()
        self.prefer(weights)
        self.give("ideal", ideal)

    def prefer(self, weights: Numbers | None) -> None:
        """Changes the preference, in every step if need be.

        Raises:
            ValueError: ``weights`` are not finite numbers >= 0, or all zero.
        """
        self.give("weights", weights, preference=True)

    def preference(self, losses: Tensor) -> Tensor:
        """Returns the preference for the losses of this call."""
        return self.given("weights", losses, 1.0 / len(losses))

    def above_ideal(self, losses: Tensor) -> Tensor:
        """Returns the losses less the ideal point."""
        return losses - self.given("ideal", losses, 0.0)


def unit(vector: Tensor) -> Tensor:
    """The vector divided by its norm; zero, with derivative zero, if it is zero."""
    norm = torch.linalg.vector_norm(vector)
    present = norm > 0
    return vector * torch.where(present, 1.0 / torch.where(present, norm, 1.0), 0.0)
