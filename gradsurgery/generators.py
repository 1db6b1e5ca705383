"""Generators of random numbers on the CPU or on a GPU, and what a CUDA graph that is being captured lets them do."""

import torch
from torch import Tensor

HOST = torch.device("cpu")


def is_captured(device: torch.device) -> bool:
    """Whether what is computed on ``device`` is being captured in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def own_generator(generator: torch.Generator | None, on_gpu: bool, name: str) -> torch.Generator:
    """Returns the generator; for ``None`` a new one on the CPU with the global seed, or raises a ``TypeError``."""
    if generator is None:
        return torch.Generator().manual_seed(torch.initial_seed())
    places = ("cpu", "cuda") if on_gpu else ("cpu",)
    if not isinstance(generator, torch.Generator) or generator.device.type not in places:
        where = "the CPU or a GPU" if on_gpu else "the CPU"
        raise TypeError(f"{name}: `generator` must be a torch.Generator on {where}, got {generator!r}.")
    return generator


def draws_there(generator: torch.Generator, device: torch.device, on_gpu: bool, name: str) -> bool:
    """Whether draws for tensors on ``device`` are made there; raises where a graph is captured and they are not.

    For the meta device nothing is drawn anywhere. A generator may name no particular GPU.
    """
    own = generator.device
    if device.type == "meta" or (own.type == device.type and own.index in (None, device.index)):
        return True
    if is_captured(device):
        remedy = (
            f"Pass generator=torch.Generator({str(device)!r}) and register it with the graph before the capture: "
            f"graph.register_generator_state(generator)."
        )
        raise RuntimeError(
            f"{name}: `generator` must be on {device} while a CUDA graph is being captured, got one on {own}. "
            f"{remedy if on_gpu else 'It draws on the CPU alone: call it outside of the graph.'}"
        )
    return False


def restore(generator: torch.Generator, state: Tensor, name: str) -> None:
    """Sets a generator to a saved state, or raises a ``ValueError`` if that is of a generator on another device."""
    if len(state) != len(generator.get_state()):
        raise ValueError(
            f"{name}: `state` must be that of a generator on {generator.device}, got {len(state)} bytes of another. "
            f"Build the method with a generator on the kind of device that it had."
        )
    generator.set_state(state.cpu())
