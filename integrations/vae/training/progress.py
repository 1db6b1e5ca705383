"""A progress bar where one is wanted, nothing elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """What the training loop tells a progress bar."""

    def set_postfix_str(self, text: str) -> None:
        """Shows a few figures after the bar."""

    def update(self) -> object:
        """Advances by one epoch."""


class Silent:
    """Stands in for a bar that nobody wants to see."""

    def set_postfix_str(self, text: str) -> None:
        """Shows nothing."""

    def update(self) -> object:
        """Advances nothing."""
        return None


def progress_bar(epochs: int, title: str, visible: bool, start: int = 0) -> AbstractContextManager[Bar]:
    """A bar on standard error, closed with the context.

    Args:
        epochs: Its length.
        title: What it is called.
        visible: Whether there is one at all; only then is tqdm loaded.
        start: How many epochs are done already.

    Raises:
        ImportError: it shall be visible, and tqdm is not installed.
    """
    if not visible:
        return nullcontext(Silent())
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            'fit: `progress` must be False without tqdm, got True. Run: pip install "gradsurgery[vae]"'
        ) from error
    bar: AbstractContextManager[Bar] = tqdm(total=epochs, initial=start, desc=title, unit="epoch", dynamic_ncols=True)
    return bar
