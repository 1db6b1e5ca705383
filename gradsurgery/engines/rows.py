"""Collects per-loss gradients, one loss after the other, in the rows of few large matrices."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..sharing import describe
from .per_loss import Block
from .workspace import Workspace, reused

_Kind: TypeAlias = tuple[torch.device, torch.dtype]


class Rows:
    """The rows of a Jacobian under construction.

    Parameters find their columns when the first gradient for them arrives: the dense ones of one loss, device
    and dtype side by side in one ``(K, P)`` matrix; sparse ones stay apart and stay sparse.

    Args:
        count: K.
        workspace: Where the matrices are put.
    """

    def __init__(self, count: int, workspace: Workspace) -> None:
        self.count = count
        self._workspace = workspace
        self._matrices: dict[object, tuple[list[Tensor], Tensor]] = {}
        self._columns: dict[Tensor, Tensor] = {}  # (K, n) views into the matrices
        self._written: dict[Tensor, int] = {}
        self._sparse: dict[Tensor, dict[int, Tensor]] = {}
        self._usual: tuple[Sequence[Tensor], Tensor] | None = None  # parameters of the first row, and their matrix
        self._usual_rows = 0

    def store(self, row: int, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Writes the gradients of one loss; None stands for zero."""
        if self._usual is not None and parameters is self._usual[0]:
            given = [gradient for gradient in gradients if gradient is not None and not gradient.is_sparse]
            if len(given) == len(parameters):
                torch.cat([gradient.reshape(-1) for gradient in given], out=self._usual[1][row])
                self._usual_rows |= 1 << row
                return
        dense = {}
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            if gradient.is_sparse:
                if gradient.sparse_dim() != 1:
                    raise RuntimeError(
                        f"MultiObjectiveOptimizer: `losses` must have sparse gradients over whole rows, as those of "
                        f"embeddings are, got {gradient.sparse_dim()} sparse dimensions for {describe(parameter)}. "
                        f"Use a dense parameter."
                    )
                self._sparse.setdefault(parameter, {})[row] = gradient.coalesce()
            else:
                dense[parameter] = gradient
        self._place([parameter for parameter in dense if parameter not in self._columns], row)
        for members, matrix in self._matrices.values():
            found = [parameter for parameter in members if parameter in dense]
            if len(found) == len(members):
                torch.cat([dense[parameter].reshape(-1) for parameter in members], out=matrix[row])
            for parameter in found if len(found) < len(members) else ():
                self._columns[parameter][row].view(parameter.shape).copy_(dense[parameter])
        for parameter in dense:
            self._written[parameter] |= 1 << row
        if len(self._matrices) == 1:
            ((members, matrix),) = self._matrices.values()
            if len(members) == len(parameters):
                self._usual = parameters, matrix

    def blocks(self) -> list[Block]:
        """The finished blocks, zero where a loss does not reach a parameter."""
        for stale in [known for known in self._workspace if known[0] not in self._matrices]:
            del self._workspace[stale]
        full = (1 << self.count) - 1
        for parameter in self._usual[0] if self._usual is not None else ():
            self._written[parameter] |= self._usual_rows
        for parameter, written in self._written.items():
            for row in range(self.count) if written != full else ():
                if not written >> row & 1:
                    self._columns[parameter][row].zero_()
        result: list[Block] = []
        for members, matrix in self._matrices.values():
            block = Block(members, matrix)
            mixed = any(parameter in self._sparse for parameter in members)
            parts = block.split() if mixed else [block]
            result.extend(part for part in parts if not mixed or part.parameters[0] not in self._sparse)
        result.extend(self._sparse_block(parameter) for parameter in self._sparse)
        return result

    def _place(self, parameters: list[Tensor], row: int) -> None:
        """Gives new parameters their columns."""
        kinds: dict[_Kind, list[Tensor]] = {}
        for parameter in parameters:
            kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        for kind, members in kinds.items():
            sizes = [parameter.numel() for parameter in members]
            key = (kind, row)
            matrix = reused(self._workspace, key, (self.count, sum(sizes)), members[0])
            self._matrices[key] = (members, matrix)
            self._columns.update(zip(members, matrix.split(sizes, dim=1), strict=True))
            self._written.update(dict.fromkeys(members, 0))

    def _sparse_block(self, parameter: Tensor) -> Block:
        """Gathers sparse rows over the union of their indices."""
        rows = dict(self._sparse[parameter])
        for row in range(self.count):  # a parameter may get dense gradients from some losses
            if self._written.get(parameter, 0) >> row & 1:
                rows[row] = self._columns[parameter][row].view(parameter.shape).to_sparse(1).coalesce()
        counts = [value.indices().shape[1] for value in rows.values()]
        touched = torch.cat([value.indices()[0] for value in rows.values()])
        indices, inverse = touched.unique(return_inverse=True)
        matrix = parameter.new_zeros(self.count, len(indices), *parameter.shape[1:])
        for (row, value), where in zip(rows.items(), inverse.split(counts), strict=True):
            matrix[row].index_copy_(0, where, value.values())
        return Block([parameter], matrix.flatten(1), indices)
