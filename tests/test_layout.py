"""The list of modules in CONTRIBUTING: all of them are there, and imports point downwards in it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gradsurgery"
FOLDERS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
MODULES = FOLDERS | {path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def listed() -> dict[str, int]:
    """The entry, counted from the top, in which each module stands."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.partition("```text\ngradsurgery/\n")[2].partition("integrations/")[0]
    entries = re.split(r"^  (?=\S)", block, flags=re.MULTILINE)[1:]
    names = [set(re.findall(r"\b([a-z_]+)(?:/|\.py)", entry)) & MODULES for entry in entries]
    assert all(names)
    return {name: number for number, found in enumerate(names) for name in found}


def imported(module: str) -> set[str]:
    """The modules of the package that one of them imports, but for what only the type checker reads."""
    path = PACKAGE / module
    found = set()
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        folder = file.relative_to(PACKAGE).parts[:-1]
        tree = ast.parse(file.read_text(encoding="utf-8"))
        checks = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ]
        unread = {id(node) for check in checks for node in ast.walk(check)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level > len(folder) and id(node) not in unread:
                found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return (found & MODULES) - {module}


def test_every_module_is_listed() -> None:
    assert set(listed()) == MODULES


def test_imports_point_downwards() -> None:
    """In another entry, further down; files that share an entry may import each other."""
    places = listed()
    assert "engines" in imported("run")
    for module in places:
        upwards = {name for name in imported(module) if places[name] < places[module]}
        assert not upwards, f"{module} imports {upwards}, which stand above it"
