"""The process of preloaded.py, as a test sees it: it forks a child per request and says how the child ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.crash.world import REPOSITORY, environment

KILLED = -9


@dataclass
class Server:
    """tests/crash/preloaded.py as a process. Every request returns the child's exit status, or minus a signal."""

    process: subprocess.Popen[str]
    log: Path

    def run(self, root: Path, *stage: str, fault: str = "", report: Path | None = None) -> int:
        """A stage."""
        return self._ask(root, stage=stage, fault=fault, report=str(report) if report else None)

    def dvc(self, root: Path, *arguments: str, fault: str = "", stage_fault: str = "", **strike: object) -> int:
        """DVC's command line; its stages are forks of it. `stage_fault` is "STAGE=FAULT"."""
        return self._ask(root, stage_fault, dvc=arguments, fault=fault, **strike)

    def recovered(self, root: Path, *arguments: str, fault: str = "", stage_fault: str = "", **strike: object) -> int:
        """The same after what `intaglio run` does before its first stage."""
        return self._ask(root, stage_fault, recovered=arguments, fault=fault, **strike)

    def conclude(self, root: Path, **strike: object) -> int:
        """What `intaglio run` does after its last stage, without Prefect."""
        return self._ask(root, conclude=True, **strike)

    def printed(self) -> str:
        """What the children printed since the last call."""
        text = self.log.read_text() if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return text

    def _ask(self, root: Path, stage_fault: str = "", **asked: object) -> int:
        env = environment(root) | {"CRASH_LOG": str(self.log), "CRASH_STAGE_FAULT": stage_fault}
        if not asked.get("whom"):
            asked = {name: value for name, value in asked.items() if name not in ("after", "whom")}
        request = {"root": str(root), "env": env, "log": str(self.log), **asked}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline())["status"])


@contextmanager
def start_server(log: Path) -> Iterator[Server]:
    """Start the process, which takes the seconds that the imports take; it ends with the context."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.crash.preloaded"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        yield Server(process, log)
