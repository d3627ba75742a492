"""What a benchmark runs on, and the memory that a piece of it takes."""

from __future__ import annotations

import datetime
import os
import resource
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from components.errors import IntaglioError
from components.fingerprint import code_fingerprint


def cpu_name() -> str:
    """Return the name of the processor, as the system calls it."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "an unknown CPU")


def provenance(code: str) -> dict[str, str]:
    """Describe what makes a measurement: the command of this process, its code, the day and the processor.

    Args:
        code: dotted name of the module that measures; all that it imports counts too.
    """
    # The command as a person would type it: no folder of this machine.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return {
        "command": "intaglio " + shlex.join(words),
        "code": code_fingerprint(code)[:12],
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores ({cpu_name()}), torch {version('torch').partition('+')[0]}",
    }


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
