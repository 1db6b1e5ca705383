"""What the pictures are given, checked once: tensors of the right shapes become arrays in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

ROUNDING = 1e-6  # by which a cosine or a share may lie outside of its range


def checked_names(caller: str, argument: str, names: Sequence[str], at_least: int = 1) -> list[str]:
    """The names as a list.

    Raises:
        TypeError: they are not a sequence of strings.
        ValueError: there are too few.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{caller}: `{argument}` must be a sequence of strings, got {names!r}. Pass a list.")
    if len(names) < at_least:
        raise ValueError(f"{caller}: `{argument}` must be at least {at_least}, got {len(names)}.")
    return list(names)


def checked(caller: str, argument: str, values: Tensor, shape: str, sizes: Mapping[str, int]) -> Array:
    """A tensor as an array; infinities become NaN, which is what is not drawn.

    Args:
        caller: The function, for the error.
        argument: What the tensor is called there.
        values: The tensor, on any device.
        shape: A letter a dimension, such as ``"BKK"``; at least 1 each.
        sizes: What is known of the dimensions, by letter.

    Raises:
        TypeError: ``values`` is not a tensor of real numbers.
        ValueError: its shape is another one.
    """
    if not isinstance(values, Tensor) or values.is_complex() or values.dtype == torch.bool or values.is_meta:
        found = type(values).__name__
        if isinstance(values, Tensor):
            found = "one on the meta device" if values.is_meta else str(values.dtype)
        raise TypeError(
            f"{caller}: `{argument}` must be a tensor of real numbers, got {found}. Pass torch.tensor(...)."
        )
    lengths = dict(sizes)
    fits = len(shape) == values.ndim and all(
        size > 0 and lengths.setdefault(letter, size) == size
        for letter, size in zip(shape, values.shape, strict=True)
    )
    if not fits:
        known = "".join(f", {letter} = {size}" for letter, size in sizes.items())
        raise ValueError(
            f"{caller}: `{argument}` must be of shape ({', '.join(shape)}){known}, got {tuple(values.shape)}. "
            "Give a name a row, and nothing empty."
        )
    array: Array = values.detach().to_dense().to("cpu", torch.float64).numpy().copy()
    array[~np.isfinite(array)] = np.nan
    return array


def within(caller: str, argument: str, values: Array, low: float, high: float, hint: str) -> Array:
    """Values that lie in a range, clipped to it where rounding carried them over.

    Raises:
        ValueError: one lies outside.
    """
    outside = values[(values < low - ROUNDING) | (values > high + ROUNDING)]
    if outside.size:
        raise ValueError(
            f"{caller}: `{argument}` must be from {low:g} to {high:g}, got {float(outside.flat[0]):g}. {hint}"
        )
    return np.clip(values, low, high)


def checked_cosines(caller: str, values: Tensor, shape: str, sizes: Mapping[str, int]) -> Array:
    """Cosines between K gradients, in the last two dimensions."""
    array = checked(caller, "cosines", values, shape, sizes)
    return within(caller, "cosines", array, -1.0, 1.0, "Of a Gramian, take gs.diagnostics.similarity.cosines first.")


def checked_steps(caller: str, steps: Tensor) -> Array:
    """The numbers of T steps.

    Raises:
        ValueError: they are not finite, or fall.
    """
    array = checked(caller, "steps", steps, "T", {})
    if np.isnan(array).any() or (np.diff(array) < 0).any():
        fault = "NaN" if np.isnan(array).any() else "a step below the one before it"
        raise ValueError(f"{caller}: `steps` must be finite and never fall, got {fault}. Sort the records by step.")
    return array
