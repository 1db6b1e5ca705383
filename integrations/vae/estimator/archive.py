"""A file of one JSON document and named arrays: a zip that holds data only, no code."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsurgery.whole_file import write_whole

DOCUMENT = "document.json"
# One date for all files: what is the same has the same bytes.
DATE = (1980, 1, 1, 0, 0, 0)
# What a damaged file makes the readers raise.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, IndexError, EOFError, OSError, RuntimeError,
    NotImplementedError, AttributeError, MemoryError,
)  # fmt: skip


def write_archive(path: str | Path, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes the file whole or not at all; an older one is replaced.

    Args:
        path: Where.
        document: What JSON can hold.
        arrays: Of numbers, by name.

    Example:
        >>> path = getfixture("tmp_path") / "numbers.zip"
        >>> write_archive(path, {"unit": "cm"}, {"sizes": np.array([1.5, 2.5])})
        >>> read_archive(path)
        ({'unit': 'cm'}, {'sizes': array([1.5, 2.5])})
    """
    parts = {DOCUMENT: json.dumps(document, ensure_ascii=False, indent=1).encode()}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        parts[f"{name}.npy"] = buffer.getvalue()

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as file:
            for name, content in parts.items():
                file.writestr(zipfile.ZipInfo(name, DATE), content)

    write_whole(path, write)


def read_archive(path: str | Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The document and the arrays of a file; nothing in it is executed, nor anything compressed unpacked.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: one of :data:`DAMAGE`, if the file is another one or damaged.
    """
    with zipfile.ZipFile(path) as file:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise ValueError("compressed")  # a small file could fill the memory
        document = json.loads(file.read(DOCUMENT))
        names = [name for name in file.namelist() if name.endswith(".npy")]
        arrays = {
            name.removesuffix(".npy"): np.load(io.BytesIO(file.read(name)), allow_pickle=False) for name in names
        }
    return document, arrays
