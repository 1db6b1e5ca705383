"""Files that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then renames it to ``path``.

    A reader never sees half a file, and an older file survives a failed write.

    Args:
        path: Where the file shall be; missing folders are made.
        write: Is called with the temporary path, which has the same suffix.

    Raises:
        IsADirectoryError: ``path`` is a folder.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> write_whole(folder / "new" / "numbers.txt", lambda path: path.write_text("1 2 3"))
        >>> [path.name for path in (folder / "new").iterdir()]
        ['numbers.txt']
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"`path` must be a file, got the folder {str(target)!r}. Add a name to it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid4().hex}{target.suffix}")
    try:
        write(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
