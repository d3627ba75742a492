"""What a benchmark runs on, and the memory that a piece of it takes."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from components.errors import IntaglioError


def cpu_name() -> str:
    """Return the name of the processor, as the system calls it."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "an unknown CPU")


def peak_memory_of(module: str, *arguments: object) -> float:
    """Measure the largest resident set in MB of a fresh process that ends with `print_peak_memory`.

    The process is `python -m module arguments`.

    Raises:
        IntaglioError: the process failed.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise IntaglioError(f"{' '.join(command)}: failed ({done.returncode})\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def print_peak_memory() -> None:
    """Print the largest resident set of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a process inherits the peak of the one that started it.
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        print(int(peaks[0]) / 1024)
    else:  # macOS counts bytes
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
