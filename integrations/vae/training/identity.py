"""What tells one training from another: the cells of its table, the options of its method."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

import gradsurgery as gs

from ..tables.table import Table


def table_digest(table: Table) -> str:
    """A short name for the schema and all values of a table.

    Example:
        >>> import pandas as pd
        >>> tables = [Table.from_frame(pd.DataFrame({"x": [start, *range(11)]})) for start in (1, 1, 2)]
        >>> [table_digest(table) == table_digest(tables[0]) for table in tables]
        [True, True, False]
    """
    cells = torch.where(table.observed, table.values, torch.nan).contiguous()
    content = hashlib.sha256(table.schema.to_json().encode())
    content.update(str(tuple(cells.shape)).encode())
    content.update(cells.numpy().tobytes())
    return content.hexdigest()[:16]


def describe_method(method: gs.Aggregator) -> str:
    """The kind of a method, and of what it is made of, with the options; what it has learnt plays no part.

    Example:
        >>> describe_method(gs.GradDrop(leak=0.5))
        'GradDrop(leak=0.5)'
        >>> describe_method(gs.GradNorm(alpha=0.0))
        "GradNorm(alpha=0.0, progress='loss') > PerLossAdam(lr=0.025, betas=(0.9, 0.999))"
    """
    parts = (part for part in method.modules() if not isinstance(part, nn.ModuleList))
    return " > ".join(f"{type(part).__name__}({_options(part)})" for part in parts)


def _options(part: nn.Module) -> str:
    plain = (bool, int, float, str, tuple)
    given = {name: value for name, value in vars(part).items() if isinstance(value, plain)}
    return ", ".join(f"{name}={value!r}" for name, value in given.items() if name[0] != "_" and name != "training")
