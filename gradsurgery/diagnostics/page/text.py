"""Text between tags. Whatever comes from outside passes through :func:`escaped`."""

from __future__ import annotations

import html

# What HTML has no way to write: control characters, and halves of characters, which no file can hold.
_CONTROL = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127, *range(0xD800, 0xE000)), "\ufffd")


def escaped(text: object) -> str:
    """Text that is safe between tags and in quoted attributes.

    Example:
        >>> escaped("<script>")
        '&lt;script&gt;'
    """
    return html.escape(str(text).translate(_CONTROL))
