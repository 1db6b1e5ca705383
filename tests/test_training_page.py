"""Every recipe of docs/training.md runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "training.md"


def recipes() -> dict[str, str]:
    """The page's code by heading."""
    found: dict[str, str] = {}
    heading = ""
    inside = False
    for line in PAGE.read_text().splitlines():
        if line == "```python":
            inside, name = True, heading
            while name in found:
                name += ", continued"
            found[name] = ""
        elif line == "```":
            inside = False
        elif inside:
            found[name] += line + "\n"
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    return found


@pytest.mark.parametrize("name", recipes())
def test_recipe_runs(name: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(recipes()[name])
    ranks = re.match(r"# torchrun --nproc-per-node=(\d)\n", recipes()[name])
    command = [sys.executable, "-W", "ignore", str(script)]
    if ranks:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks[1]}"]
        command = [*launcher, str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_a_recipe_for_everything() -> None:
    text = PAGE.read_text()
    for word in (
        "GradScaler",
        "DistributedDataParallel",
        "fully_shard",
        "torch.compile",
        "lightning",
        "accelerate",
        "transformers",
        "torch.distributed.checkpoint",
    ):
        assert any(word in code for code in recipes().values()), word
    assert "None" in text
