"""A folder of one's own images becomes the next task of params.yaml."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from components.config import BASE, TASK_NAME, Task
from components.data.images import IMAGE_SUFFIXES
from components.errors import IntaglioError
from components.io import atomic_file
from components.params import load_config
from flows.tasks.preflight import FETCHED

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class AddedTask:
    """What was appended: `folder` as it stands in params.yaml, the classes found and the number of image files."""

    name: str
    folder: str
    previous: str
    classes: tuple[str, ...]
    images: int


def add_task(root: Path, name: str, folder: Path, params: Path | None = None, first: bool = False) -> AddedTask:
    """Append a task to params.yaml; comments and layout of the file stay.

    Args:
        root: the project's folder.
        name: the task's name.
        folder: one folder of images per class, or `train`, `val` and `test` with such folders in each.
        params: the file to change; default `root/params.yaml`.
        first: begin a new stream with it, in place of all tasks that the file names.

    Raises:
        IntaglioError: the name or the folder will not do; nothing was written.
    """
    params = params or root / "params.yaml"
    config = load_config(params)
    folder = folder.resolve()
    known = {} if first else config.stream.tasks
    _check_name(params, known, name)
    _check_folder(root, known, folder)
    classes = _count_images(folder)
    recorded = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
    previous = BASE if first else config.tasks[-1]
    _append(params, name, recorded, previous)
    return AddedTask(name, recorded, previous, tuple(sorted(classes)), sum(classes.values()))


def _check_name(params: Path, known: Mapping[str, Task], name: str) -> None:
    if not re.fullmatch(TASK_NAME, name):
        raise IntaglioError(f"task {name!r}: a name has lower-case letters, digits, '_' and '-' only, at most 63")
    if name == BASE:
        raise IntaglioError(f"task {name!r}: this name stands for the frozen backbone; choose another")
    if name in known:
        raise IntaglioError(f"task {name!r}: already in {params}; choose another name")


def _check_folder(root: Path, known: Mapping[str, Task], folder: Path) -> None:
    if not folder.exists():
        raise IntaglioError(f"{folder}: folder not found")
    if not folder.is_dir():
        raise IntaglioError(f"{folder}: not a folder; expected one folder of images per class inside it")
    if folder.is_relative_to(root / FETCHED):
        raise IntaglioError(f"{folder}: {FETCHED} is rewritten by the stage `fetch`; keep your images elsewhere")
    if root.is_relative_to(folder):
        raise IntaglioError(f"{folder}: holds the project itself; name the folder of the images")
    for task, settings in known.items():
        if (root / settings.folder).resolve() == folder:
            raise IntaglioError(f"{folder}: is already the folder of task {task!r}")


def _count_images(folder: Path) -> dict[str, int]:
    """Image files per class, over all splits if the folder has them."""
    inside = _folders(folder)
    splits = [path for path in inside if path.name in SPLITS]
    stray = [path.name for path in inside if path.name not in SPLITS]
    if splits and stray:
        raise IntaglioError(f"{folder}: has both splits and other folders ({', '.join(stray)}); move one kind away")
    counts: dict[str, int] = {}
    for path in (path for split in splits for path in _folders(split)) if splits else inside:
        images = sum(1 for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        counts[path.name] = counts.get(path.name, 0) + images
    if len(counts) < 2:
        raise IntaglioError(f"{folder}: found {len(counts)} class folders; expected at least 2, one per class")
    empty = [name for name, images in counts.items() if not images]
    if empty:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise IntaglioError(f"{folder}: no images in class {', '.join(empty)}; expected files such as {kinds}")
    return counts


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


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
