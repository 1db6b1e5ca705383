"""A table of names and numbers as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from numbers import Real

from ..wording import quantity
from .text import escaped

# A number as text, with a sign before and a short unit after it: "−.42", "3.1 ± .2", "87%", "0.3 ms", "2,431×".
_NUMBER = re.compile(r"[+−<>~≈-]?[.\d∞][-+−\d.,e\s±()%×∞]*[a-zµ%×]{0,3}")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose first column names the rows; it scrolls in its own frame where the page is narrower.

    Columns that are mostly numbers, written as text or not, stand to the right. Numbers that are no text are written
    to three digits, NaN as a dash.

    Args:
        header: Of the columns, plain text.
        rows: Cells, plain text or numbers.

    Raises:
        ValueError: a row has more or fewer cells than the header.

    Example:
        >>> print(table(["pair", "cosine"], [["a, b", -0.25]]))
        <div class="scroll"><table><thead><tr><th>pair</th><th class="number">cosine</th></tr></thead>
        <tbody><tr><th scope="row">a, b</th><td class="number">−0.25</td></tr></tbody></table></div>
    """
    lines = [[_written(cell) for cell in row] for row in rows]
    for index, line in enumerate(lines):
        if len(line) != len(header):
            raise ValueError(
                f"table: `rows` must have {len(header)} cells each, as the header, got {len(line)} in row {index}."
            )
    right = [index > 0 and _is_numeric([line[index] for line in lines]) for index in range(len(header))]
    kinds = [' class="number"' if own else "" for own in right]
    heads = "".join(f"<th{kind}>{_breakable(name)}</th>" for kind, name in zip(kinds, header, strict=True))
    body = "".join(f"<tr>{_cells(line, kinds)}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cells(line: Sequence[str], kinds: Sequence[str]) -> str:
    first, *others = line
    return f'<th scope="row">{escaped(first)}</th>' + "".join(
        f"<td{kind}>{escaped(cell)}</td>" for kind, cell in zip(kinds[1:], others, strict=True)
    )


def _breakable(name: str) -> str:
    """A heading that may go on below after an underscore, a dot or a slash, as names of losses and layers have."""
    return re.sub(r"([_./])(?=\w)", r"\1<wbr>", escaped(name))


def _written(cell: object) -> str:
    if isinstance(cell, bool):
        return str(cell)
    if isinstance(cell, Real):
        return quantity(float(cell))  # also of NumPy
    return "–" if cell is None else str(cell)


def _is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column is one of numbers: most of the cells that say something are."""
    said = [cell.strip() for cell in cells if cell.strip(" –—-")]
    return 2 * sum(_NUMBER.fullmatch(cell) is not None for cell in said) > len(said)
