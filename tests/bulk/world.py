"""A tiny learned bundle, images for it, and the command run as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.crash.world import REPOSITORY, TASKS, environment, make_project

_STAGES = [
    "backbone",
    "fetch",
    *[f"{stage} {task}" for stage in ("ingest", "finetune", "signature") for task in TASKS],
    "bundle",
]
_LEARN = """
import sys
from components.stages import main
for stage in sys.argv[1:]:
    assert main(stage.split()) == 0, stage
"""


def make_bundle(root: Path) -> Path:
    """A project at `root` with two tasks learned by timm's smallest ViT; returns the folder of its bundle."""
    make_project(root)
    command = [sys.executable, "-c", _LEARN, *_STAGES]
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "models" / "bundle"


def command(*arguments: str) -> list[str]:
    """The console command with arguments, for a process of its own."""
    return [sys.executable, "-c", "from flows.cli import main; main()", *arguments]


def start(folder: Path, *arguments: str, stdin: int | None = None) -> subprocess.Popen[str]:
    """Start the command in `folder`, as the leader of a group of processes."""
    return subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(folder),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder: Path, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder` to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(folder),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


__all__ = ["REPOSITORY", "command", "make_bundle", "run", "start"]
