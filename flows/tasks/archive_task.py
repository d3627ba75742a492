"""`intaglio task archive`: the stages of a learned task are no longer asked for, and what it left stays tracked by DVC.

    archived/NAME.dvc  -->  params.yaml: tasks to archived  -->  deletions, where they are asked for

In this order, so that a kill leaves nothing untracked. Between the first two DVC refuses the project, because two files
track the same outputs; the command run again goes on from there, and `intaglio run` takes the first step back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.config import Config
from components.params import load_config
from flows.tasks.delete_images import Deleted, delete_images
from flows.tasks.dvc_files import archive_file, check_learned, write_archive_file
from flows.tasks.params_file import ParamsText, change_params, move_entry


@dataclass(frozen=True)
class Archived:
    """What was archived.

    Attributes:
        task: its name.
        changed: whether params.yaml changed; the task may have been archived before.
        file: the file that tracks what it left, relative to the project.
        folders: of its images and those of its updates, as params.yaml holds them.
        deleted: what was deleted; None where nothing was asked for.
    """

    task: str
    changed: bool
    file: Path
    folders: tuple[str, ...]
    deleted: Deleted | None


def archive_task(root: Path, task: str, delete: bool = False) -> Archived:
    """Archive a task with its updates; run again, it finishes what a kill interrupted.

    Args:
        root: the project's folder.
        task: its name.
        delete: whether its images and what was computed of them shall go.

    Raises:
        IntaglioError: the task or an update of it was not learned yet, or something that it left is missing.
    """
    params = root / "params.yaml"
    config = load_config(params)
    check_learned(root, config, task)
    live = task in config.stream.tasks or any(name in config.stream.updates for name in config.generations(task))
    write_archive_file(root, config, task)
    if live:
        change_params(params, lambda text: _move(text, config, task))
    folders = (config.task(task).folder, *(config.updates[name].folder for name in config.generations(task)[1:]))
    deleted = delete_images(root, load_config(params), task) if delete else None
    return Archived(task, live, archive_file(root, task).relative_to(root), folders, deleted)


def _move(text: ParamsText, config: Config, task: str) -> None:
    stream = text.section("stream")
    move_entry(stream, task, "tasks", "archived")
    for name in config.generations(task)[1:]:
        move_entry(stream, name, "updates", "archived_updates")
