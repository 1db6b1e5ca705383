"""Makes dropout draw the same masks under ``torch.func`` as outside of it.

A mask is filled in the order in which its tensor lies in memory. Outside ``torch.func`` a mask lies like its input,
under it always in row-major order: on a transposed input, such as attention's output with ``batch_first``, the
same draws land on other entries.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class EagerMasks(TorchFunctionMode):
    """Replaces dropout on the CPU by its definition, with a mask that lies like the input.

    Raises:
        RuntimeError: Alpha dropout meets an input that is not contiguous.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout or func is torch.dropout:
            return _dropout(*args, **kwargs)
        if func is torch.dropout_:
            return args[0].copy_(_dropout(*args, **kwargs))
        if func in (functional.alpha_dropout, torch.alpha_dropout) and not args[0].is_contiguous():
            raise RuntimeError("alpha dropout draws other masks under torch.func unless its input is contiguous.")
        return func(*args, **kwargs)


def _dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, train: bool | None = None
) -> Tensor:
    training = training if train is None else train  # torch.dropout calls it so
    if not training or not 0.0 < p < 1.0 or input.device.type != "cpu":
        return functional.dropout(input, p, training, inplace)
    mask = torch.empty_like(input).bernoulli_(1 - p).div_(1 - p)
    return input.mul_(mask) if inplace else input * mask
