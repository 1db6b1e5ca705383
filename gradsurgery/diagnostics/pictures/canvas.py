"""What all pictures share: matplotlib on use, one look whatever the reader's settings are, colours, notes."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .checks import Array
from .labels import cleaned, padding

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe and Ito, which colour-blind readers can tell apart, but for yellow, which is faint on white.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BETTER, WORSE = "#0072B2", "#D55E00"
WIDE_RANGE = 30.0  # the largest by the smallest value from which on an axis is logarithmic
TITLE_LINE, NOTE_LINE = 0.22, 0.16  # inches
FEW_POWERS = 1000.0  # the largest by the smallest value up to which there are ticks between powers of ten
INK, DIM, RULE = "#1d2126", "#5c6670", "#dfe3e8"

TICK = 8.5  # points
TITLE: dict[str, Any] = {"fontsize": 11, "fontweight": "bold", "parse_math": False}
NOTE: dict[str, Any] = {"fontsize": 8, "color": DIM, "parse_math": False}

# The look is ours, the fonts are the reader's, who may need another one for their script.
_OURS = ("axes.", "figure.", "xtick.", "ytick.", "grid.", "text.", "lines.", "legend.", "image.", "hatch.", "patch.")
_LOOK: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8a939c",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.labelsize": TICK,
    "ytick.labelsize": TICK,
    "xtick.color": "#8a939c",
    "ytick.color": "#8a939c",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.6,
}


@contextmanager
def new_figure(caller: str, width: float, height: float, title: str) -> Iterator[Figure]:
    """An empty figure of so many inches; what is drawn within the context has the look of all pictures.

    Args:
        caller: The function, for the error.
        width: Of the whole figure.
        height: Of the whole figure, without its title.
        title: Plain text, wrapped; empty for none.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{caller}: matplotlib must be installed, got no module of that name. "
            'Run: pip install "gradsurgery[plots]"'
        ) from error
    look: dict[Any, Any] = {name: value for name, value in matplotlib.rcParamsDefault.items() if _is_ours(name)}
    with matplotlib.rc_context({**look, **_LOOK}):
        lines = title_lines(title, width)
        figure = Figure(figsize=(width, height + TITLE_LINE * len(lines)), layout="constrained", facecolor="white")
        if lines:
            figure.suptitle("\n".join(lines), x=0.01, ha="left", **TITLE)
        yield figure
        for axes in figure.axes:
            axes.tick_params(labelsize=TICK)  # otherwise read from the reader's settings to choose the ticks
        if figure.get_layout_engine() is not None:
            with without_glyph_warnings():
                figure.draw_without_rendering()  # ticks are made by the first drawing, so it has to be ours


@contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """For measuring and writing text that stays text: matplotlib's font may lack a letter that the browser has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s)Glyph .* missing from", UserWarning)
        yield


def title_lines(title: str, width: float) -> list[str]:
    """A title for a figure of so many inches, wrapped."""
    return textwrap.wrap(cleaned(title), max(20, int(8.5 * width)))


def note_lines(sentences: Sequence[str], width: float) -> list[str]:
    """A note for a figure of so many inches, wrapped; sentences that are empty are left out."""
    return textwrap.wrap(" ".join(filter(None, sentences)), max(30, int(15 * width)))


def _is_ours(setting: str) -> bool:
    return setting.startswith(_OURS)


def add_note(figure: Figure, *sentences: str) -> None:
    """What is to be known about a picture, small and below it; the figure grows by the room that it takes."""
    width, height = (float(inches) for inches in figure.get_size_inches())
    lines = note_lines(sentences, width)
    if lines:
        figure.set_size_inches(width, height + NOTE_LINE * len(lines))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", **NOTE)


def say_instead(figure: Figure, words: str) -> None:
    """Where there is nothing to draw."""
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0.0, 0.5, words, va="center", color=DIM, parse_math=False)


def show_lines_only(axes: Axes) -> None:
    """A frame open to the top and the right, with a grid for reading off values."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y")


def name_lines(figure: Figure, lines: Mapping[str, Artist]) -> None:
    """A legend to the right of the axes, in which names are just text, also those with dollars or underscores."""
    legend = figure.legend(
        list(lines.values()), [str(index) for index in range(len(lines))], loc="outside right upper"
    )
    for text, name in zip(legend.get_texts(), lines, strict=True):
        text.set_text(name + padding(name))
        text.set_parse_math(False)


def ranges_widely(values: Array) -> bool:
    """Whether values, all above zero, differ by so much that their axis should be logarithmic."""
    known = values[~np.isnan(values)]
    return bool(known.size and known.min() > 0 and known.max() > WIDE_RANGE * known.min())


def make_logarithmic(axes: Axes, direction: Literal["x", "y"]) -> None:
    """With plain numbers on it, and more of them where there are few powers of ten: 0.5, 1, 2, 5, 10."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log") if direction == "x" else axes.set_yscale("log")
    axis = axes.xaxis if direction == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    if high < FEW_POWERS * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def count_steps(axes: Axes) -> None:
    """An axis of steps: whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
