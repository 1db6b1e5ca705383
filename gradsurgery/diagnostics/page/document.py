"""The page as a whole: its parts in order, and what each of them shows in a sentence or two."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from ...whole_file import write_whole
from .style import STYLE
from .text import escaped

# Nothing runs and nothing is fetched, whatever the page contains: styles and pictures are those written in it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Section(NamedTuple):
    """A part of the page.

    Args:
        anchor: Where links to it lead, one a page: letters, digits and hyphens.
        heading: Plain text.
        says: What it shows, in a sentence or two, as HTML; empty for nothing.
        body: What is to be seen, as HTML: of :func:`picture`, :func:`table`, or written by hand.
    """

    anchor: str
    heading: str
    says: str
    body: str


def page(
    title: str, lead: str, sections: Iterable[Section], facts: Mapping[str, object] | None = None, *, style: str = ""
) -> str:
    """An HTML document that needs nothing but a browser: no script, no file beside it, nothing from a network.

    It is the same text for the same arguments, so pages can be compared.

    Args:
        title: Plain text.
        lead: What comes first, as HTML: paragraphs, usually.
        sections: Its parts, in order.
        facts: At the foot, plain text by name: what was measured and how. Versions follow by themselves.
        style: Rules to add to the style sheet.

    Raises:
        ValueError: two sections have the same anchor.

    Example:
        >>> text = page("Two losses", "<p>They agree.</p>", [Section("pairs", "Pairs", "", "<p>none</p>")])
        >>> "<h1>Two losses</h1><p>They agree.</p>" in text, "<script" in text
        (True, False)
    """
    parts = list(sections)
    anchors = [part.anchor for part in parts]
    for anchor in anchors:
        if anchors.count(anchor) > 1:
            raise ValueError(
                f"page: `sections` must have an anchor each, got {anchor!r} twice. Links would lead to the first."
            )
    links = "".join(f'<a href="#{escaped(part.anchor)}">{escaped(part.heading)}</a>' for part in parts)
    nav = f"<nav>{links}</nav>\n" if len(parts) > 1 else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body><main><h1>{escaped(title)}</h1>{lead}{nav}{''.join(map(_part, parts))}</main>\n"
        f"<footer><dl>{_facts(facts or {})}</dl></footer></body></html>\n"
    )


def _part(part: Section) -> str:
    says = f"<p>{part.says}</p>" if part.says else ""
    return f'<section id="{escaped(part.anchor)}"><h2>{escaped(part.heading)}</h2>{says}{part.body}</section>'


def _facts(facts: Mapping[str, object]) -> str:
    from gradsurgery import __version__  # on use: the package itself imports this module

    versions = {"gradsurgery": __version__, "torch": torch.__version__, "Python": platform.python_version()}
    terms = {**facts, **versions}
    return "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in terms.items())


def save_page(path: str | Path, html: str) -> Path:
    """Writes a page and returns where it is. The file is there whole or not at all.

    Args:
        path: Where the file shall be; missing folders are made.
        html: The document, of :func:`page`.

    Example:
        >>> save_page(getfixture("tmp_path") / "report.html", page("Two losses", "", [])).name
        'report.html'
    """
    write_whole(path, lambda file: file.write_text(html, encoding="utf-8", newline="\n"))
    return Path(path)
