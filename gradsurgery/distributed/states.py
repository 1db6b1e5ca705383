"""What ranks must have in common, in words, and what methods remember, taken from the first rank where it differs."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .ranks import Ranks


def described(method: nn.Module) -> str:
    """A method and its options in words."""
    words = []
    for member in method.modules():
        options = {
            name: value
            for name, value in vars(member).items()
            if not name.startswith("_") and isinstance(value, int | float | str | bool | tuple)
        }
        words.append(f"{type(member).__name__}({', '.join(f'{name}={value!r}' for name, value in options.items())})")
    return " ".join(words)


def described_parameters(parameters: Iterable[Tensor], names: Mapping[int, str]) -> str:
    """What must be the same of parameters on all ranks; names are by id, where they are known."""
    return "; ".join(
        f"{names.get(id(parameter), '')} {tuple(parameter.shape)} {parameter.dtype}"
        f"{'' if parameter.requires_grad else ' frozen'}".strip()
        for parameter in parameters
    )


def state_of_first(ranks: Ranks, own: dict[str, Any]) -> dict[str, Any] | None:
    """The first rank's, or None where all have the same.

    Args:
        ranks: All of them.
        own: Of plain data and tensors.
    """
    digest = hashlib.blake2b(digest_size=8)
    _feed(digest, own)
    number = torch.tensor([int.from_bytes(digest.digest(), "big", signed=True)])
    table = ranks.gathered(number)
    if bool((table == table[0]).all()):
        return None
    box = [own]
    dist.broadcast_object_list(box, dist.get_global_rank(ranks.group, 0), group=ranks.group)
    return box[0]


def _feed(digest: "hashlib.blake2b", value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key, item in value.items():
            digest.update(f"{key}:".encode())
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())
