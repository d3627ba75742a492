"""`intaglio task add`: a folder of images becomes the next task of params.yaml."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from components.config import BASE, TASK_NAME, Task
from components.data.image_folder import ImageFolder, read_image_folder
from components.errors import IntaglioError
from components.io import atomic_file
from components.params import load_config
from flows.tasks.preflight import FETCHED


@dataclass(frozen=True)
class AddedTask:
    """What was appended: `folder` as it stands in params.yaml, and what was found in it."""

    name: str
    folder: str
    previous: str
    contents: ImageFolder


def add_task(root: Path, name: str, folder: Path, params: Path | None = None, first: bool = False) -> AddedTask:
    """Append a task to params.yaml; comments and layout of the file stay.

    Args:
        root: the project's folder.
        name: the task's name.
        folder: read by the rules of components/data/image_folder.py, so that `ingest` will accept it too.
        params: the file to change; default `root/params.yaml`.
        first: begin a new stream with it, in place of all tasks that the file names.

    Raises:
        IntaglioError: the name or the folder cannot be used; nothing was written.
    """
    params = params or root / "params.yaml"
    config = load_config(params)
    folder = folder.resolve()
    known = {} if first else config.stream.tasks
    _check_name(params, known, name)
    _check_folder(root, known, folder)
    contents = read_image_folder(folder)
    recorded = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
    previous = BASE if first else config.tasks[-1]
    _append(params, name, recorded, previous)
    return AddedTask(name, recorded, previous, contents)


def _check_name(params: Path, known: Mapping[str, Task], name: str) -> None:
    if not re.fullmatch(TASK_NAME, name):
        raise IntaglioError(f"task {name!r}: a name has lower-case letters, digits, '_' and '-' only, at most 63")
    if name == BASE:
        raise IntaglioError(f"task {name!r}: this name stands for the frozen backbone; choose another")
    if name in known:
        raise IntaglioError(f"task {name!r}: already in {params}; choose another name")


def _check_folder(root: Path, known: Mapping[str, Task], folder: Path) -> None:
    if folder.is_relative_to(root / FETCHED):
        raise IntaglioError(f"{folder}: {FETCHED} is rewritten by the stage `fetch`; keep your images elsewhere")
    if root.is_relative_to(folder):
        raise IntaglioError(f"{folder}: holds the project itself; name the folder of the images")
    for task, settings in known.items():
        if (root / settings.folder).resolve() == folder:
            raise IntaglioError(f"{folder}: is already the folder of task {task!r}")


_NULL = "tag:yaml.org,2002:null"


def _append(params: Path, name: str, folder: str, previous: str) -> None:
    yaml = YAML()  # the round-trip kind: comments, order and quotes survive
    yaml.preserve_quotes = True
    yaml.width = 2**16  # never wrap a line that was not wrapped
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(_NULL, "null"))
    text = params.read_text()
    document = yaml.load(text)
    task = CommentedMap(folder=folder, previous=previous)
    task.fa.set_flow_style()
    if previous == BASE:
        document["stream"]["tasks"], document["fetch"]["tasks"] = CommentedMap(), []
        if document["embedding"]["shared"] != BASE:
            document["embedding"]["shared"] = name
    document["stream"]["tasks"][name] = task
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    with atomic_file(params) as temporary:
        temporary.write_text(buffer.getvalue())
        load_config(temporary)  # never replace a file that works by one that does not
