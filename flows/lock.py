"""One pipeline run at a time per project."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from components.errors import IntaglioError
from flows.settings import SCRATCH

_held: dict[Path, int] = {}


@contextmanager
def run_lock(root: Path) -> Iterator[None]:
    """Hold the project's run lock; entering it again in the same process is free.

    The kernel releases the lock with the process, however it died: a stale file is never in the way.

    Raises:
        IntaglioError: another process holds it.
    """
    path = root.resolve() / SCRATCH / "run.lock"
    if _held.get(path):
        _held[path] += 1
        try:
            yield
        finally:
            _held[path] -= 1
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _acquire(path, file.fileno())
        file.truncate(0)
        file.write(f"process {os.getpid()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        _held[path] = 1
        try:
            yield
        finally:
            del _held[path]


def _acquire(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = path.read_text().strip() or "another process"
        raise IntaglioError(
            f"{path.parent.parent}: {holder} is already running this project's pipeline; wait for it or stop it"
        ) from None
