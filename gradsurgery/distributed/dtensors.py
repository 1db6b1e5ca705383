"""Which tensors are spread over ranks by themselves."""

from collections.abc import Iterable


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is a DTensor; by name, as importing the class takes long."""
    return type(tensor).__name__ == "DTensor"


def any_sharded(tensors: Iterable[object]) -> bool:
    """Whether one of them is a DTensor."""
    return any(map(is_sharded, tensors))
