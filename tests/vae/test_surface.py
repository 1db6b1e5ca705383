"""Public names resolve, a missing extra is named."""

import subprocess
import sys

from gradsurgery.integrations import vae


def test_public_names_resolve() -> None:
    assert len(set(vae.__all__)) == len(vae.__all__)
    assert all(getattr(vae, name).__doc__ for name in vae.__all__)


def test_missing_pandas_names_the_extra() -> None:
    script = "import sys; sys.modules['pandas'] = None; import gradsurgery.integrations.vae"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: gradsurgery.integrations.vae: pandas must be installed" in done.stderr
    assert 'pip install "gradsurgery[vae]"' in done.stderr
