"""A mixed-type table as two tensors: the values and which of them were observed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .cells import decode_cells, encode_cells, encode_new_cells
from .frame import check_frame, read_csv
from .schema import Schema

FEWEST_ROWS = 10


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts of a table, each ``(rows,)`` of dtype int64."""

    train: Tensor
    validation: Tensor
    test: Tensor


class Table:
    """The cells of a table as numbers, with its schema.

    Args:
        schema: One column each, labels complete. Build tables with :meth:`from_frame`.
        values: Cells in original units; codes 0, 1, ... for categories; NaN where missing.
        ranges: What :meth:`ranges` answers. ``None``: the ranges of these values.

    Shape:
        - values: ``(N, D)``, float64.
        - observed: ``(N, D)``, bool.
        - ranges: ``(D,)``, float64.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"size": [1.5, None, 3.0, 4.5] * 3, "colour": ["red", "blue"] * 6})
        >>> table = Table.from_frame(frame)
        >>> table.values[:3]
        tensor([[1.5000, 1.0000],
                [   nan, 0.0000],
                [3.0000, 1.0000]], dtype=torch.float64)
        >>> table.to_frame().equals(frame)
        True
    """

    def __init__(self, schema: Schema, values: Tensor, ranges: Tensor | None = None) -> None:
        self.schema = schema
        self.values = values
        self._ranges = ranges
        self.observed = ~values.isnan()

    def __len__(self) -> int:
        return self.values.shape[0]

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, schema: Schema | None = None) -> Table:
        """Encodes a DataFrame.

        Args:
            frame: The table; missing cells as pandas marks them. At least ten rows, so that each part
                of a 70/10/20 split has one.
            schema: Its columns, in the order wanted. ``None``: :meth:`Schema.infer`.

        Raises:
            TypeError: ``frame`` is no DataFrame, or a column holds something other than its kind.
            ValueError: the table is too short, its columns are not those of the schema, a column is all
                missing, has infinite cells or contradicts its kind.

        Cost:
            One pass over the table on the CPU.
        """
        check_frame(frame, "Table")
        if len(frame) < FEWEST_ROWS:
            raise ValueError(
                f"Table: `frame` must have at least {FEWEST_ROWS} rows, got {len(frame)}. "
                "Fewer cannot be split into training, validation and test rows."
            )
        wanted = Schema.infer(frame) if schema is None else schema
        _check_names(frame, wanted)
        encoded = [encode_cells(frame[column.name], column) for column in wanted]
        values = torch.from_numpy(np.stack([cells for _, cells in encoded], axis=1))
        return cls(Schema(column for column, _ in encoded), values)

    @classmethod
    def from_new_rows(cls, frame: pd.DataFrame, schema: Schema, ranges: Tensor | None = None) -> Table:
        """Encodes rows for a model that was fitted on others.

        There may be any number of them, and columns that are all missing. The columns are found by name,
        whatever their order.

        Args:
            frame: The rows.
            schema: That of the table the model was fitted on, its ``schema``.
            ranges: Those of the table the model was fitted on, :meth:`ranges`, so that errors are measured
                against them. ``None``: those of these rows.

        Raises:
            TypeError: ``frame`` is no DataFrame, or a column holds something other than its kind.
            ValueError: the columns are not those of the schema, or a column has infinite cells, categories
                that the schema does not list or numbers that contradict its kind.

        Example:
            >>> import pandas as pd
            >>> table = Table.from_frame(pd.DataFrame({"size": [1.5, 3.0] * 6, "colour": ["red", "blue"] * 6}))
            >>> Table.from_new_rows(pd.DataFrame({"colour": ["red"], "size": [None]}), table.schema).values
            tensor([[nan, 1.]], dtype=torch.float64)
        """
        check_frame(frame, "Table")
        _check_names(frame, schema)
        cells = [encode_new_cells(frame[column.name], column) for column in schema]
        return cls(schema, torch.from_numpy(np.stack(cells, axis=1)), ranges)

    @classmethod
    def read_csv(cls, path: str | Path, schema: Schema | None = None) -> Table:
        """Encodes a CSV file with a header row; empty cells are missing. See :meth:`from_frame`."""
        return cls.from_frame(read_csv(path), schema)

    def to_frame(self, values: Tensor | None = None) -> pd.DataFrame:
        """The inverse of :meth:`from_frame`: original labels and dtypes.

        Args:
            values: Cells of the same columns to decode instead of the table's, for example a
                reconstruction, ``(M, D)``. ``None``: the table's.

        Raises:
            ValueError: ``values`` has another number of columns.
        """
        cells = self.values if values is None else values
        if cells.ndim != 2 or cells.shape[1] != len(self.schema):
            raise ValueError(
                f"Table: `values` must have shape (rows, {len(self.schema)}), got {tuple(cells.shape)}. "
                "Pass one number for every column of the schema."
            )
        arrays = cells.detach().cpu().double().numpy()
        return pd.DataFrame({column.name: decode_cells(arrays[:, d], column) for d, column in enumerate(self.schema)})

    def split(self, seed: int = 0) -> Split:
        """Shuffles the rows by ``seed`` and cuts them into 70% training, 10% validation, 20% test.

        Example:
            >>> import pandas as pd
            >>> parts = Table.from_frame(pd.DataFrame({"x": range(20)})).split()
            >>> len(parts.train), len(parts.validation), len(parts.test)
            (14, 2, 4)
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        train, validation = round(0.7 * len(self)), max(1, round(0.1 * len(self)))
        return Split(order[:train], order[train : train + validation], order[train + validation :])

    def ranges(self) -> Tensor:
        """Largest minus smallest observed value of each column, ``(D,)``; 1 for constant columns.

        A constant column has no range to measure an error against; its error stays in original units.
        """
        if self._ranges is not None:
            return self._ranges
        inf = torch.inf
        largest = torch.where(self.observed, self.values, -inf).amax(0)
        smallest = torch.where(self.observed, self.values, inf).amin(0)
        return torch.where(largest > smallest, largest - smallest, 1.0)


def _check_names(frame: pd.DataFrame, schema: Schema) -> None:
    if set(schema.names) != set(frame.columns):
        absent = sorted(set(schema.names) - set(frame.columns))
        extra = sorted(set(frame.columns) - set(schema.names))
        raise ValueError(
            f"Table: `schema` must have the columns of the table, got {absent} that the table lacks and "
            f"lacks {extra}. Correct the schema, or drop columns from the table."
        )
