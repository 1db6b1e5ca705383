"""Figures as files, and as text for a page: whole or not at all, and the same for the same figure."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...whole_file import write_whole
from .canvas import without_glyph_warnings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_AN_INCH = 150
# What would tell when a file was written.
_NO_DATE: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure; the suffix of ``path`` says in which format. The file is there whole or not at all.

    Args:
        figure: Of matplotlib.
        path: Where the file shall be, such as ``conflicts.png``, ``.svg`` or ``.pdf``; missing folders are made.

    Raises:
        ValueError: ``path`` has no suffix, or one of no such format.

    Example:
        >>> from matplotlib.figure import Figure
        >>> path = getfixture("tmp_path") / "pictures" / "empty.svg"
        >>> save_figure(Figure(), path)
        >>> path.exists()
        True
    """
    suffix = Path(path).suffix.lower()
    known = figure.canvas.get_supported_filetypes()
    if suffix[1:] not in known:
        raise ValueError(
            f"save_figure: `path` must end in a format that matplotlib writes, got {str(path)!r}. "
            f"Take one of {', '.join(known)}."
        )
    metadata = _NO_DATE.get(suffix)
    with _reproducible(), without_glyph_warnings() if suffix == ".svg" else nullcontext():
        write_whole(path, lambda file: figure.savefig(file, dpi=DOTS_AN_INCH, metadata=metadata))


def written_svg(figure: Figure) -> bytes:
    """The figure as an SVG document to be shown by a browser, in UTF-8.

    Letters stay letters, which is shorter than their outlines, and shows every script that the browser has.
    """
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    buffer = io.BytesIO()
    with _reproducible(), without_glyph_warnings():
        figure.savefig(buffer, format="svg", dpi=DOTS_AN_INCH, metadata=nothing)
    # Without the preamble, which names a document type on the network that nothing reads.
    svg = re.sub(rb"\A.*?(?=<svg)", b"", buffer.getvalue(), count=1, flags=re.DOTALL)
    # A hundredth of a point is finer than any screen; matplotlib writes six digits.
    return re.sub(rb'<path[^<>]*? d="[^"]*"', lambda path: re.sub(rb"(\.\d\d)\d+", rb"\1", path[0]), svg)


@contextmanager
def _reproducible() -> Iterator[None]:
    import matplotlib

    # How files are written is not the reader's to set: a transparent figure is unreadable on a dark page.
    own: dict[Any, Any] = {
        name: value for name, value in matplotlib.rcParamsDefault.items() if name.startswith("savefig.")
    }
    fixed: dict[Any, Any] = {"svg.hashsalt": "gradsurgery", "svg.fonttype": "none", "figure.autolayout": False}
    with matplotlib.rc_context({**own, **fixed}):
        yield
