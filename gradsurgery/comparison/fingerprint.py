"""A checksum of tensors and of what holds them: the same for the same numbers."""

import zlib
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass

import numpy as np
import torch
from torch import Tensor


def fingerprint(value: object, start: int = 0) -> int:
    """A checksum of the tensors, arrays, numbers and texts in nested containers and dataclasses; of nothing else.

    Example:
        >>> fingerprint({"x": torch.ones(2)}) == fingerprint({"x": torch.ones(2)})
        True
        >>> fingerprint({"x": torch.ones(2)}) == fingerprint({"x": torch.zeros(2)})
        False
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta:
            return start
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
        return zlib.crc32(plain.numpy().tobytes(), start)
    if isinstance(value, np.ndarray):
        return zlib.crc32(np.ascontiguousarray(value).tobytes(), start)
    if value is None or isinstance(value, int | float | str | bytes):
        return zlib.crc32(repr(value).encode(), start)
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    elif isinstance(value, Set):
        value = sorted(map(repr, value))
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, list | tuple):
        for part in value:
            start = fingerprint(part, start)
    return start


__all__ = ["fingerprint"]
