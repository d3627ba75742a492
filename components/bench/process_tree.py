"""Run a command and measure it with all processes that it starts: how long it takes, and how much memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC, _EVERY_SECONDS = Path("/proc"), 0.2
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class MeasuredCommand:
    """What a command did.

    Attributes:
        status: its exit status.
        output: what it printed, errors included.
        seconds: how long it took.
        peak_memory_mb: of all its processes at one moment, resident, looked at five times a second. Pages that
            processes share count once for each. Where there is no /proc: of the largest process so far.
    """

    status: int
    output: str
    seconds: float
    peak_memory_mb: float


def run_measured(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> MeasuredCommand:
    """Run a command to its end.

    Args:
        command: the program and its arguments.
        folder: the current folder of the command.
        environment: all of its environment.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(_EVERY_SECONDS):
            peak[0] = max(peak[0], tree_memory_mb(process.pid))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        output, _ = process.communicate()
    except BaseException:
        process.terminate()  # `intaglio run` ends its stages and its server on SIGTERM
        process.wait()
        raise
    finally:
        ended.set()
        watcher.join()
    seconds = time.perf_counter() - start
    return MeasuredCommand(process.returncode, output, seconds, peak[0] if _PROC.is_dir() else _largest_child_mb())


def tree_memory_mb(process: int) -> float:
    """Return the resident memory in MB of a process and all that descend from it; 0 where it has ended."""
    pages, waiting = 0, [process]
    while waiting:
        folder = _PROC / str(waiting.pop())
        with suppress(OSError, IndexError):  # a process may end meanwhile
            pages += int((folder / "statm").read_text().split()[1])
            for thread in (folder / "task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]
    return pages * _PAGE / 2**20


def _largest_child_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes
