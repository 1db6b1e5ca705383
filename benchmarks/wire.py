"""Counts what a process sends to others, whoever asks for it: DistributedDataParallel, FSDP2 or this library."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# What a rank sends with the algorithm that sends least: rings, and each part straight to its owner.
SHARES: dict[str, Callable[[Any, int], float]] = {
    "allreduce_": lambda arguments, size: 2 * _numel(arguments[0]) * (size - 1) / size,
    "allgather_": lambda arguments, size: _numel(arguments[1]) * (size - 1),
    "_allgather_base_": lambda arguments, size: _numel(arguments[1]) * (size - 1),
    "_reduce_scatter_base_": lambda arguments, size: _numel(arguments[1]) * (size - 1) / size,
    "alltoall_base_": lambda arguments, size: _numel(arguments[1]) * (size - 1) / size,
    "broadcast_": lambda arguments, size: _numel(arguments[0]),
}


class Wire(TorchDispatchMode):
    """Adds up, while it is entered, the collectives of this process.

    Args:
        size: How many ranks there are.

    Raises:
        RuntimeError: A collective is called whose share is not known.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.calls = 0
        self.elements = 0.0
        self._size = size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func.name().removeprefix("c10d::")
            if name not in SHARES:
                raise RuntimeError(f"Wire: `func` must be one of {list(SHARES)}, got {name!r}. Add its share.")
            self.calls += 1
            self.elements += SHARES[name](args, self._size)
        return func(*args, **(kwargs or {}))


def _numel(tensors: Any) -> int:
    """Of one tensor, or of all in a list."""
    if isinstance(tensors, Tensor):
        return tensors.numel()
    return sum(_numel(tensor) for tensor in tensors)
