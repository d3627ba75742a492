"""What `intaglio doctor` asks of a project: its files, its disk, its history, and what runs in it."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from components.config import Config
from components.errors import IntaglioError
from components.params import load_config
from components.records.storage import record_folder
from flows.lock_file import LockFile
from flows.pipeline.prefect_server import healthy
from flows.project.check_result import GB, CheckResult, gigabytes
from flows.registry.moved_project import former_root
from flows.settings import SCRATCH
from flows.tasks.dvc_files import learned_tasks
from flows.tasks.preflight import preflight

_LEAST_BYTES, _FEW_BYTES = GB // 2, 5 * GB  # a version of the default stream takes 0.1 GB, its trunk cache some more
_WALK_SECONDS = 3.0


def check_disk(places: dict[str, Path]) -> CheckResult:
    """Look at the free space on the disks of the project and of its caches.

    Args:
        places: what lies there -> an existing folder.
    """
    free = {name: shutil.disk_usage(folder).free for name, folder in places.items()}
    found, least = ", ".join(f"{gigabytes(size)} free for {name}" for name, size in free.items()), min(free.values())
    if least >= _FEW_BYTES:
        return CheckResult("disk", "ok", found)
    fix = "free some space: docs/how-to/free-disk-space.md"
    return CheckResult("disk", "FAIL" if least < _LEAST_BYTES else "warn", found, fix)


def check_permissions(root: Path) -> CheckResult:
    """Try to write where runs write."""
    refused = []
    for folder in (
        root,
        root / SCRATCH,
        root / ".dvc",
        root / "data",
        root / "models",
        root / "reports",
        root / "mlruns",
    ):
        try:
            if folder.exists():
                tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            refused.append(f"{folder} ({error.strerror})")
    if refused:
        return CheckResult(
            "permissions", "FAIL", f"cannot write in {', '.join(refused)}", f"sudo chown -R $USER '{root}'"
        )
    return CheckResult("permissions", "ok", "all folders of the project can be written")


def check_lock_file(root: Path) -> CheckResult:
    """Read dvc.lock, which a kill may have torn."""
    path = root / "dvc.lock"
    if not path.is_file():
        return CheckResult("dvc.lock", "ok", "there is none yet: nothing was run")
    fix = "`intaglio run` repairs it; or `git checkout dvc.lock`"
    try:
        stages = LockFile.read(root).stages
        whole = path.read_text().endswith("\n") and all(isinstance(stage, dict) for stage in stages.values())
    except (IntaglioError, AttributeError, UnicodeDecodeError):
        whole = False
    if not whole:
        return CheckResult("dvc.lock", "FAIL", f"{path}: torn, or not written by DVC", fix)
    return CheckResult("dvc.lock", "ok", f"{len(stages)} stages were run")


def check_params(root: Path) -> tuple[CheckResult, Config | None]:
    """Read params.yaml; return what it says too."""
    try:
        config = load_config(root / "params.yaml", empty=True)
    except IntaglioError as error:
        first, *more = str(error).splitlines()
        found = first + (f" (and {len(more)} more)" if more else "")
        return CheckResult("params.yaml", "FAIL", found, "correct the key that is named"), None
    if not config.tasks:
        return CheckResult("params.yaml", "warn", "there is no task yet", "intaglio task add NAME FOLDER"), config
    return CheckResult("params.yaml", "ok", f"{len(config.tasks)} tasks"), config


def check_tasks(root: Path, config: Config) -> CheckResult:
    """Look for the images of tasks that are to be learned, and for the records of those whose images are gone."""
    try:
        if config.tasks:
            preflight(root)
    except IntaglioError as error:
        first, *more = str(error).splitlines()
        found = first.removeprefix(f"{root / 'params.yaml'}: ") + (f" (and {len(more)} more)" if more else "")
        return CheckResult("tasks", "FAIL", found, "put the folder back, or correct its line in params.yaml")
    gone = [name for name in config.tasks if not (root / config.task(name).folder).is_dir()]
    to_learn = _to_learn(root, config)
    lost = [name for name in gone if name not in to_learn and not record_folder(root, config.generation(name)).is_dir()]
    if lost:
        return CheckResult(
            "tasks", "FAIL", f"neither images nor a record: {', '.join(lost)}", "dvc pull, or dvc checkout"
        )
    rest = f", {len(to_learn)} to learn" if to_learn else ""
    rest += f", {len(set(gone) - set(to_learn))} without images, which their records replace" if gone else ""
    return CheckResult("tasks", "ok", f"{len(config.tasks) - len(to_learn)} learned{rest}")


def _to_learn(root: Path, config: Config) -> list[str]:
    try:
        learned: tuple[str, ...] = learned_tasks(root, config)
    except (IntaglioError, AttributeError):  # the check of dvc.lock says so
        learned = tuple(config.stream.archived)
    return [name for name in config.tasks if name not in learned]


def check_remote(root: Path) -> tuple[CheckResult, Path]:
    """Ask DVC's settings for a remote; return the folder of DVC's cache too."""
    from dvc.config import Config as DvcConfig
    from dvc.config import ConfigError

    cache = root / ".dvc" / "cache"
    try:
        settings = DvcConfig(dvc_dir=str(root / ".dvc"))
    except ConfigError as error:
        return CheckResult("DVC remote", "FAIL", " ".join(str(error).split()), "correct .dvc/config"), cache
    place = settings["cache"].get("dir")
    name, remotes = settings["core"].get("remote"), settings["remote"]
    cache = root / ".dvc" / place if place else cache
    if name in remotes:
        return CheckResult("DVC remote", "ok", f"{name}: {remotes[name].get('url')}"), cache
    fix = "dvc remote add --default NAME URL, then dvc push"
    known = (
        f"none is the default (known: {', '.join(remotes)})" if remotes else "none: the artefacts are on this disk only"
    )
    return CheckResult("DVC remote", "warn", known, fix), cache


def check_cache(folder: Path, seconds: float = _WALK_SECONDS) -> CheckResult:
    """Measure DVC's cache, for so long at most."""
    size, count, deadline = 0, 0, time.monotonic() + seconds
    for entry in _files(folder):
        size, count = size + entry.stat(follow_symlinks=False).st_size, count + 1
        if time.monotonic() > deadline:
            return CheckResult(
                "DVC cache", "ok", f"more than {gigabytes(size)} in {folder}; `dvc gc --workspace` shrinks it"
            )
    return CheckResult("DVC cache", "ok", f"{gigabytes(size)} in {count} files, {folder}")


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    waiting = [str(folder)] if folder.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry


