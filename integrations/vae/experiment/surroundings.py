"""What numbers may depend on beside the settings: the machine and the versions of libraries."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("gradsurgery", "torch", "numpy", "pandas", "scipy")


def describe_surroundings() -> dict[str, Any]:
    """Device, threads, processor and versions; nothing that tells whose machine it is.

    Example:
        >>> sorted(describe_surroundings())
        ['device', 'machine', 'threads', 'versions']
    """
    return {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The name of the processor, where the system tells it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
