"""Peak memory of one contender, in a process of its own.

Resident memory above what it was once everything was loaded and built, in steps that start without gradients. The
C library is told to return what is freed (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``), so that resident
memory is memory in use; a step on a small network before loads what is loaded on first use.
"""

import ctypes
import gc
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
STEPS = 2
SLOW = 2.0  # seconds after which one step has to do


def run_on_one_thread() -> None:
    """Starts this process again where it may use more; libraries read that when they are loaded."""
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_THREAD)


def megabytes(case: str, contender: str) -> float:
    """Peak memory of a step above the idle process, measured in a fresh one."""
    command = [sys.executable, str(Path(__file__)), case, contender]
    environment = os.environ | ONE_THREAD | RETURNED
    found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(found.stdout.split()[-1])


def _resident(field: str) -> int:
    """VmRSS, or VmHWM for its highest value, in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    from cases import case_of
    from contenders import builders

    warnings.simplefilter("ignore")
    case, name = case_of(sys.argv[1]), sys.argv[2]
    builders(case.small())[name]().run()
    contender = builders(case.build())[name]()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest value so far is forgotten
    before = _resident("VmRSS")
    start = time.perf_counter()
    for _ in range(STEPS):
        contender.run()
        if time.perf_counter() - start > SLOW:
            break
    print((_resident("VmHWM") - before) / 1024)


if __name__ == "__main__":
    main()
