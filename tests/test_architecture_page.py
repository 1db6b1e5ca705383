"""The page and the picture of the architecture: every folder of the packages is there, and what is there exists."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
PACKAGES = {"gradsurgery": ROOT / "gradsurgery", "integrations": ROOT / "integrations"}
WORDS = re.compile(r"(?:[a-z_][a-z0-9_]*/)+(?:[a-z_][a-z0-9_]*\.py)?|[a-z_][a-z0-9_]*\.py")


def paths_in(text: str) -> set[str]:
    """Folders, with a slash at their end, and Python files that a text names."""
    return set(WORDS.findall(text))


def words_of_picture() -> str:
    """What stands in the picture, without the elements around it."""
    elements = ElementTree.fromstring(PICTURE).iter("{http://www.w3.org/2000/svg}text")
    return "\n".join("".join(element.itertext()) for element in elements)


def paths_of_page() -> set[str]:
    return paths_in("\n".join(re.findall(r"`([^`\n]+)`", PAGE)))


def folders() -> list[str]:
    """All packages, as paths from the repository's root."""
    found = {file.parent for package in PACKAGES.values() for file in package.rglob("__init__.py")}
    return sorted(f"{folder.relative_to(ROOT).as_posix()}/" for folder in found)


def places() -> set[str]:
    """All that may be named: folders and files, and what their paths end with."""
    files = [file.relative_to(ROOT).as_posix() for package in PACKAGES.values() for file in package.rglob("*.py")]
    return {
        path.split("/", start)[-1] for path in files + folders() for start in range(path.rstrip("/").count("/") + 1)
    }


@pytest.mark.parametrize("folder", folders())
def test_every_folder_is_named(folder: str) -> None:
    named = paths_of_page() | paths_in(words_of_picture())
    assert any(folder.endswith(f"/{name}") or folder == name for name in named), f"{folder} is named nowhere"


def test_what_the_page_names_exists() -> None:
    assert paths_of_page() - places() == set()


def test_what_the_picture_names_exists() -> None:
    named = paths_in(words_of_picture())
    assert len(named) > 20
    assert named - places() == set()


def test_names_are_told_from_words() -> None:
    assert paths_in("engines/samples/ and `run.py`, and/or Triton") == {"engines/samples/", "run.py", "and/"}
    assert {"engines/samples/", "samples/", "engines/choice.py", "choice.py", "gradsurgery/"} <= places()
    assert not {"gradsurgery/samples/", "engines/chance.py", ""} & places()


def test_picture_needs_nothing_from_outside() -> None:
    """Neither scripts, fonts nor images; and a background of its own, for pages that are dark."""
    svg = ElementTree.fromstring(PICTURE)
    assert {element.tag.rpartition("}")[2] for element in svg.iter()} <= {
        "svg", "title", "desc", "style", "defs", "marker", "path", "rect", "text", "g",
    }  # fmt: skip
    assert not re.search(r"url\((?!#)|@import|href|<!DOCTYPE|<!ENTITY", PICTURE)
    background = svg.find("{http://www.w3.org/2000/svg}rect")
    assert background is not None
    width, height = (float(side) for side in svg.attrib["viewBox"].split()[2:])
    assert (float(background.attrib["width"]), float(background.attrib["height"])) == (width - 1, height - 1)


def test_text_stays_in_the_picture() -> None:
    """Nothing begins outside; lines are broken well before the right edge, by a wide estimate of their length."""
    svg = ElementTree.fromstring(PICTURE)
    width, height = (float(side) for side in svg.attrib["viewBox"].split()[2:])
    for element in svg.findall("{http://www.w3.org/2000/svg}text"):
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        assert 0 < x < width, element.text
        assert 0 < y < height, element.text
        if "right" not in element.attrib.get("class", ""):
            assert x + 6.5 * len("".join(element.itertext())) < width, element.text
