"""What came out of one training, and how it is kept in a file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One training.

    Args:
        label: Whose it is.
        task: The loss of a single-task network, else None.
        seed: Of everything random.
        learning_rate: Of the optimizer.
        weights: Of the losses, where they are fixed and not all 1.
        method: The method and its options in words.
        metrics: At the end of the training, NaN where it diverged; empty where it failed.
        curve: The validation metrics after each epoch.
        seconds: What the steps took, without evaluations.
        steps: How many there were.
        error: What was raised, in words.
        start: A checksum of the initial weights.
        order: A checksum of the first batch of each epoch.
    """

    label: str
    task: str | None
    seed: int
    learning_rate: float
    weights: tuple[float, ...] | None
    method: str
    metrics: dict[str, float]
    curve: tuple[dict[str, float], ...]
    seconds: float
    steps: int
    error: str | None = None
    start: int = 0
    order: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from all others of a comparison."""
        return self.label, self.task, self.seed, self.learning_rate, self.weights

    def as_json(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite as text, which JSON has no numbers for."""
        plain = asdict(self)
        plain["metrics"] = {name: written(value) for name, value in self.metrics.items()}
        plain["curve"] = [{name: written(value) for name, value in point.items()} for point in self.curve]
        plain["weights"] = None if self.weights is None else list(self.weights)
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Trial":
        """The trial that :meth:`as_json` has written, exactly."""
        weights = plain["weights"]
        return cls(
            **{
                **plain,
                "metrics": {name: float(value) for name, value in plain["metrics"].items()},
                "curve": tuple({name: float(value) for name, value in point.items()} for point in plain["curve"]),
                "weights": None if weights is None else tuple(float(weight) for weight in weights),
            }
        )


def written(value: float) -> float | str:
    """A number as it is put in a file.

    Example:
        >>> written(0.1), written(float("nan"))
        (0.1, 'nan')
    """
    return value if value - value == 0 else repr(value)


__all__ = ["Trial", "written"]
