"""Small real projects (git and DVC) with stages that compute nothing: what the tests of the orchestration run on."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parents[1]
SHAPE = Path(__file__).parent / "project"


@dataclass(frozen=True)
class Project:
    """A project's folder, and what its stages did in it."""

    root: Path

    def executed(self) -> list[str]:
        """The stages that ran since the last `forget`, in order."""
        log = self.root / "executed.log"
        return log.read_text().split() if log.exists() else []

    def forget(self) -> None:
        """Begin a new count of executions."""
        (self.root / "executed.log").unlink(missing_ok=True)

    def fault(self, stage: str, orders: str) -> None:
        """Tell a stage to misbehave; see project/stage.py."""
        (self.root / "faults").mkdir(exist_ok=True)
        (self.root / "faults" / stage).write_text(orders)

    def measure(self, values: str) -> None:
        """Set what `evaluate` will find, as JSON."""
        (self.root / "measured.json").write_text(values)

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run DVC as a person would, without Prefect."""
        return run([sys.executable, "-m", "dvc", *arguments], self.root)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that has to succeed."""
    binaries = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one process of the test session makes and every one uses, unchanged."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    folder, building = place / f"shared-{name}", place / f"building-{name}"
    with (place / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(building)
            building.rename(folder)
    return folder


def copy_of(template: Path, target: Path) -> Project:
    """A project's own copy of a template."""
    shutil.copytree(template, target, symlinks=True)
    return Project(target)


def make_project(root: Path) -> Project:
    """A project of two tasks in which nothing has run."""
    shutil.copytree(SHAPE, root, dirs_exist_ok=True)
    yaml = YAML()
    params = yaml.load((REPOSITORY / "params.yaml").read_text())
    params["fetch"]["tasks"] = ["first", "second"]
    params["embedding"]["shared"] = "first"
    params["stream"]["tasks"] = {
        "first": {"folder": "data/raw/first", "previous": "base"},
        "second": {"folder": "data/raw/second", "previous": "first"},
    }
    with (root / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    (root / "measured.json").write_text("{}")
    (root / ".gitignore").write_text("executed.log\nfaults/\nalive\nbeat\ngo\n.intaglio/\nmlruns/\n")
    run(["git", "init", "-q"], root)
    run([sys.executable, "-m", "dvc", "init", "-q"], root)
    shutil.copy(REPOSITORY / ".dvcignore", root)
    run(["git", "add", "-A"], root)
    run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "begin"], root)
    return Project(root)
