"""The gallery: each example is there with its command, and with a picture that loads quickly."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
SECTIONS = PAGE.split("\n## ")[1:]
EXAMPLES = sorted(file.name for file in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_has_a_section(name: str) -> None:
    (section,) = [section for section in SECTIONS if f"](../examples/{name})" in section]
    assert re.search(rf"```sh\npython examples/{name}( .*)?\n```", section)
    (picture,) = re.findall(r"!\[[^]]{30,}\]\((\S+\.png)\)", section)
    content = (ROOT / "docs" / picture).read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 150_000


def test_each_section_is_of_an_example() -> None:
    assert len(SECTIONS) == len(EXAMPLES)
