"""What users touch first: names, README, docstrings, examples, the wheel."""

import ast
import doctest
import importlib
import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import gradsurgery as gs
import gradsurgery.integrations
from gradsurgery.integrations import vae

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    {
        module.name
        for package in (gs, gradsurgery.integrations)
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        if not module.name.endswith("__main__")
        and ("triton" not in module.name or importlib.util.find_spec("triton"))  # an optional dependency
    }
)


def test_all_resolves_and_is_small() -> None:
    assert len(gs.__all__) == len(set(gs.__all__)) <= 40
    for name in gs.__all__:
        assert hasattr(gs, name), name
    for name in gs.aggregators.__all__:
        assert hasattr(gs.aggregators, name), name


def test_the_modules_are_found() -> None:
    assert "gradsurgery.optimizer" in MODULES
    assert "gradsurgery.integrations.vae.tables.schema" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str, request: pytest.FixtureRequest) -> None:
    """Examples see the names of their module and of the package a user imports from."""
    module = importlib.import_module(name)
    package = vae if name.startswith(vae.__name__) else gs
    public = {key: getattr(package, key) for key in package.__all__}
    tools = {"torch": torch, "nn": torch.nn, "gs": gs, "getfixture": request.getfixturevalue}
    assert doctest.testmod(module, extraglobs={**public, **tools, **vars(module)}).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    tests = [test for name in MODULES for test in finder.find(importlib.import_module(name))]
    assert sum(len(test.examples) for test in tests) > 80


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, name
    public = getattr(module, "__all__", [key for key in vars(module) if not key.startswith("_")])
    for key in public:
        value = getattr(module, key)
        if isinstance(value, type) and value.__module__ == name:
            assert value.__doc__, f"{name}.{key}"


def blocks_of(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_readme_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text()
    blocks = blocks_of(text)
    assert len(blocks) >= 3
    names: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert "[ 6., -2.]" in (printed := capsys.readouterr().out)
    assert "[0.4000, 0.4000]" in printed


def test_readme_links_and_pictures_exist() -> None:
    pages = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md")
    for page in (*pages, *(ROOT / "docs").glob("*.md")):
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        targets = re.findall(r"\]\(([^)#\s]+)\)", prose)
        for target in targets:
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def table_rows() -> dict[str, list[str]]:
    """The cells of the README's tables of methods under the names in their first cell."""
    text, _, _ = (ROOT / "README.md").read_text().partition("| scalarizer |")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {name: row for row in cells for name in re.findall(r"`(\w+)", row[0])}


WORDS = {
    "no harm": "non_conflicting",
    "Pareto": "stationary",
    "linear": "linear_under_scaling",
    "mean": "equals_mean_without_conflict",
}


@pytest.mark.parametrize("cls", gs.aggregators.CONTRACTS)
def test_readme_promises_what_the_method_does(cls: type[gs.Aggregator]) -> None:
    row = table_rows()[cls.__name__]
    assert len(row) == 5
    promised = set(re.split(r"[,;] ", row[3]))
    for word, flag in WORDS.items():
        assert (word in promised) == (flag in gs.aggregators.CONTRACTS[cls].guarantees), word
    homogeneous = "depend on the scale" not in row[3] and "of degree" not in row[3]
    assert homogeneous == ("scale_equivariant" in gs.aggregators.CONTRACTS[cls].guarantees)


def test_every_scalarizer_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    listed = set(re.findall(r"`(\w+)`", text[text.index("| scalarizer |") :]))
    assert {cls.__name__ for cls in gs.scalarizers.CONTRACTS} <= listed


def test_importing_changes_nothing() -> None:
    """No patching of torch, no touch of the random state, no optional dependency."""
    code = """
import sys, torch
modules = set(sys.modules)
before = dict(vars(torch.optim.Optimizer)), torch.get_rng_state(), torch.get_num_threads()
import gradsurgery
assert dict(vars(torch.optim.Optimizer)) == before[0]
assert torch.equal(torch.get_rng_state(), before[1])
assert torch.get_num_threads() == before[2]
assert not {"pandas", "matplotlib", "scipy", "tqdm"} & (set(sys.modules) - modules)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_validation_is_not_by_assert() -> None:
    for folder in ("gradsurgery", "integrations"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            assert not any(isinstance(node, ast.Assert) for node in nodes), path


def test_imports_point_one_way() -> None:
    """integrations -> optimizer, block -> engines -> aggregators -> solvers -> kernels, distributed, never back."""
    below = {
        "distributed": set(),
        "kernels": set(),
        "solvers": {"kernels"},
        "aggregators": {"distributed", "generators", "kernels", "learning", "solvers", "state"},
        "scalarizers": {"learning", "state"},
        "engines": {"distributed", "eager", "kernels", "losses", "sharing"},
    }
    for layer, allowed in below.items():
        folder = ROOT / "gradsurgery" / layer
        for path in folder.rglob("*.py"):
            outside = len(path.relative_to(folder).parts) + 1  # the dots that lead out of the layer
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.level == outside:
                    found = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                    assert set(found) <= allowed, f"{path.name} imports {found}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for name in ("gradsurgery", "integrations"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_contains_everything_in_its_place(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, prefix in (("gradsurgery", "gradsurgery"), ("integrations", "gradsurgery/integrations")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}" in names
    assert "gradsurgery/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"gradsurgery", f"gradsurgery-{gs.__version__}.dist-info"}


def test_wheel_imports_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import gradsurgery, gradsurgery.integrations.vae as vae\n"
        f"assert vae.__file__.startswith({str(tmp_path)!r}), vae.__file__\n"
        "import importlib.util; assert importlib.util.find_spec('integrations') is None\n"
    )
    command = [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_version_is_stated_once() -> None:
    assert f'version = "{gs.__version__}"' in (ROOT / "pyproject.toml").read_text()
