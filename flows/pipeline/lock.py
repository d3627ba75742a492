"""One pipeline run at a time per project."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from components.errors import IntaglioError
from flows.pipeline import supervisor
from flows.pipeline.crash_recovery import lives
from flows.settings import SCRATCH

_WAIT_SECONDS = 3 * supervisor.GRACE_SECONDS  # how long the processes of a dead run may take to end
_POLL_SECONDS = 0.1

_held: dict[Path, int] = {}  # lock file -> descriptor


@contextmanager
def run_lock(root: Path) -> Iterator[None]:
    """Hold the project's run lock.

    The kernel releases the lock with the last process that has it open: this one, and the supervisors of its stages.
    So a stale file is never in the way, and after a kill the lock stays taken until the last stage has ended.

    Raises:
        IntaglioError: it is held already.
    """
    path = _path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _acquire(path, file.fileno())
        file.truncate(0)
        file.write(f"process {os.getpid()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        _held[path] = file.fileno()
        try:
            yield
        finally:
            del _held[path]


def lock_descriptors(root: Path) -> tuple[int, ...]:
    """Return the run lock's open file, for a child that shall hold the lock too; empty if it is not held here."""
    path = _path(root)
    return (_held[path],) if path in _held else ()


def _path(root: Path) -> Path:
    return root.resolve() / SCRATCH / "run.lock"


def _acquire(path: Path, descriptor: int) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = path.read_text().strip()
            found = re.match(r"process (\d+) ", holder)
            if (found and lives(int(found[1]))) or time.monotonic() > deadline:
                raise IntaglioError(
                    f"{path.parent.parent}: {holder or 'another process'} is already running this project's pipeline; "
                    "wait for it or stop it"
                ) from None
        time.sleep(_POLL_SECONDS)  # the process that took the lock is dead, and its stages are about to end
