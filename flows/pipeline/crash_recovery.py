"""Clear away what a killed process may leave and neither DVC nor MLflow removes. Needs the run lock."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.config import BASE, Config
from components.errors import IntaglioError
from components.io import write_text
from flows.settings import scratch_folder

_OUTPUT_FOLDERS = ("data", "models", "reports")
_OF_A_TASK = (  # what a task or an update leaves, under its name
    *("data/manifests/*.parquet", "data/index/*.parquet", "reports/validation/*/"),
    *("models/modules/*/", "models/signatures/*/", "models/records/*/"),
)
_TEMPORARY = re.compile(r"\.[\w-]{22}\.tmp")  # as DVC names what it writes before it takes its place
_ENTRY = re.compile(r"^  \S.*:$", re.MULTILINE)  # a stage's first line in dvc.lock


def recover(root: Path) -> None:
    """Clear away what a kill left in DVC's tables, in dvc.lock, among the outputs and in the scratch folder.

    Raises:
        IntaglioError: dvc.lock is torn, and a DVC that may be about to rewrite it holds its lock for minutes.
    """
    _forget_dead_processes(root)
    if _torn(root / "dvc.lock"):
        _repair_lock_file(root)
    _sweep_temporaries(root)
    shutil.rmtree(scratch_folder(root), ignore_errors=True)
    scratch_folder(root).mkdir(parents=True, exist_ok=True)


def forget_dropped_tasks(root: Path, config: Config) -> None:
    """Remove what tasks left that params.yaml does not name any more, and archive files of tasks that have stages.

    Evaluate, report and bundle read folders whole, and would run for nothing, or answer with a dropped task. A kill in
    `intaglio task archive` leaves a file that tracks what a stage still writes, which DVC refuses.
    A task that comes back gets what it left from DVC's cache. The figures of its training are not in there, and stay.
    """
    archived = {path.stem for path in (root / "archived").glob("*.dvc")}  # of lost lines too: only they know
    kept = {BASE, *config.chain, *config.updates}
    for pattern in _OF_A_TASK:
        for path in root.glob(pattern):
            name = path.name if path.is_dir() else path.stem
            known = name in kept or name.partition(".")[0] in archived or name.startswith(".")
            if not known:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (root / "archived").glob("*.dvc"):
        if path.stem in config.stream.tasks:
            path.unlink()


def whole_entries(text: str) -> str:
    """Return the part of a torn dvc.lock before its last stage, which may be incomplete; "" if nothing is whole.

    DVC rewrites the file from its beginning, so it is torn at its end. A stage that is no longer in it comes back from
    DVC's run cache without being computed.
    """
    starts = [found.start() for found in _ENTRY.finditer(text)]
    while len(starts) > 1:
        kept = text[: starts.pop()]
        if _is_lock(kept):
            return kept
    return ""


def _torn(lock: Path) -> bool:
    # A `dvc repro` may be writing it at this moment; it takes milliseconds, and a living process finishes it.
    return lock.is_file() and not _is_lock(lock.read_text(errors="replace"))


def _is_lock(text: str) -> bool:
    """Return whether DVC can have written it. YAML alone does not tell: half a hash may be a word, or a number."""
    try:
        document = YAML(typ="safe").load(text) if text.endswith("\n") else None
    except YAMLError:
        return False
    stages = document.get("stages") if isinstance(document, Mapping) else None
    return isinstance(stages, Mapping) and all(_is_entry(stage) for stage in stages.values())


def _is_entry(stage: object) -> bool:
    if not isinstance(stage, Mapping):
        return False
    kinds, params = [stage[kind] for kind in ("deps", "outs") if kind in stage], stage.get("params", {})
    if not isinstance(params, Mapping) or not all(isinstance(section, Mapping) for section in params.values()):
        return False
    return all(isinstance(files, list) and all(_is_file(file) for file in files) for files in kinds)


def _is_file(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("path"), str) and isinstance(entry.get("md5", ""), str)


def _repair_lock_file(root: Path) -> None:
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    lock = root / "dvc.lock"
    try:
        with Repo(str(root)) as repo, repo.lock:  # no other process writes the file now
            if not _torn(lock):
                return
            if kept := whole_entries(lock.read_text(errors="replace")):
                write_text(lock, kept)
            else:
                lock.unlink()
    except (DvcException, LockError) as error:
        raise IntaglioError(f"{lock}: torn, and cannot be repaired now: {' '.join(str(error).split())}") from None
    print("dvc.lock was torn by a kill; repaired: what is missing comes back from DVC's cache", flush=True)


def _sweep_temporaries(root: Path) -> None:
    """Remove the files that a killed DVC left beside outputs: they belong to no output, so DVC does not."""
    for top in (root / name for name in _OUTPUT_FOLDERS):
        for folder in (top, *top.glob("*/")):
            for path in folder.glob(".*.tmp"):
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)


def _forget_dead_processes(root: Path) -> None:
    """Remove DVC's table of readers and writers if every process in it is dead, or a kill tore it.

    DVC does so by itself, except where the dead process was never reaped (a container without an init), or where the
    file is torn: then it would refuse to start until a person removes the file.
    """
    table = root / ".dvc" / "tmp" / "rwlock"
    if not _left_by_the_dead(table):
        return
    from dvc.lock import LockError, make_lock

    with suppress(LockError), make_lock(f"{table}.lock", tmp_dir=str(table.parent)):  # no other process writes it now
        if _left_by_the_dead(table):
            table.unlink()


def _left_by_the_dead(table: Path) -> bool:
    try:
        entries = json.loads(table.read_text())
        writers = list(entries.get("write", {}).values())
        readers = [reader for group in entries.get("read", {}).values() for reader in group]
        holders = {int(entry["pid"]) for entry in [*writers, *readers] if entry}
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError, AttributeError):
        return True
    return bool(holders) and not any(lives(pid) for pid in holders)


def lives(pid: int) -> bool:
    """Return whether a process runs; one that is dead and only waits to be reaped does not."""
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
