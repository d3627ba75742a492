"""One clean run of the tiny project for all crash tests, and a server that runs stages in children with faults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.crash.world import REPOSITORY, artefacts, environment, make_project

KILLED = -9


@dataclass
class Server:
    """tests/crash/preloaded.py as a process: it imports once, and forks a child per request."""

    process: subprocess.Popen[str]
    log: Path

    def run(self, root: Path, *stage: str, fault: str = "", report: Path | None = None) -> int:
        """A stage in a child; returns its exit status, or minus the signal that ended it."""
        asked = {"root": str(root), "env": environment(root), "log": str(self.log), "stage": stage, "fault": fault}
        return self._ask(asked | {"report": str(report) if report else None})

    def dvc(self, root: Path, *arguments: str, fault: str = "") -> int:
        """DVC's command line in a child; its stages are forks of it."""
        env = environment(root) | {"CRASH_LOG": str(self.log)}
        return self._ask({"root": str(root), "env": env, "log": str(self.log), "dvc": arguments, "fault": fault})

    def said(self) -> str:
        """What the children printed since the last call."""
        text = self.log.read_text() if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return text

    def _ask(self, asked: dict[str, object]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline())["status"])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crash.preloaded"],
        cwd=REPOSITORY,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        yield Server(process, tmp_path_factory.mktemp("server") / "log")


@dataclass(frozen=True)
class World:
    """A project after a clean run, and the sha256 of every file in it."""

    root: Path
    clean: dict[str, str] = field(repr=False)


@pytest.fixture(scope="session")
def clean_template(server: Server, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("clean") / "project"
    make_project(root)
    assert server.dvc(root, "repro") == 0, server.said()
    return World(root, artefacts(root))


@pytest.fixture
def world(clean_template: World, tmp_path: Path) -> World:
    """A copy of the project that the test may break."""
    shutil.copytree(clean_template.root, tmp_path / "project", symlinks=True)
    return World(tmp_path / "project", clean_template.clean)
