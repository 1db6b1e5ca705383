"""Cuts the blocks of a Jacobian into pieces of work for one launch, however many tensors there are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reference import as_matrix

_LAUNCHED: set[object] = set()


class WorkList(NamedTuple):
    """What the programs of one launch do: each of them looks up its piece, a range of columns of one block.

    Args:
        table: On the device, int64, for all blocks one after another: its first piece, its address, the stride of
            its rows, its number of columns, its group, the address of its output; then the first piece of each
            group, and the number of pieces.
        blocks: How many blocks the table has; blocks without columns are left out.
        steps: How many halvings find a piece's block.
        chunk: Columns of a piece; the last one of a block may have fewer.
        pieces: How many pieces there are.
    """

    table: Tensor
    blocks: int
    steps: int
    chunk: int
    pieces: int


def work_list(
    blocks: Sequence[Tensor],
    groups: Sequence[int],
    problems: int,
    outputs: Sequence[Tensor] | None,
    tile: int,
    most: int,
) -> WorkList:
    """Builds the table and brings it to the blocks' device.

    Args:
        blocks: As :func:`adjacent` returns them; they have to live until the launch.
        groups: For each block the surgery it belongs to.
        problems: How many surgeries there are.
        outputs: For each block the memory its direction is written to, if there is any.
        tile: What a piece's length is a multiple of, in columns.
        most: About how many pieces there may be, apart from one for each block.
    """
    kept = [position for position, block in enumerate(blocks) if block.numel()]
    kept.sort(key=lambda position: groups[position])  # the pieces of a group lie side by side
    columns = [blocks[position].numel() // blocks[position].shape[0] for position in kept]
    chunk = tile * max(1, -(-sum(columns) // (tile * most)))
    first, bounds, pieces = [], [0], 0
    for position, length in zip(kept, columns, strict=True):
        bounds += [pieces] * (groups[position] + 1 - len(bounds))
        first.append(pieces)
        pieces += -(-length // chunk)
    bounds += [pieces] * (problems + 1 - len(bounds))
    addresses = [blocks[position].data_ptr() for position in kept]
    strides = [blocks[position].stride(0) for position in kept]
    owners = [groups[position] for position in kept]
    targets = [0] * len(kept) if outputs is None else [outputs[position].data_ptr() for position in kept]
    values = [*first, *addresses, *strides, *columns, *owners, *targets, *bounds]
    table = _on_device(values, blocks[0].device)
    return WorkList(table, len(kept), max(0, len(kept) - 1).bit_length(), chunk, pieces)


def adjacent(block: Tensor) -> Tensor:
    """The block with the entries of each row side by side; copied only where they are not, and rows may repeat."""
    if block.is_contiguous():
        return block
    rows = as_matrix(block)
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **options: Any) -> None:
    """Starts a kernel on the tensors' device.

    Raises:
        RuntimeError: A CUDA graph is being captured and this is the kernel's first launch; loading it then would
            break the capture.
    """
    if device.type != "cuda":
        kernel[grid](*arguments, **options)
        return
    dtypes = tuple(argument.dtype for argument in arguments if isinstance(argument, Tensor))
    key = (kernel.__name__, device.index, dtypes, tuple(sorted(options.items(), key=lambda option: option[0])))
    if key not in _LAUNCHED:
        refuse_capture(device, f"{kernel.__name__} with {options}")
    with torch.cuda.device(device):
        kernel[grid](*arguments, **options)
    _LAUNCHED.add(key)


def refuse_capture(device: torch.device, what: str) -> None:
    """Raises while a CUDA graph is captured: kernels are loaded before."""
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"kernels: the first launch must come before the capture of a CUDA graph, got {what} in one. Run one "
                f"step with the same number of losses and dtypes before capturing."
            )


def _on_device(values: list[int], device: torch.device) -> Tensor:
    """Uploads integers without waiting for the device.

    While a CUDA graph is captured they travel as arguments of kernels, which a replay finds unchanged; a copy from
    the host would be repeated from memory that has long been given away.
    """
    if device.type != "cuda":
        return torch.tensor(values)
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return written_by_kernels(values, device)
        return torch.tensor(values).pin_memory().to(device, non_blocking=True)


def written_by_kernels(values: list[int], device: torch.device) -> Tensor:
    """Makes a tensor of integers that no copy from the host is needed for."""
    table = torch.zeros(len(values), dtype=torch.int64, device=device)
    torch._foreach_add_(list(table.unbind()), values)
    return table
