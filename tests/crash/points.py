"""Named points of a stage's life at which it can be killed, or its disk fail: patched in a child process only.

A fault is "KIND@POINT:N": the N-th time that the process comes to POINT, KIND happens: `kill` (SIGKILL), or the name of
an errno such as ENOSPC.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

POINTS = (
    "begin",  # the stage is about to start
    "create",  # before a temporary file or folder is made
    "write",  # before a file's content is written
    "write.half",  # half of the content is there
    "sync",  # before content is forced to the disk
    "rename",  # before a temporary takes its place
    "renamed",  # after it: for a folder that is replaced, also between the old one's leaving and the new one's coming
    "remove",  # before a folder is removed
    "end",  # everything is written
)


STRUCK = "KILLED ON PURPOSE"  # the last line of a process that comes to the point


def kill_here() -> None:
    """Kill this process, after a line that tells it: a run that never came to the point was not killed."""
    os.write(2, f"{STRUCK}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


class Faults:
    """Counts how often each point is reached below the current folder, and strikes at one of them."""

    def __init__(self, fault: str = "") -> None:
        kind, _, where = fault.partition("@")
        self.kind = kind
        self.point, _, number = where.partition(":")
        self.number = int(number or 1)
        self.reached = dict.fromkeys(POINTS, 0)
        self._root = Path.cwd()

    def at(self, point: str, path: object = None) -> None:
        if path is not None and not Path(str(path)).absolute().is_relative_to(self._root):
            return
        self.reached[point] += 1
        if point == self.point and self.reached[point] == self.number:
            self._strike(path)

    def _strike(self, path: object) -> None:
        if self.kind == "kill":
            kill_here()
        number = getattr(errno, self.kind)
        raise OSError(number, os.strerror(number), None if path is None else str(path))

    def install(self) -> None:
        """Patch what the components write with."""
        self._before(tempfile, "mkstemp", "create", key="dir")
        self._before(tempfile, "mkdtemp", "create", key="dir")
        self._before(shutil, "rmtree", "remove", position=0)
        self._before(os, "fsync", "sync")
        self._halves(Path, "write_bytes", lambda self, data, *_: data[: len(data) // 2])
        self._halves(Path, "write_text", lambda self, data, *_: data[: len(data) // 2])
        self._table()
        replace = Path.replace

        def renaming(path: Path, target: Path) -> Path:
            self.at("rename", target)
            result = replace(path, target)
            self.at("renamed", target)
            return result

        Path.replace = renaming  # type: ignore[method-assign]

    def _before(self, owner: Any, name: str, point: str, position: int | None = None, key: str = "") -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def patched(*arguments: Any, **options: Any) -> Any:
            self.at(point, options.get(key) if key else None if position is None else arguments[position])
            return original(*arguments, **options)

        setattr(owner, name, patched)

    def _halves(self, owner: Any, name: str, half: Callable[..., Any]) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def patched(path: Path, *arguments: Any, **options: Any) -> Any:
            self.at("write", path)
            if self.point == "write.half":
                original(path, half(path, *arguments), **options)
            self.at("write.half", path)
            return original(path, *arguments, **options)

        setattr(owner, name, patched)

    def _table(self) -> None:
        original = pd.DataFrame.to_parquet

        def patched(table: pd.DataFrame, path: Path, **options: Any) -> Any:
            self.at("write", path)
            original(table, path, **options)
            if self.point == "write.half":
                os.truncate(path, path.stat().st_size // 2)
            self.at("write.half", path)
            return original(table, path, **options)

        pd.DataFrame.to_parquet = patched  # type: ignore[assignment,method-assign]


DVC_POINTS = (
    "lock",  # before DVC rewrites dvc.lock
    "lock.empty",  # it is open and empty
    "lock.half",  # half of it is written
    "locked",  # it is whole
    "holders.half",  # half of DVC's table of readers and writers is written
    "run-cache",  # before the run is remembered
)


def install_in_dvc(fault: str) -> None:
    """Kill a DVC process when it comes to one of DVC_POINTS for the N-th time: "kill@POINT:N"."""
    import dvc.rwlock
    import dvc.utils.serialize._common as common
    from dvc.stage.cache import StageCache

    if not fault:
        return
    point, _, number = fault.partition("@")[2].partition(":")
    reached = dict.fromkeys(DVC_POINTS, 0)

    def at(here: str, tear: Callable[[], object] = lambda: None) -> None:
        reached[here] += 1
        if (here, reached[here]) == (point, int(number)):
            tear()
            kill_here()

    dump_data, dump, save = common._dump_data, dvc.rwlock.json.dump, StageCache.save

    def dump_lock(path: str, data: Any, dumper: Any, **options: Any) -> None:
        if not str(path).endswith("dvc.lock"):
            dump_data(path, data, dumper=dumper, **options)
            return
        text = io.StringIO()
        dumper(data, text)
        at("lock")
        at("lock.empty", lambda: Path(path).write_text(""))
        at("lock.half", lambda: Path(path).write_text(text.getvalue()[: len(text.getvalue()) // 2]))
        dump_data(path, data, dumper=dumper, **options)
        at("locked")

    def dump_holders(holders: Any, file: Any) -> None:
        text = json.dumps(holders)
        at("holders.half", lambda: (file.write(text[: len(text) // 2]), file.flush()))
        dump(holders, file)

    def save_run(cache: Any, stage: Any) -> None:
        at("run-cache")
        save(cache, stage)

    common._dump_data = dump_lock
    dvc.rwlock.json = SimpleNamespace(**{**vars(json), "dump": dump_holders})
    StageCache.save = save_run
