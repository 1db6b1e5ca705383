"""The pages of docs/: their code runs as it stands, they name everything that is public, and they can be built."""

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import textwrap
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import gradsurgery as gs
import gradsurgery.comparison
import gradsurgery.engines
import gradsurgery.kernels
import gradsurgery.solvers
from gradsurgery.integrations import vae

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = {"training.md", "distributed.md", "tables.md"}  # tests of their own run these
PAGES = [path for path in sorted(DOCS.glob("*.md")) if path.name not in ELSEWHERE]
PAGES += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

# A block that is shown, or one that is not: <!-- python ... -->, for what a page takes for granted.
BLOCK = re.compile(
    r"^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$|^<!-- python\n(?P<hidden>.*?)^-->$", re.DOTALL | re.MULTILINE
)
KINDS = {"python", "diff", "sh", "text", "json", "{toctree}", "{eval-rst}"}


def code_of(text: str) -> list[tuple[int, str]]:
    """What a page has the reader run, in order, with the line it starts at; of a diff, what it leads to."""
    found = []
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        if block["hidden"] is not None:
            found.append((line, block["hidden"]))
        elif block["kind"] == "python":
            found.append((line, block["code"]))
        elif block["kind"] == "diff":
            found.append((line, applied(block["code"])))
    return found


def applied(diff: str) -> str:
    """The lines that a diff keeps or adds, without what marks them."""
    kept = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    return textwrap.dedent("\n".join(kept)) + "\n"


def run(page: Path) -> None:
    """Runs the code of a page, all of it in one namespace."""
    names: dict[str, Any] = {"__name__": "page"}
    for line, code in code_of(page.read_text()):
        exec(compile("\n" * line + code, page.name, "exec", dont_inherit=True), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        run(page)


def test_code_that_is_wrong_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for start, end in (("```python\n", "```"), ("```diff\n+ ", "```"), ("<!-- python\n", "-->")):
        page.write_text(f"{start}assert False\n{end}\n")
        with pytest.raises(AssertionError):
            run(page)


def test_a_diff_is_applied() -> None:
    diff = "- x = 1\n+ x = 2\n\n  for _ in range(3):\n-     x -= 1\n+     x += 1\n"
    names: dict[str, Any] = {}
    exec(applied(diff), names)
    assert names["x"] == 5


@pytest.mark.parametrize("page", [*PAGES, *(DOCS / name for name in sorted(ELSEWHERE))], ids=lambda page: page.name)
def test_no_code_hides_behind_another_name(page: Path) -> None:
    text = page.read_text()
    kinds = re.findall(r"^```(\S*)", text, flags=re.MULTILINE)
    assert set(kinds[::2]) <= KINDS
    assert set(kinds[1::2]) <= {""}
    assert "~~~" not in text
    assert text.count("<!-- python") <= 1  # what is run and not shown stays an exception


def test_every_page_is_in_the_contents() -> None:
    index = (DOCS / "index.md").read_text()
    listed = [
        line
        for block in BLOCK.finditer(index)
        if block["kind"] == "{toctree}"
        for line in block["code"].splitlines()
        if line and not line.startswith(":")
    ]
    pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(line for line in listed if "../" not in line) == sorted({*pages} - {"index"})


def test_guarantees_are_those_of_the_contracts() -> None:
    generator = DOCS / "generate_guarantees.py"
    specification = importlib.util.spec_from_file_location("generate_guarantees", generator)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    page = (DOCS / "guarantees.md").read_text()
    assert page == module.page(), "Run: python docs/generate_guarantees.py"
    for cls, contract in (gs.aggregators.CONTRACTS | gs.scalarizers.CONTRACTS).items():
        rows = [line for line in page.splitlines() if line.startswith(f"| `{cls.__name__}`")]
        assert any(row.count("✓") == len(contract.guarantees) for row in rows), cls
    with pytest.raises(ValueError, match="must explain all guarantees"):
        module.table({gs.Sum: frozenset({"unheard_of"})}, module.METHOD_WORDS)


@cache
def documented() -> list[Any]:
    """What the pages of the reference describe."""
    found: list[Any] = []
    for page in sorted((DOCS / "api").glob("*.md")):
        module = ""
        for line in page.read_text().splitlines():
            if line.startswith(".. currentmodule:: "):
                module = line.split(":: ")[1]
            elif named := re.match(r"\.\. (?:auto(?:class|function|exception)|py:data):: (\w+)", line):
                found.append(getattr(importlib.import_module(module), named[1]))
    return found


PUBLIC = [
    *(gs, gs.aggregators, gs.aggregators.contrib, gs.scalarizers, vae),
    *(gradsurgery.engines, gradsurgery.solvers, gradsurgery.kernels),
    *(
        gs.diagnostics,
        gs.diagnostics.similarity,
        gs.diagnostics.pictures,
        gs.diagnostics.page,
        gradsurgery.comparison,
    ),
    *(importlib.import_module(f"gradsurgery.integrations.{name}") for name in ("lightning", "accelerate")),
    importlib.import_module("gradsurgery.integrations.transformers"),
]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_every_public_name_is_described_once(module: ModuleType) -> None:
    described = Counter(id(value) for value in documented())
    for name in module.__all__:
        value = getattr(module, name)
        if not inspect.ismodule(value):
            assert described[id(value)] == 1, f"{module.__name__}.{name} is described {described[id(value)]} times"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "-c", str(DOCS), "-d", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


def test_pages_are_built_without_warnings(site: Path) -> None:
    assert (site / "docs" / "index.html").exists()
    assert 'url=docs/index.html"' in (site / "index.html").read_text()


def test_pages_need_no_network(site: Path) -> None:
    """All scripts, styles and pictures are files beside the pages, the one that draws formulas too."""
    pages = [*(site / "docs").rglob("*.html")]
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        for target in re.findall(r"<(?:script|img)\b[^>]*\bsrc=\"([^\"?#]+)|<link\b[^>]*\bhref=\"([^\"?#]+)", text):
            assert (page.parent / "".join(target)).exists(), f"{page.name}: {target}"
    methods = (site / "docs" / "api" / "methods.html").read_text()
    assert 'src="../../_static/tex-svg.js' in methods
    assert r"\arg\min" in methods
