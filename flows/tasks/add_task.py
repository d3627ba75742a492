"""`intaglio task add`: a folder of images becomes the next task of params.yaml."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml.comments import CommentedMap

from components.config import BASE, TASK_NAME, UNKNOWN, Config, Stream, Task, Update
from components.data.image_folder import ImageFolder, read_image_folder
from components.errors import IntaglioError
from components.params import load_config
from flows.tasks.dvc_files import archive_file, learned_tasks
from flows.tasks.params_file import ParamsText, change_params, entries, task_entry
from flows.tasks.preflight import FETCHED


@dataclass(frozen=True)
class AddedTask:
    """What was appended.

    Attributes:
        name: of the task.
        folder: as it stands in params.yaml.
        previous: the task before it.
        contents: what was found in the folder.
        dropped: learned tasks that a new stream left behind.
    """

    name: str
    folder: str
    previous: str
    contents: ImageFolder
    dropped: tuple[str, ...] = ()


def add_task(
    root: Path,
    name: str,
    folder: Path,
    params: Path | None = None,
    first: bool = False,
    drop_learned: bool = False,
    note: str = "",
    licence: str = "",
) -> AddedTask:
    """Append a task to params.yaml; comments and layout of the file stay.

    Args:
        root: the project's folder.
        name: the task's name.
        folder: read by the rules of components/data/image_folder.py, so that `ingest` will accept it too.
        params: the file to change; default `root/params.yaml`.
        first: begin a new stream with it, in place of all tasks that the file names.
        drop_learned: whether the new stream may leave learned tasks behind.
        note: a remark, for the task's card.
        licence: of the images, likewise.

    Raises:
        IntaglioError: the name or the folder cannot be used; nothing was written.
    """
    params = params or root / "params.yaml"
    config = load_config(params, empty=True)
    first = first or not config.chain
    folder = folder.resolve()
    check_name(root, params, config, name, first)
    check_folder(root, Stream(tasks={}) if first else config.stream, folder)
    contents = read_image_folder(folder)
    dropped = learned_tasks(root, config) if first else ()
    if dropped and not drop_learned:
        raise IntaglioError(
            f"--new-stream would drop what was learned of {', '.join(dropped)}: the next version would not know them; "
            f"repeat the command with --drop-learned, or leave --new-stream out"
        )
    previous = BASE if first or not config.chain else config.chain[-1]
    task = Task(folder=as_recorded(root, folder), previous=previous, note=note, licence=licence)
    change_params(params, lambda text: _begin(text, name, task, dropped) if first else append(text, name, task))
    if first and params == root / "params.yaml":
        for archived in config.stream.archived:
            archive_file(root, archived).unlink(missing_ok=True)
    return AddedTask(name, task.folder, previous, contents, dropped)


def append(params: ParamsText, name: str, task: Task) -> None:
    """Append an entry to the tasks of a params.yaml.

    Args:
        params: its text.
        name: of the task.
        task: its settings.
    """
    stream = params.section("stream")
    entries(stream, "tasks")[name] = task_entry(task)
    if name in (stream.get("dropped") or ()):
        _set_dropped(stream, [other for other in stream["dropped"] if other != name])


def _begin(params: ParamsText, name: str, task: Task, dropped: Collection[str]) -> None:
    """Begin a new stream with a task.

    Args:
        params: text of the file.
        name: of the task.
        task: its settings.
        dropped: names of the learned tasks that are left behind.
    """
    stream, embedding = params.section("stream"), params.section("embedding")
    for key in ("archived", "updates", "archived_updates"):
        stream.pop(key, None)
    stream["tasks"], params.section("fetch")["tasks"] = CommentedMap(), []
    if embedding.get("shared") != BASE:
        embedding["shared"] = name
    _set_dropped(stream, list(dict.fromkeys([*(stream.get("dropped") or ()), *dropped])))
    append(params, name, task)


def _set_dropped(stream: CommentedMap, names: list[str]) -> None:
    if names:
        stream["dropped"] = names
    else:
        stream.pop("dropped", None)


def as_recorded(root: Path, folder: Path) -> str:
    """Return a folder as params.yaml holds it: relative where it lies in the project."""
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)


def check_name(root: Path, params: Path, config: Config, name: str, first: bool = False) -> None:
    """Check that a task may have a name.

    Args:
        root: the project's folder.
        params: the file, for messages.
        config: of the project.
        name: that is asked for.
        first: whether a new stream begins with it.

    Raises:
        IntaglioError: it may not; the message says why.
    """
    if not re.fullmatch(TASK_NAME, name):
        raise IntaglioError(f"task {name!r}: a name has lower-case letters, digits, '_' and '-' only, at most 63")
    if name == BASE:
        raise IntaglioError(f"task {name!r}: this name stands for the frozen backbone; choose another")
    if name == UNKNOWN:
        raise IntaglioError(f"task {name!r}: this is the answer for images of no task; choose another name")
    if name in config.chain and not first:
        raise IntaglioError(f"task {name!r}: already in {params}; choose another name")
    left = [kind for kind in ("modules", "signatures", "records") if (root / "models" / kind / name).exists()]
    if left and name in (*config.chain, *config.stream.dropped):
        raise IntaglioError(
            f"task {name!r}: a dropped task of this name left {root / 'models' / left[0] / name}; choose another name"
        )


def check_folder(root: Path, stream: Stream, folder: Path, but: Collection[str] = ()) -> None:
    """Check that a folder may hold the images of a new task or update.

    Args:
        root: the project's folder.
        stream: the tasks and updates so far.
        folder: resolved.
        but: tasks that may have the same folder.

    Raises:
        IntaglioError: it may not; the message says why.
    """
    tasks, updates = stream.tasks | stream.archived, stream.updates | stream.archived_updates
    if any((root / tasks[name].folder).resolve() == folder for name in but):
        return
    if folder.is_relative_to(root / FETCHED):
        raise IntaglioError(f"{folder}: {FETCHED} is rewritten by the stage `fetch`; keep your images elsewhere")
    if root.is_relative_to(folder):
        raise IntaglioError(f"{folder}: holds the project itself; name the folder of the images")
    for kind, folders in (("task", _folders(tasks)), ("update", _folders(updates))):
        for name, known in folders.items():
            if (root / known).resolve() == folder:
                raise IntaglioError(f"{folder}: is already the folder of {kind} {name!r}")


def _folders(named: Mapping[str, Task] | Mapping[str, Update]) -> dict[str, str]:
    return {name: entry.folder for name, entry in named.items()}
