"""Forward passes that leave no trace: whatever they do to a model is undone."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


class Untouched:
    """A model as it was: its buffers, modes and the random state, to go back to.

    What a module keeps outside its buffers is not seen.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self.devices = sorted({int(tensor.device.index) for tensor in tensors if tensor.device.type == "cuda"})
        """The numbers of the GPUs that the model is on."""
        self._modes = {module: module.training for module in model.modules()}
        self._buffers: list[tuple[nn.Module, str, Tensor | None, Tensor | None]] = [
            (module, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
        ]

    def restore(self) -> None:
        """Modes and buffers as they were; a buffer that was replaced is the old object again."""
        for module, training in self._modes.items():
            module.training = training
        with torch.no_grad():
            for module, name, buffer, value in self._buffers:
                module._buffers[name] = buffer
                # Only where it differs: writing counts a version up, which a graph of the caller's may watch.
                if buffer is not None and value is not None and not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def untouched(model: nn.Module) -> Iterator[Untouched]:
    """Brings back a model and the random state of PyTorch, NumPy and Python when done, also after an error."""
    before = Untouched(model)
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(before.devices):
            yield before
    finally:
        before.restore()
        random.setstate(python)
        np.random.set_state(numpy)


def seed_everything(seed: int, devices: Sequence[int]) -> None:
    """The same draws of PyTorch, on the CPU and on these GPUs, of NumPy and of Python each time."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the other devices, too
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
