"""What can be known to be wrong before anything is started."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from components.config import Config, load_config
from components.errors import IntaglioError

FETCHED = Path("data/raw")  # what the stage `fetch` writes, one folder per task


def preflight(root: Path) -> Config:
    """Read params.yaml and check that every task's images are there, or will be fetched.

    Raises:
        IntaglioError: one line per mistake.
    """
    config = load_config(root / "params.yaml")
    problems = list(_missing_folders(root, config))
    if problems:
        raise IntaglioError("\n".join(problems))
    _forget_dead_processes(root)
    return config


def _missing_folders(root: Path, config: Config) -> Iterator[str]:
    for name, task in config.stream.tasks.items():
        where, folder = f"{root / 'params.yaml'}: stream.tasks.{name}.folder", root / task.folder
        if folder.is_relative_to(root / FETCHED):
            if folder.name not in config.fetch.tasks and not folder.is_dir():
                yield f"{where}: {task.folder} does not exist, and {folder.name!r} is not among fetch.tasks"
        elif folder.is_file():
            yield f"{where}: {task.folder} is a file; expected a folder with one folder of images per class"
        elif not folder.is_dir():
            yield f"{where}: {task.folder} does not exist; correct the path or remove the task"


def _forget_dead_processes(root: Path) -> None:
    """Remove DVC's table of readers and writers if nobody in it lives any more, or a kill tore it.

    DVC does so by itself, except where the dead process was never reaped (a container without an init), or where the
    file is torn: then it would refuse to start until a person removes the file.
    """
    table = root / ".dvc" / "tmp" / "rwlock"
    try:
        entries = json.loads(table.read_text())
        writers = list(entries.get("write", {}).values())
        readers = [reader for group in entries.get("read", {}).values() for reader in group]
        holders = {int(entry["pid"]) for entry in [*writers, *readers] if entry}
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError):
        holders = set()
    if not any(_lives(pid) for pid in holders):
        table.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # no /proc here
        return True
