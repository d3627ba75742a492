"""Checks before a run: mistakes in params.yaml that can be found before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from components.config import Config
from components.errors import IntaglioError
from components.params import load_config
from flows.lock_file import LockFile

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
    return config


def _missing_folders(root: Path, config: Config) -> Iterator[str]:
    lock = LockFile.read(root)
    for name, task in config.stream.tasks.items():
        where, folder = f"{root / 'params.yaml'}: stream.tasks.{name}.folder", root / task.folder
        if lock.has_learned(name) and not folder.exists():
            continue  # what it left is enough
        if folder.is_relative_to(root / FETCHED):
            if folder.name not in config.fetch.tasks and not folder.is_dir():
                yield f"{where}: {task.folder} does not exist, and {folder.name!r} is not among fetch.tasks"
        elif folder.is_file():
            yield f"{where}: {task.folder} is a file; expected a folder with one folder of images per class"
        elif not folder.is_dir():
            yield f"{where}: {task.folder} does not exist; correct the path or remove the task"
    for name, update in config.stream.updates.items():
        if f"update@{name}" not in lock.stages and not (root / update.folder).is_dir():
            where = f"{root / 'params.yaml'}: stream.updates.{name}.folder"
            yield f"{where}: {update.folder} does not exist; correct the path or remove the update"
