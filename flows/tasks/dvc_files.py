"""What DVC knows of a task: its entries in dvc.lock, and archived/NAME.dvc, which tracks what an archived task left.

dvc.lock is cut into entries by its lines and only the asked ones are parsed: with a hundred tasks it has thousands.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.config import Config
from components.errors import IntaglioError
from components.io import write_text

ARCHIVED = Path("archived")
_ENTRY = re.compile(r"^  (\S.*):$", re.MULTILINE)  # a stage's first line
_FACTS = ("md5", "size", "nfiles", "hash", "path")  # of an output, in the order that DVC writes them

Output = Mapping[str, Any]


def learned_tasks(root: Path, config: Config) -> frozenset[str]:
    """Return the tasks of the chain that have a module: dvc.lock has their training, or they are archived."""
    trained = {name.removeprefix("finetune@") for name in lock_entries(root) if name.startswith("finetune@")}
    return frozenset(name for name in config.chain if name in trained or name in config.stream.archived)


def lock_entries(root: Path) -> dict[str, str]:
    """Return the text of every stage's entry in dvc.lock; nothing where no stage has run."""
    path = root / "dvc.lock"
    if not path.is_file():
        return {}
    text = path.read_text()
    found = list(_ENTRY.finditer(text))
    ends = [*(entry.start() for entry in found[1:]), len(text)]
    return {entry[1]: text[entry.start() : end] for entry, end in zip(found, ends, strict=True)}


def archive_file(root: Path, task: str) -> Path:
    """Return the file that tracks what an archived task left."""
    return root / ARCHIVED / f"{task}.dvc"


def left_by(config: Config, task: str) -> Iterator[str]:
    """Yield the paths of what a task leaves for ever: of every generation, but for the index and the module."""
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
        IntaglioError: an output is not recorded, or not there.
    """
    known = {output["path"]: output for output in _recorded(root, config, task)}
    outs = []
    for path in left_by(config, task):
        if path not in known or not (root / path).exists():
            raise IntaglioError(f"task {task!r}: {path} is not there or not in dvc.lock; run `intaglio run` first")
        outs.append({fact: known[path][fact] for fact in _FACTS if fact in known[path]})
    buffer = io.StringIO()
    yaml = YAML()
    yaml.width = 2**16
    yaml.dump({"desc": f"What the archived task {task} left.", "wdir": "..", "outs": outs}, buffer)
    path = archive_file(root, task)
    if not path.is_file() or path.read_text() != buffer.getvalue():
        write_text(path, buffer.getvalue())


def _recorded(root: Path, config: Config, task: str) -> Iterator[Output]:
    """Yield the outputs of a task: from dvc.lock, and before that from the file of an earlier archiving."""
    path = archive_file(root, task)
    if path.is_file():
        yield from _outs(path, path.read_text())
    entries = lock_entries(root)
    names = [f"{stage}@{task}" for stage in ("validate", "finetune", "signature", "record")]
    for name in (*names, *(f"update@{update}" for update in config.generations(task)[1:])):
        if name in entries:
            yield from _outs(root / "dvc.lock", entries[name], name)


def _outs(path: Path, text: str, *place: str) -> Sequence[Output]:
    try:
        document = YAML(typ="safe").load(text)
        for key in place:
            document = document[key]
        return list(document.get("outs", []))
    except (YAMLError, LookupError, AttributeError, TypeError):
        raise IntaglioError(f"{path}: torn or edited; restore it from git, or run `intaglio run`") from None
