"""One pipeline run at a time per project."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from components.errors import IntaglioError
from flows.pipeline import supervisor
from flows.pipeline.crash_recovery import lives
from flows.settings import SCRATCH

_WAIT_SECONDS = 3 * supervisor.GRACE_SECONDS  # how long the processes of a dead run may take to end
_POLL_SECONDS = 0.1


@dataclass
class _Held:
    descriptor: int
    times: int = 1


_held: dict[Path, _Held] = {}


@contextmanager
def run_lock(root: Path) -> Iterator[None]:
    """Hold the project's run lock; entering it again in the same process is free.

    The kernel releases the lock with the last process that has it open: this one, and the leashes of its stages. So a
    stale file is never in the way, and after a kill nobody gets the lock before the last stage has ended.

    Raises:
        IntaglioError: another process holds it.
    """
    path = _path(root)
    if held := _held.get(path):
        held.times += 1
        try:
            yield
        finally:
            held.times -= 1
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _acquire(path, file.fileno())
        file.truncate(0)
        file.write(f"process {os.getpid()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        _held[path] = _Held(file.fileno())
        try:
            yield
        finally:
            del _held[path]


def lock_descriptors(root: Path) -> tuple[int, ...]:
    """The run lock's open file, for a child that shall hold the lock with us; none where we do not hold it."""
    held = _held.get(_path(root))
    return (held.descriptor,) if held else ()


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
        time.sleep(_POLL_SECONDS)  # its owner is dead, and its stages are about to end
