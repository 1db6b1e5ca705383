"""A page needs nothing else, shows what it was given as text, and is the same every time."""

import base64
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from html_reader import Page
from matplotlib.figure import Figure

import gradsurgery as gs
from gradsurgery.diagnostics.page import Section, colours, escaped, page, picture, save_page, table


def drawn() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0], label="a & b")
    figure.suptitle("nodes & edges")
    return figure


def whole() -> str:
    sections = [
        Section("pairs", "Pairs & <more>", "What it <em>shows</em>.", picture(drawn(), 'a "line"')),
        Section("layers", "Layers", "", table(["layer", "cosine"], [["trunk.0", -0.25]])),
    ]
    return page("Do <x> & y conflict?", "<p>They do.</p>", sections, {"batches": 16, "name": "<b>"})


def test_a_page_is_whole_and_needs_nothing_else() -> None:
    text = whole()
    reader = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "object", "b"} & {*reader.tags}
    assert [value for value in reader.values("src") if not value.startswith("data:image/svg+xml;base64,")] == []
    assert reader.values("href") == [f"#{anchor}" for anchor in reader.values("id")] == ["#pairs", "#layers"]
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in reader.values("content")
    assert not re.findall(r"https?://|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_titles_headings_and_facts_are_text_and_the_rest_is_html() -> None:
    reader = Page(whole())
    said = " ".join(reader.text)
    assert "Do <x> & y conflict?" in said
    assert said.count("Pairs & <more>") == 2  # as a link, and as the heading
    assert "em" in reader.tags
    facts = dict(zip(reader.text[-15::2], reader.text[-14::2], strict=False))
    assert {"<b>", "16", gs.__version__, torch.__version__} <= {*facts, *facts.values()}


def test_a_page_is_the_same_every_time() -> None:
    assert whole() == whole()


def test_one_section_has_no_links() -> None:
    assert "nav" not in Page(page("t", "", [Section("a", "A", "", "")])).tags
    assert "nav" in Page(whole()).tags


def test_an_anchor_leads_to_one_place() -> None:
    with pytest.raises(ValueError, match="`sections` must have an anchor each, got 'a' twice"):
        page("t", "", [Section("a", "A", "", ""), Section("a", "B", "", "")])


def test_rules_can_be_added() -> None:
    text = page("t", "", [], style=colours("--x: #fff;", "--x: #000;"))
    assert ":root {--x: #fff;}" in text
    assert text.index("--page") < text.index("--x: #fff")
    assert re.search(r"@media screen and \(prefers-color-scheme: dark\) \{ :root \{--x: #000;\} \}", text)


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", '<a href="x">', "it's"])
def test_escaped_text_can_be_written_and_is_read_back(text: str, tmp_path: Path) -> None:
    safe = escaped(text)
    (tmp_path / "page.html").write_text(f'<p title="{safe}">{safe}</p>', encoding="utf-8")
    reader = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    expected = text.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert reader.values("title") == ["".join(reader.text)] == [expected]


# Tables


def test_columns_of_numbers_stand_to_the_right() -> None:
    rows = [
        ["depth", -0.25, "87%", "3.1 ± .2", "0.3 ms", "−.42", None, "conv1", "2 of 3", 12],
        ["2", float("nan"), "<0.1%", "–", "12,000×", "+3", 1, "3", "x", True],
        ["3", 1.5, "in noise", "", "1.5e-3", "12", 2, "conv2", "", False],
    ]
    reader = Page(table([f"column {index}" for index in range(10)], rows))
    kinds = [("class", "number") in attributes for attributes in _cells(table([*"abcdefghij"], rows))]
    numeric = [False, True, True, True, True, True, True, False, False, False]
    assert kinds == 4 * numeric
    said = "".join(reader.text)
    for written in ("−0.25", "87%", "3.1 ± .2", "0.3 ms", "12,000×", "True", "in noise"):
        assert written in said
    assert "nan" not in said
    assert "None" not in said


def _cells(text: str) -> list[list[tuple[str, str | None]]]:
    found: list[list[tuple[str, str | None]]] = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attrs: found.append(attrs) if tag in ("td", "th") else None  # type: ignore
    reader.feed(text)
    return found


def test_cells_are_text() -> None:
    reader = Page(table(["<i>", "n"], [["<b>", "</td>"]]))
    assert not {"i", "b"} & {*reader.tags}
    assert {"<i>", "<b>", "</td>"} <= {*reader.text}
    assert reader.values("scope") == ["row"]


def test_long_headings_may_be_broken_where_names_are() -> None:
    text = table(["loss", "semantic_segmentation.f1"], [["a", 1]])
    assert ">semantic_<wbr>segmentation.<wbr>f1</th>" in text
    assert "semantic_segmentation.f1" in "".join(Page(text).text)


def test_rows_fit_the_header() -> None:
    with pytest.raises(ValueError, match="`rows` must have 2 cells each, as the header, got 3 in row 1"):
        table(["a", "b"], [[1, 2], [1, 2, 3]])


# Pictures


def test_a_picture_is_an_svg_on_white() -> None:
    text = picture(drawn(), 'a "line" <x>')
    reader = Page(text)
    (source,) = reader.values("src")
    root = ElementTree.fromstring(base64.b64decode(source.split(",", 1)[1]))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    (background,) = root.findall(".//*[@id='patch_1']/*")
    assert "fill: #ffffff" in background.get("style", "")
    assert "nodes & edges" in "".join(root.itertext())
    assert (reader.values("width"), reader.values("height")) == (["192"], ["96"])
    assert reader.values("alt") == ['a "line" <x>']
    assert "#fff" in re.findall(r"\.picture img \{[^}]*\}", page("t", "", []))[0]


def test_coordinates_are_short_and_the_rest_is_untouched() -> None:
    figure = Figure()
    figure.text(0.5, 0.5, 'a d="0.123456789"', parse_math=False)
    (source,) = Page(picture(figure, "a number")).values("src")
    svg = base64.b64decode(source.split(",", 1)[1]).decode()
    assert '>a d="0.123456789"</text>' in svg
    assert not re.search(r'<path[^<>]* d="[^"]*\.\d{3}', svg)


@pytest.mark.parametrize("alt", ["", " "])
def test_a_picture_is_described(alt: str) -> None:
    with pytest.raises(ValueError, match="picture: `alt` must be a description in words"):
        picture(drawn(), alt)


# Files


def test_a_page_is_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert save_page(str(path), whole()) == path
    assert path.read_bytes() == whole().encode()
    with pytest.raises(UnicodeEncodeError):
        save_page(path, "\ud800")
    assert path.read_bytes() == whole().encode()
    assert [own.name for own in path.parent.iterdir()] == ["report.html"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="`path` must be a file, got the folder"):
        save_page(tmp_path, "<html></html>")
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers() -> None:
    assert table(["a", "b"], [["x", np.float32(3.14159)], ["y", np.int64(2)]]) == table(
        ["a", "b"], [["x", 3.14159], ["y", 2]]
    )


def test_a_name_may_be_as_long_as_files_are_named(tmp_path: Path) -> None:
    assert save_page(tmp_path / f"{'n' * 250}.html", "x").read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 1
