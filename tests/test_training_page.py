"""Every recipe of docs/training.md and docs/distributed.md runs as it stands."""

import multiprocessing
import os
import re
import runpy
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
TEXT = "".join((DOCS / name).read_text() for name in ("training.md", "distributed.md"))

START = multiprocessing.get_context("forkserver")  # a new process has these modules at once
START.set_forkserver_preload(["gradsurgery", "torch.distributed.checkpoint.state_dict", "torch._dynamo", "lightning"])


def recipes() -> dict[str, str]:
    """The pages' code by heading."""
    found: dict[str, str] = {}
    heading = ""
    inside = False
    for line in TEXT.splitlines():
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


def ranks_of(code: str) -> int:
    """The number of processes that a recipe is for; 1 without the launcher."""
    found = re.match(r"# torchrun --nproc-per-node=(\d)\n", code)
    return int(found[1]) if found else 1


def perform(script: Path, rank: int, ranks: int, store: int) -> None:
    """Runs a script in a process of its own, told of its rank as ``torchrun`` does, output in a file."""
    output = os.open(script.with_name(f"output-{rank}"), os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(script.parent)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if ranks > 1:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
        told |= {"MASTER_ADDR": "localhost", "MASTER_PORT": store, "TORCHELASTIC_RUN_ID": "recipe"}
        os.environ.update({name: str(value) for name, value in told.items()})
    sys.argv = [str(script)]
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("name", recipes())
def test_recipe_runs(name: str, tmp_path: Path) -> None:
    script, ranks = tmp_path / "script.py", ranks_of(recipes()[name])
    script.write_text(recipes()[name])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        store = free.getsockname()[1]
    processes = [START.Process(target=perform, args=(script, rank, ranks, store)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        process.kill()
        process.join()
    outputs = "".join(path.read_text() for path in sorted(tmp_path.glob("output-*")))
    assert [process.exitcode for process in processes] == [0] * ranks, outputs


def test_torchrun_runs_them(tmp_path: Path) -> None:
    """What the others are told, by the launcher itself."""
    script = tmp_path / "script.py"
    script.write_text(recipes()["Data parallel"])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_a_recipe_for_everything() -> None:
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
    assert "None" in TEXT
