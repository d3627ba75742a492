"""`intaglio init`: a folder becomes a project. A kill half-way leaves no project, and the next call goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import IntaglioError
from components.io import write_text
from flows.project.template_files import DVC_YAML, MLRUNS, PACKAGED, PARAMS, new_params, template_text
from flows.settings import quiet_environment

DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n"
_TEMPORARY = re.compile(r"\..+\.[\w-]{8}")  # as components/io.py names what it writes before it takes its place
_SHOWN = 5


@dataclass(frozen=True)
class NewProject:
    """What was made: the project's folder, its tasks, and whether it has a git repository of its own."""

    root: Path
    default_stream: bool
    own_repository: bool

    @property
    def lines(self) -> list[str]:
        """Return what was done, and what comes next."""
        git = "its own git repository" if self.own_repository else "the git repository around it"
        first = (
            "`intaglio run` fetches the default stream and learns it"
            if self.default_stream
            else "`intaglio task add NAME FOLDER` makes a folder of images the first task, then `intaglio run`"
        )
        return [
            f"project {self.root}: {', '.join(PACKAGED)}; DVC and {git} are set up",
            f"next: in that folder, {first}",
        ]


def init_project(folder: Path, default_stream: bool = False) -> NewProject:
    """Make a folder a project: settings, pipeline, git and DVC. dvc.yaml comes last, and makes it one.

    Args:
        folder: is made where there is none; may hold an empty git repository.
        default_stream: whether the project begins with the default stream, and not without any task.

    Raises:
        IntaglioError: the folder is not empty, is within another project, or git or DVC failed.
    """
    folder, params = folder.resolve(), {True: new_params(True)} if default_stream else {False: new_params(False)}
    _check_place(folder)
    in_the_way = sorted(_in_the_way(folder))
    if in_the_way:
        shown = ", ".join(in_the_way[:_SHOWN]) + (", ..." if len(in_the_way) > _SHOWN else "")
        raise IntaglioError(f"{folder}: is not empty ({shown}); name a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path in PACKAGED:
        if path != DVC_YAML:
            write_text(folder / path, params[default_stream] if path == PARAMS else template_text(path))
    top = _set_up_git(folder)
    _set_up_dvc(folder, within=top != folder)
    write_text(folder / DVC_YAML, template_text(DVC_YAML))
    return NewProject(folder, default_stream, top == folder)


def _check_place(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise IntaglioError(f"{folder}: is a file; name a new or an empty folder")
    if (folder / DVC_YAML).is_file():
        raise IntaglioError(
            f"{folder}: is a project already; `intaglio init --upgrade {folder}` brings its {DVC_YAML} up to date"
        )
    for above in folder.parents:
        if (above / DVC_YAML).is_file() and (above / ".dvc").is_dir():
            raise IntaglioError(f"{folder}: is within the project {above}; name a folder outside of it")


def _in_the_way(folder: Path) -> Iterator[str]:
    """Yield what the folder holds, but for an empty repository and what a killed call of this command left."""
    unfinished = {path: {template_text(path)} for path in PACKAGED}
    unfinished[PARAMS] = {_safe_params(True), _safe_params(False)}
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name == ".git":
            continue
        if entry.is_dir() and entry.name == ".dvc":
            yield from [".dvc/cache"] if any((entry / "cache").glob("*")) else []
        elif entry.is_dir() and entry.name == "mlruns":
            yield from (f"mlruns/{path.name}" for path in entry.iterdir() if not _is_ours(path, unfinished[MLRUNS]))
        elif not _is_ours(entry, unfinished.get(entry.name, set())):
            yield entry.name


def _safe_params(default_stream: bool) -> str:
    try:
        return new_params(default_stream)
    except IntaglioError:  # a clone with tasks of its own has no default stream to offer
        return new_params(False)


def _is_ours(path: Path, texts: set[str]) -> bool:
    return bool(_TEMPORARY.fullmatch(path.name)) or (
        path.is_file() and path.read_bytes() in {t.encode() for t in texts}
    )


def _set_up_git(folder: Path) -> Path:
    """Make a git repository unless there is one around; return its top folder."""
    if shutil.which("git") is None:
        raise IntaglioError("git: not found; install it, DVC keeps a project's history with it")
    if not _top(folder):
        _run(["git", "init", "--quiet"], folder)
    return Path(_top(folder) or folder)


def _top(folder: Path) -> str:
    command = ["git", "rev-parse", "--show-toplevel"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.removesuffix("\n") if done.returncode == 0 else ""


def _set_up_dvc(folder: Path, within: bool) -> None:
    """Run `dvc init`, anew where a killed call left a part of it."""
    options = [*(["--subdir"] if within else []), *(["--force"] if (folder / ".dvc").exists() else [])]
    _run([sys.executable, "-m", "dvc", "init", "--quiet", *options], folder)
    write_text(folder / ".dvc" / "config", DVC_CONFIG)


def _run(command: Sequence[str], folder: Path) -> None:
    environment = {**quiet_environment(folder), **os.environ}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        shown = " ".join(word for word in command if not word.startswith("-") and word != sys.executable)
        raise IntaglioError(f"{folder}: `{shown}` failed: {said}; correct that and run `intaglio init` again")