def check_registry(root: Path) -> CheckResult:
    """Open MLflow's database, and ask whether it was made in this folder."""
    database = root / "mlruns" / "mlflow.db"
    if not database.is_file():
        return CheckResult("mlruns", "ok", "nothing published yet")
    fix = "restore mlruns from a backup, or set it aside to begin anew: stages' results are kept"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        former = former_root(root)
    except (sqlite3.Error, IntaglioError) as error:
        return CheckResult("mlruns", "FAIL", f"{database}: {error}", fix)
    if verdict != "ok":
        return CheckResult("mlruns", "FAIL", f"{database}: {verdict}", fix)
    if former is not None:
        found = f"was made in {former}; the next command makes its addresses follow"
        return CheckResult("mlruns", "warn", found, "intaglio status")
    return CheckResult("mlruns", "ok", f"readable, and at home here ({gigabytes(database.stat().st_size)})")


def check_prefect() -> CheckResult:
    """Ask the Prefect server that is named, or whether one could start here."""
    if address := os.environ.get("PREFECT_API_URL"):
        if healthy(address.removesuffix("/api")):
            return CheckResult("Prefect", "ok", f"a server answers at {address}")
        fix = "start it, correct PREFECT_API_URL, or unset it: a run then starts its own"
        return CheckResult("Prefect", "FAIL", f"PREFECT_API_URL is {address}, and no server answers there", fix)
    if find_spec("prefect") is None:
        return CheckResult("Prefect", "FAIL", "not installed", "pip install prefect")
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        return CheckResult(
            "Prefect", "FAIL", f"no port can be opened on 127.0.0.1: {error}", "allow programs to listen there"
        )
    return CheckResult("Prefect", "ok", "a run starts its own server on a free port")


def check_run_lock(root: Path) -> CheckResult:
    """Ask whether another run is at work. A run that starts at this moment waits for a tenth of a second."""
    path = root / SCRATCH / "run.lock"
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        holder = path.read_text().strip() or "another process"
        return CheckResult("run lock", "warn", f"{holder} runs this project's pipeline", "wait for it, or stop it")
    return CheckResult("run lock", "ok", "no run is at work")
