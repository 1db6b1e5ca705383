"""Numbers that the user gives for each objective."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Scalarizer

Numbers = Sequence[float] | Tensor
"""One number an objective."""


class Given(Scalarizer):
    """A scalarizer with numbers that the user gives, one an objective.

    They are options, not state: a checkpoint does not hold them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[str, Tensor] = {}

    def give(self, name: str, values: Numbers | None, *, preference: bool = False) -> None:
        """Keeps the numbers under a name; ``None`` keeps none.

        Args:
            name: What the user calls them.
            values: One number an objective.
            preference: Whether they must be non-negative and not all zero.

        Raises:
            ValueError: They are not what they must be.
        """
        if values is None:
            self._given.pop(name, None)
            return
        numbers = torch.as_tensor(values, dtype=torch.float64).detach().clone()
        usable = numbers.ndim == 1 and len(numbers) > 0 and bool(numbers.isfinite().all())
        if not usable or (preference and (bool((numbers < 0).any()) or not bool(numbers.any()))):
            rule = "finite numbers >= 0, not all zero" if preference else "finite numbers"
            raise ValueError(f"{type(self).__name__}: `{name}` must be {rule}, one an objective, got {values!r}.")
        self._given[name] = numbers

    def given(self, name: str, losses: Tensor, default: float) -> Tensor:
        """Returns the numbers of the objectives of this call, on their device.

        Args:
            name: What the user calls them.
            losses: The losses of this call.
            default: What they are if the user gave none.

        Raises:
            ValueError: There is none for an objective.
        """
        numbers = self._given.get(name)
        if numbers is None:
            return torch.full_like(losses, default, requires_grad=False)
        rows = self.current_rows(len(losses))
        if max(rows) >= len(numbers):
            raise ValueError(
                f"{type(self).__name__}: `{name}` must have one entry an objective, got {len(numbers)} for the "
                f"objectives {rows}."
            )
        if numbers.device != losses.device:
            numbers = self._given[name] = numbers.to(losses.device)
        return numbers if rows == list(range(len(numbers))) else numbers[rows]
