"""Public names resolve, the examples in docstrings run, a missing extra is named."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest
from gradsurgery.integrations import vae

MODULES = [vae.__name__, *(f"{vae.__name__}.{module.name}" for module in pkgutil.iter_modules(vae.__path__))]


def test_public_names_resolve() -> None:
    assert len(set(vae.__all__)) == len(vae.__all__)
    assert all(getattr(vae, name).__doc__ for name in vae.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str, request: pytest.FixtureRequest) -> None:
    module = importlib.import_module(name)
    names = {
        **vars(vae),
        **vars(module),
        "getfixture": request.getfixturevalue,
        "torch": importlib.import_module("torch"),
    }
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder(recurse=True).find(module, name, globs=names):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


def test_examples_exist() -> None:
    finder = doctest.DocTestFinder()
    examples = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert examples > 40


def test_missing_pandas_names_the_extra() -> None:
    script = "import sys; sys.modules['pandas'] = None; import gradsurgery.integrations.vae"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: gradsurgery.integrations.vae: pandas must be installed" in done.stderr
    assert 'pip install "gradsurgery[vae]"' in done.stderr
