"""Writes what a benchmark measured, with the device and the versions it was measured on."""

import importlib.metadata
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "gradsurgery", "torchjd")


def save(out: Path, **content: Any) -> None:
    """Writes the content as JSON; benchmarks run on one thread of a CPU."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)}
    record = {
        "device": f"cpu, {platform.machine()}, 1 thread",
        "versions": {"python": platform.python_version(), **versions},
        **content,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
