"""Names as a picture writes them: one line each, not too long, and still distinct."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from ..wording import shortened

_SPACES, _INVISIBLE, _IMPOSSIBLE = ("Zs", "Zl", "Zp"), ("Cf",), ("Cc", "Cs", "Cn", "Co")


def cleaned(text: str) -> str:
    r"""Text on one line, without what a drawing cannot hold or what would turn its neighbours around.

    Example:
        >>> cleaned("two\nlines" + chr(0))
        'two lines�'
    """
    letters = (" " if letter in "\t\n\v\f\r" else _harmless(letter) for letter in text)
    return " ".join("".join(letters).split())


def _harmless(letter: str) -> str:
    kind = unicodedata.category(letter)
    return " " if kind in _SPACES else "" if kind in _INVISIBLE else "\ufffd" if kind in _IMPOSSIBLE else letter


def labels(names: Sequence[str], length: int) -> list[str]:
    """Names of at most about ``length`` narrow letters; those that are alike once shortened get their number.

    Example:
        >>> labels(["encoder.layers.10.attention.weight", "encoder.layers.11.attention.weight", "b"], 16)
        ['1: encoder.…ight', '2: encoder.…ight', 'b']
    """
    whole = [cleaned(name) for name in names]
    short = [shortened(name, _room(name, length)) for name in whole]
    times = Counter(short)
    return [
        label if times[label] == 1 else f"{index + 1}: {shortened(name, _room(name, max(6, length - 3)))}"
        for index, (name, label) in enumerate(zip(whole, short, strict=True))
    ]


def _room(text: str, length: int) -> int:
    """Half as many letters where they are twice as wide, as in Chinese."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return length if 3 * wide < len(text) else max(6, length // 2)


def pair_labels(names: Sequence[str], pairs: Sequence[tuple[int, int]], length: int) -> list[str]:
    """What pairs of losses are called.

    Example:
        >>> pair_labels(["depth", "normals"], [(0, 1)], 14)
        ['depth – normals']
    """
    short = labels(names, length)
    return [f"{short[first]} – {short[second]}" for first, second in pairs]


def padding(text: str) -> str:
    """Spaces that make up for wide letters, which matplotlib takes for narrow ones where its font lacks them.

    Example:
        >>> len(padding("depth")), len(padding("深度"))
        (0, 3)
    """
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return "\u00a0" * round(1.3 * wide)
