"""What DVC knows of a task: whether it was learned, and archived/NAME.dvc, which tracks what an archived one left."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.config import Config
from components.errors import IntaglioError
from components.io import write_text
from flows.lock_file import LockFile

ARCHIVED = Path("archived")
_FACTS = ("md5", "size", "nfiles", "hash", "path")  # of an output, in the order that DVC writes them
_STAGES = ("validate", "finetune", "signature", "record")  # whose outputs stay for ever


def learned_tasks(root: Path, config: Config) -> tuple[str, ...]:
    """Return the tasks that were learned, in order of arrival: dvc.lock has their training, or they are archived."""
    lock = LockFile.read(root)
    return tuple(name for name in config.chain if name in config.stream.archived or lock.has_learned(name))


def check_learned(root: Path, config: Config, task: str) -> None:
    """Check that a task is in the chain and was learned.

    Args:
        root: the project's folder.
        config: of the project.
        task: its name.

    Raises:
        IntaglioError: it is not; the message says what to do.
    """
    if task not in config.chain:
        raise IntaglioError(f"task {task!r}: not in {root / 'params.yaml'}; it has {', '.join(config.chain)}")
    if task not in learned_tasks(root, config):
        raise IntaglioError(f"task {task!r}: was not learned yet; run `intaglio run` first")


def present_generation(config: Config, task: str) -> str:
    """Return the task that is retrieved in the place of `task`: the last that replaces it and is not retired."""
    later = [name for name in config.chain if task in config.replaced_by(name) and not config.task(name).retired]
    return later[-1] if later else task


def archive_file(root: Path, task: str) -> Path:
    """Return the file that tracks what an archived task left."""
    return root / ARCHIVED / f"{task}.dvc"


def left_by(config: Config, task: str) -> Iterator[str]:
    """Yield the paths of what a task leaves for ever: its index and module, and a signature and record per generation.

    Args:
        config: of the project.
        task: its name.
    """
    yield f"data/index/{task}.parquet"
    yield f"models/modules/{task}"
    for generation in config.generations(task):
        yield f"models/signatures/{generation}"
        yield f"models/records/{generation}"


def write_archive_file(root: Path, config: Config, task: str) -> None:
    """Write archived/<task>.dvc, by which DVC goes on tracking what the task left.

    Args:
        root: the project's folder.
        config: of the project.
        task: its name.

    Raises:
        IntaglioError: something of it is not recorded, or not there.
    """
    known, outs = _recorded(root, config, task), []
    for path in left_by(config, task):
        if path not in known:
            raise IntaglioError(f"task {task!r}: {path} is not in dvc.lock; run `intaglio run` first")
        if not (root / path).exists():
            raise IntaglioError(f"{root / path}: not found; run `dvc pull` or `intaglio run` first")
        outs.append({fact: known[path][fact] for fact in _FACTS if fact in known[path]})
    buffer = io.StringIO()
    yaml = YAML()
    yaml.width = 2**16
    yaml.dump({"desc": f"What the archived task {task} left.", "wdir": "..", "outs": outs}, buffer)
    file = archive_file(root, task)
    if not file.is_file() or file.read_text() != buffer.getvalue():
        write_text(file, buffer.getvalue())


def _recorded(root: Path, config: Config, task: str) -> dict[str, Mapping[str, Any]]:
    """Return what DVC recorded of a task's outputs, by path: in dvc.lock, else when it was archived before."""
    lock, file = LockFile.read(root), archive_file(root, task)
    names = [*(f"{stage}@{task}" for stage in _STAGES), *(f"update@{name}" for name in config.generations(task)[1:])]
    recorded = {path: out for name in names for path, out in lock.outs(name).items()}
    return (_outs_of(file) if file.is_file() else {}) | recorded


def _outs_of(file: Path) -> dict[str, Mapping[str, Any]]:
    try:
        return {out["path"]: out for out in YAML(typ="safe").load(file.read_text())["outs"]}
    except (YAMLError, LookupError, TypeError):
        raise IntaglioError(f"{file}: damaged; restore it with `git checkout {file.name}`, or remove it") from None
